//! The operations every device implements.

use std::fmt::Debug;
use std::ops::Range;

use eyas_quant::Quantized;

use crate::Result;
use crate::batch::FlatBatch;
use crate::memory::StepShape;
use crate::moments::{HostMoments, MomentStorage};
use crate::spec::{
    Activation, AdamW, Adapter, AttentionSpec, Dtype, HostMatrix, NormSpec, Projection, QkvLayout, Rope,
    Storage, Write,
};

/// A dense row-major matrix on a device.
pub trait DeviceTensor: Debug + Send + Sync {
    /// Rows and columns as allocated. Operations work on the first `tokens` rows.
    fn shape(&self) -> (usize, usize);
    /// The elements' type.
    fn dtype(&self) -> Dtype;
}

/// What an operation took, of those that [`Backend::measure`] watched.
#[derive(Clone, Debug, PartialEq)]
pub struct OpTime {
    /// The operation, and its shape where that tells them apart.
    pub op: String,
    /// How often it ran.
    pub calls: usize,
    /// Milliseconds in all.
    pub milliseconds: f64,
}

/// A device and the operations of a QLoRA step on it.
///
/// Conventions, for every operation:
/// - Matrices are row-major; a row is a token. Tensors may have more rows than the batch: the operation works on
///   the first `tokens`.
/// - Activations have the type [`Backend::compute_dtype`]; norms' weights, statistics, adapters, gradients of
///   adapters and optimiser state are `f32`.
/// - An operation and its backward share a name: `norm`, `norm_backward`. A backward adds to or sets its output as
///   its [`Write`] argument says.
/// - Work is queued in order; only `download`, `host_values` and [`Backend::synchronize`] wait for it. Nothing is
///   allocated on the device by an operation once a step of the same size has run.
/// - The same inputs give the same bits on the same device.
///
/// # Errors
/// An operation fails on operands whose shapes do not fit ([`crate::Error::Shape`]) and when the device does.
pub trait Backend: Debug + Send + Sync + Sized + 'static {
    /// A dense matrix.
    type Tensor: DeviceTensor;
    /// A frozen weight, `[out, in]`, dense or quantised.
    type Weight: Debug + Send + Sync;
    /// A flat batch on the device.
    type Batch: Debug + Send + Sync;
    /// An optimiser's moments.
    type Moments: Debug + Send + Sync;
    /// A dense matrix in host memory that the device copies to and from while it computes.
    type HostBuffer: Debug + Send + Sync;

    /// Work that was recorded, see [`Backend::record`].
    type Recording: Debug + Send + Sync;

    /// Whether host memory is apart from the device's, so that moving activations there makes room.
    const OFFLOADS: bool;

    /// Rows of logits at a time with which the head's products run at full speed.
    const LOGIT_ROWS: usize;

    /// Prompt tokens of a step of generation with which products run near full speed, and other answers do not wait
    /// for long.
    const PROMPT_TOKENS: usize;

    // --- The device ---

    /// What a person calls the device.
    fn name(&self) -> String;
    /// The type of activations.
    fn compute_dtype(&self) -> Dtype;
    /// Waits for everything queued.
    fn synchronize(&self) -> Result<()>;

    /// Starts or stops measuring what each operation takes; what was measured before is forgotten. Measuring slows
    /// the device down. A backend that cannot ignores it.
    fn measure(&self, on: bool) -> Result<()> {
        let _ = on;
        Ok(())
    }
    /// What was measured since, one entry an operation and shape.
    fn measured(&self) -> Result<Vec<OpTime>> {
        Ok(Vec::new())
    }

    // --- Repeated work ---

    /// Runs `work`, and where the device can gives back a recording that [`Backend::replay`] runs again at less cost.
    ///
    /// `work` queues operations only: it neither allocates nor loads a batch nor copies from or to the host, so the same work
    /// has run before. It may be called twice. The recording has the operands' places, not their contents, and holds for
    /// batches of as many tokens, as many sequences and the same [`crate::reach`]. Operations check what a batch holds when
    /// they are recorded, not when they are replayed: that ids, positions and slots are inside their tables is up to the
    /// caller then.
    fn record<E: From<crate::Error>>(
        &self,
        mut work: impl FnMut() -> Result<(), E>,
    ) -> Result<Option<Self::Recording>, E> {
        work()?;
        Ok(None)
    }
    /// Queues recorded work again, with the same bits as without recording. Its operands are alive and where they were.
    /// `false` when the recording no longer holds; nothing was queued then.
    fn replay(&self, recording: &Self::Recording) -> Result<bool> {
        let _ = recording;
        Ok(false)
    }

    // --- Memory ---

    /// Bytes that may still be allocated; `None` where nobody knows.
    fn free_memory(&self) -> Result<Option<u64>>;
    /// Bytes that this backend holds, or the process where the device's memory is its own: now, and at most so far.
    fn used_memory(&self) -> Option<(u64, u64)>;
    /// Bytes that [`Backend::load_weight`] takes for a weight when activations are `dtype`.
    fn stored_bytes(dtype: Dtype, rows: usize, cols: usize, storage: Storage) -> u64;
    /// Bytes of its own working memory that a backend holds once steps of this shape have run.
    fn scratch_bytes(shape: &StepShape) -> u64;
    /// Allocates that memory now, so that no step has to.
    fn reserve(&self, shape: &StepShape) -> Result<()>;
    /// Gives that memory back. Operations take it anew.
    fn release(&self) -> Result<()> {
        Ok(())
    }
    /// Allocates a matrix of zeros.
    fn zeros(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<Self::Tensor>;
    /// Writes `values` over the start of `tensor`, converting them to its type.
    fn upload(&self, values: &[f32], tensor: &mut Self::Tensor) -> Result<()>;
    /// Reads the first `values.len()` elements, as `f32`. Waits for them.
    fn download(&self, tensor: &Self::Tensor, values: &mut [f32]) -> Result<()>;
    /// Sets every element to zero.
    fn clear(&self, tensor: &mut Self::Tensor) -> Result<()>;
    /// Puts a frozen weight on the device, quantising it there when `storage` says so.
    fn load_weight(&self, matrix: HostMatrix<'_>, storage: Storage) -> Result<Self::Weight>;
    /// Puts a weight that is quantised already on the device, bit for bit.
    fn load_quantized(&self, weight: Quantized) -> Result<Self::Weight>;
    /// Bytes a weight takes on the device.
    fn weight_bytes(&self, weight: &Self::Weight) -> u64;
    /// Reads rows of a frozen weight back as `f32`, dequantised, as the operations see them.
    fn download_weight(&self, weight: &Self::Weight, rows: Range<usize>, values: &mut Vec<f32>)
    -> Result<()>;
    /// Host memory for a matrix.
    fn new_host_buffer(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<Self::HostBuffer>;
    /// Copies the first `tokens` rows to host memory, once what is queued has run and beside what is queued later.
    /// Until [`Backend::await_copy`], `from` may be read but not written.
    fn offload(&self, tokens: usize, from: &Self::Tensor, to: &mut Self::HostBuffer) -> Result<()>;
    /// Copies the first `tokens` rows back in the same way. Until [`Backend::await_copy`], `to` may be neither read nor
    /// written.
    fn fetch(&self, tokens: usize, from: &Self::HostBuffer, to: &mut Self::Tensor) -> Result<()>;
    /// Holds back what is queued from now on until the buffer's last copy has run; the caller does not wait.
    fn await_copy(&self, buffer: &Self::HostBuffer) -> Result<()>;
    /// The values of a buffer of `f32`, row by row. Waits for its last copy.
    fn host_values<'b>(&self, buffer: &'b Self::HostBuffer) -> Result<&'b [f32]>;
    /// As [`Backend::host_values`], to write.
    fn host_values_mut<'b>(&self, buffer: &'b mut Self::HostBuffer) -> Result<&'b mut [f32]>;
    /// Room for a batch of at most this many tokens and sequences.
    fn new_batch(&self, max_tokens: usize, max_sequences: usize) -> Result<Self::Batch>;
    /// Replaces the batch on the device.
    fn load_batch(&self, batch: &FlatBatch, into: &mut Self::Batch) -> Result<()>;

    // --- Embedding, norms, residuals ---

    /// `x[t] = table[input_ids[t]]`.
    fn embed(&self, batch: &Self::Batch, table: &Self::Weight, x: &mut Self::Tensor) -> Result<()>;
    /// Normalises each row: `x`, `y` `[tokens, n]`; `weight`, `bias` `[1, n]`; `stats` `[tokens, 2]` receives the
    /// mean (zero for RMS) and the reciprocal deviation.
    fn norm(
        &self,
        tokens: usize,
        spec: NormSpec,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: Option<&Self::Tensor>,
        y: &mut Self::Tensor,
        stats: &mut Self::Tensor,
    ) -> Result<()>;
    /// Input gradient of [`Backend::norm`]; the weights are frozen.
    fn norm_backward(
        &self,
        tokens: usize,
        spec: NormSpec,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        stats: &Self::Tensor,
        dy: &Self::Tensor,
        dx: &mut Self::Tensor,
        write: Write,
    ) -> Result<()>;
    /// RMS-normalises every query and key head of `qkv` by itself (Qwen3), values copied: `raw` to `qkv`, both
    /// `[tokens, layout.width()]`; `q_weight`, `k_weight` `[1, head_dim]`.
    fn head_norm(
        &self,
        tokens: usize,
        layout: &QkvLayout,
        eps: f32,
        raw: &Self::Tensor,
        q_weight: &Self::Tensor,
        k_weight: &Self::Tensor,
        qkv: &mut Self::Tensor,
    ) -> Result<()>;
    /// Input gradient of [`Backend::head_norm`], in place: `dqkv` becomes the gradient of `raw`.
    fn head_norm_backward(
        &self,
        tokens: usize,
        layout: &QkvLayout,
        eps: f32,
        raw: &Self::Tensor,
        q_weight: &Self::Tensor,
        k_weight: &Self::Tensor,
        dqkv: &mut Self::Tensor,
    ) -> Result<()>;
    /// `y += x`, `[tokens, n]`.
    fn add(&self, tokens: usize, x: &Self::Tensor, y: &mut Self::Tensor) -> Result<()>;
    /// `y = x`, `[tokens, n]`.
    fn copy(&self, tokens: usize, x: &Self::Tensor, y: &mut Self::Tensor) -> Result<()>;
    /// Copies rows of a matrix over as many others of it, which they must not overlap, from row `to` on.
    fn copy_rows(&self, tensor: &mut Self::Tensor, from: Range<usize>, to: usize) -> Result<()>;

    // --- Projections ---

    /// `y (+)= x W^T + bias + scaling * dropout(x) A^T B^T` for every part, side by side.
    ///
    /// `x` `[tokens, in]`, `y` `[tokens, out]`. With an adapter `hidden` `[tokens, adapter.rank()]` receives
    /// `dropout(x) A^T` of each part that has an update, side by side, for the backward.
    fn project(
        &self,
        tokens: usize,
        projection: &Projection<Self>,
        adapter: Option<Adapter<'_, Self>>,
        x: &Self::Tensor,
        y: &mut Self::Tensor,
        hidden: Option<&mut Self::Tensor>,
        write: Write,
    ) -> Result<()>;
    /// Gradients of [`Backend::project`]: of the adapter, added to `grads` (flat as `Adapter::params`), and of the
    /// input, to `dx` unless nobody needs it. `x` and `hidden` are those of the forward.
    fn project_backward(
        &self,
        tokens: usize,
        projection: &Projection<Self>,
        adapter: Option<(Adapter<'_, Self>, &mut Self::Tensor)>,
        x: &Self::Tensor,
        hidden: Option<&Self::Tensor>,
        dy: &Self::Tensor,
        dx: Option<(&mut Self::Tensor, Write)>,
    ) -> Result<()>;

    // --- Attention ---

    /// Rotates queries and keys by their positions, in place; `inverse` rotates back, which is the backward.
    fn rope(
        &self,
        batch: &Self::Batch,
        layout: &QkvLayout,
        rope: &Rope<Self>,
        qkv: &mut Self::Tensor,
        inverse: bool,
    ) -> Result<()>;
    /// Causal attention inside each sequence: `qkv` `[T, width]`, `out` `[T, heads * head_dim]`; `lse`
    /// `[T, heads]` receives the log-sum-exp of the scores.
    fn attention(
        &self,
        batch: &Self::Batch,
        spec: &AttentionSpec<Self>,
        qkv: &Self::Tensor,
        out: &mut Self::Tensor,
        lse: &mut Self::Tensor,
    ) -> Result<()>;
    /// Gradient of [`Backend::attention`]: sets all of `dqkv`.
    fn attention_backward(
        &self,
        batch: &Self::Batch,
        spec: &AttentionSpec<Self>,
        qkv: &Self::Tensor,
        out: &Self::Tensor,
        lse: &Self::Tensor,
        dout: &Self::Tensor,
        dqkv: &mut Self::Tensor,
    ) -> Result<()>;
    /// Stores the keys and values of the batch in the cache: row `slot * positions + position`, `keys` and `values`
    /// `[slots * positions, kv_heads * head_dim]`. Where `rope` is given, [`Backend::rope`] comes before.
    fn cache_write(
        &self,
        batch: &Self::Batch,
        layout: &QkvLayout,
        rope: Option<&Rope<Self>>,
        positions: usize,
        qkv: &mut Self::Tensor,
        keys: &mut Self::Tensor,
        values: &mut Self::Tensor,
    ) -> Result<()>;
    /// Causal attention of the batch's queries over the cache of their slot, the batch's own keys included.
    fn attention_cached(
        &self,
        batch: &Self::Batch,
        spec: &AttentionSpec<Self>,
        positions: usize,
        qkv: &Self::Tensor,
        keys: &Self::Tensor,
        values: &Self::Tensor,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    // --- MLP ---

    /// The activation, row by row: `x` `[tokens, F * fan_in]`, `y` `[tokens, F]`.
    fn activation(
        &self,
        tokens: usize,
        kind: Activation,
        x: &Self::Tensor,
        y: &mut Self::Tensor,
    ) -> Result<()>;
    /// Input gradient of [`Backend::activation`], in place: `dy` `[tokens, F]`, and `x` `[tokens, F * fan_in]` becomes
    /// its own gradient.
    fn activation_backward(
        &self,
        tokens: usize,
        kind: Activation,
        dy: &Self::Tensor,
        x: &mut Self::Tensor,
    ) -> Result<()>;

    // --- Loss ---

    /// Gathers rows that have a target: `y[i] = x[target_row(targets.start + i)]`. The batch lists its rows that
    /// have a target in ascending order.
    fn gather_targets(
        &self,
        batch: &Self::Batch,
        targets: Range<usize>,
        x: &Self::Tensor,
        y: &mut Self::Tensor,
    ) -> Result<()>;
    /// Gathers the last row of every sequence: `y[i] = x[cu_seqlens[i + 1] - 1]`.
    fn gather_last(&self, batch: &Self::Batch, x: &Self::Tensor, y: &mut Self::Tensor) -> Result<()>;
    /// The inverse of [`Backend::gather_targets`]: `y[target_row(targets.start + i)] = x[i]`, other rows untouched.
    fn scatter_targets(
        &self,
        batch: &Self::Batch,
        targets: Range<usize>,
        x: &Self::Tensor,
        y: &mut Self::Tensor,
    ) -> Result<()>;
    /// Cross-entropy of the gathered rows' `logits` `[targets.len(), vocab]` against their targets; its sum is
    /// added to `loss` `[1, 1]`. With `gradient`, `logits` become `gradient * (softmax - onehot)`.
    fn cross_entropy(
        &self,
        batch: &Self::Batch,
        targets: Range<usize>,
        logits: &mut Self::Tensor,
        loss: &mut Self::Tensor,
        gradient: Option<f32>,
    ) -> Result<()>;

    // --- Optimiser ---

    /// The Euclidean norm of a flat gradient, to `norm` `[1, 1]`.
    fn grad_norm(&self, grads: &Self::Tensor, norm: &mut Self::Tensor) -> Result<()>;
    /// Bytes of the device's memory that [`Backend::new_moments`] takes. Paged moments take none of a card's.
    fn moment_bytes(parameters: usize, storage: MomentStorage) -> u64;
    /// Room for the moments of a flat vector, zero at first.
    fn new_moments(&self, parameters: usize, storage: MomentStorage) -> Result<Self::Moments>;
    /// Reads moments back, bit for bit. Waits for them.
    fn read_moments(&self, moments: &Self::Moments) -> Result<HostMoments>;
    /// Replaces moments by what [`Backend::read_moments`] gave for as many parameters and the same format.
    fn write_moments(&self, from: &HostMoments, moments: &mut Self::Moments) -> Result<()>;
    /// One AdamW step over a flat vector: clips by `norm`, updates `params` and both moments, in `f32` whatever the
    /// moments' format. Where it fails with [`crate::Error::OutOfMemory`], it has changed nothing.
    fn adamw(
        &self,
        spec: AdamW,
        grads: &Self::Tensor,
        norm: &Self::Tensor,
        params: &mut Self::Tensor,
        moments: &mut Self::Moments,
    ) -> Result<()>;
}
