//! What the operations are told: shapes, layouts and constants, none of it on a device but the frozen weights.

use std::ops::Range;

use crate::backend::{Backend, DeviceTensor};
use crate::{Error, Result};
pub use eyas_quant::QuantConfig;

/// The type of a dense tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Dtype {
    /// Bytes an element takes.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// A row-major matrix in host memory, as a checkpoint holds it.
#[derive(Clone, Copy, Debug)]
pub struct HostMatrix<'a> {
    /// Rows: output features of a linear layer.
    pub rows: usize,
    /// Columns: input features of a linear layer.
    pub cols: usize,
    /// The elements' type.
    pub dtype: Dtype,
    /// `rows * cols` little-endian elements; no alignment is asked for.
    pub bytes: &'a [u8],
}

impl<'a> HostMatrix<'a> {
    /// A view of `f32` values.
    ///
    /// # Errors
    /// When there are not `rows * cols` of them.
    pub fn from_f32(rows: usize, cols: usize, values: &'a [f32]) -> Result<Self> {
        let matrix = Self { rows, cols, dtype: Dtype::F32, bytes: bytemuck::cast_slice(values) };
        matrix.check()?;
        Ok(matrix)
    }

    /// Checks that the bytes are as many as the shape needs.
    ///
    /// # Errors
    /// When they are not.
    pub fn check(&self) -> Result<()> {
        let expected = self.rows.checked_mul(self.cols).and_then(|n| n.checked_mul(self.dtype.size()));
        if expected == Some(self.bytes.len()) {
            return Ok(());
        }
        Err(Error::Shape {
            op: "matrix",
            reason: format!(
                "{} bytes given for {} x {} elements of {:?}",
                self.bytes.len(),
                self.rows,
                self.cols,
                self.dtype
            ),
        })
    }
}

/// How a frozen weight is kept on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Storage {
    /// One element a weight.
    Dense(Dtype),
    /// The same in host memory that the device reads over its bus: for a table of which few rows are read.
    OnHost(Dtype),
    /// 4-bit blocks.
    Quantised(QuantConfig),
}

/// Whether an operation overwrites its output or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `y = ...`
    Set,
    /// `y += ...`, which fuses a residual or a sum of gradients.
    Add,
}

/// The two normalisations in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and variance (Ba et al. 2016), with a bias.
    LayerNorm,
    /// Root mean square alone (Zhang and Sennrich 2019), without a bias.
    RmsNorm,
}

/// A normalisation's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Which normalisation.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
}

/// The activation between the two halves of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * Phi(x)` through `erf`. Input `[T, F]`, output `[T, F]`.
    Gelu,
    /// GELU's tanh approximation (Hendrycks and Gimpel 2016). Input `[T, F]`, output `[T, F]`.
    GeluTanh,
    /// `silu(gate) * up` (Shazeer 2020). Input `[T, 2F]`: `gate` in the first `F` columns, `up` in the rest;
    /// output `[T, F]`.
    SwiGlu,
}

impl Activation {
    /// Input columns for each output column.
    pub const fn fan_in(self) -> usize {
        match self {
            Self::Gelu | Self::GeluTanh => 1,
            Self::SwiGlu => 2,
        }
    }
}

/// Where each head's query, key and value lie in a row of the fused `qkv` activation.
///
/// All checkpoints in use fit one closed form, so weights are never permuted on loading (which would break
/// 4-bit blocks and the row order of saved adapters). Query heads come in `kv_heads` groups of
/// `heads / kv_heads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkvLayout {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements a head.
    pub head_dim: usize,
    /// Columns from one group's first query head to the next group's.
    pub query_group_stride: usize,
    /// Column of the first key head.
    pub key_offset: usize,
    /// Column of the first value head.
    pub value_offset: usize,
    /// Columns from one key (or value) head to the next.
    pub kv_stride: usize,
}

impl QkvLayout {
    /// `[q x heads, k x kv_heads, v x kv_heads]`: the Llama family, and Falcon-7B with one key/value head.
    pub const fn contiguous(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            heads,
            kv_heads,
            head_dim,
            query_group_stride: heads / kv_heads * head_dim,
            key_offset: heads * head_dim,
            value_offset: (heads + kv_heads) * head_dim,
            kv_stride: head_dim,
        }
    }

    /// `[q x (heads / kv_heads), k, v]` for each key/value head: Falcon's new decoder architecture, and
    /// falcon-rw with `kv_heads == heads`.
    pub const fn grouped(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        let group = heads / kv_heads;
        Self {
            heads,
            kv_heads,
            head_dim,
            query_group_stride: (group + 2) * head_dim,
            key_offset: group * head_dim,
            value_offset: (group + 1) * head_dim,
            kv_stride: (group + 2) * head_dim,
        }
    }

    /// Columns of a row.
    pub const fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Query heads that share one key/value head.
    pub const fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// First column of query head `head`.
    pub const fn query(&self, head: usize) -> usize {
        head / self.group() * self.query_group_stride + head % self.group() * self.head_dim
    }

    /// First column of key head `kv_head`.
    pub const fn key(&self, kv_head: usize) -> usize {
        self.key_offset + kv_head * self.kv_stride
    }

    /// First column of value head `kv_head`.
    pub const fn value(&self, kv_head: usize) -> usize {
        self.value_offset + kv_head * self.kv_stride
    }
}

/// Rotary positions (Su et al. 2021), first half of a head paired with its second.
#[derive(Debug)]
pub struct Rope<B: Backend> {
    /// Elements of each head that are rotated, from its start: even, at most `head_dim`.
    pub dim: usize,
    /// `[positions, dim / 2]`, in `f32`.
    pub cos: B::Tensor,
    /// `[positions, dim / 2]`, in `f32`.
    pub sin: B::Tensor,
}

/// What attention needs to know besides its operands. It is always causal, and stays inside each sequence.
#[derive(Debug)]
pub struct AttentionSpec<B: Backend> {
    /// Where the heads lie.
    pub layout: QkvLayout,
    /// Multiplies `q . k`.
    pub scale: f32,
    /// Sliding window: a token sees itself and the `window - 1` before it.
    pub window: Option<usize>,
    /// ALiBi (Press et al. 2022): `alibi[head][position of the key]` is added to the scaled scores. A table
    /// `[heads, positions]`, `f32`, because the peers round its products to bfloat16, which no slope reproduces.
    pub alibi: Option<B::Tensor>,
}

/// The low-rank update of one linear layer (Hu et al. 2021): where its matrices lie in the adapter's flat vector.
///
/// `y += scaling * B (A dropout(x))`, `A` is `[r, in]`, `B` is `[out, r]`, both row-major.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraSlot {
    /// First element of `A`.
    pub a: usize,
    /// First element of `B`.
    pub b: usize,
    /// Rank.
    pub r: usize,
    /// `lora_alpha / r`, or `lora_alpha / sqrt(r)` with rsLoRA.
    pub scaling: f32,
}

/// One frozen linear layer with its bias.
#[derive(Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: B::Weight,
    /// `[1, out]`.
    pub bias: Option<B::Tensor>,
    /// `out`.
    pub out_features: usize,
}

/// Linear layers that read the same input; their outputs lie side by side: `[q, k, v]`, `[gate, up]`, or one alone.
#[derive(Debug)]
pub struct Projection<B: Backend> {
    /// Columns of the input.
    pub in_features: usize,
    /// Numbers the projection among all of the model's. Its parts read one input and share one dropout mask.
    pub index: u32,
    /// The layers, in the order of their columns.
    pub parts: Vec<Linear<B>>,
}

impl<B: Backend> Projection<B> {
    /// Columns of the output.
    pub fn out_features(&self) -> usize {
        self.parts.iter().map(|part| part.out_features).sum()
    }
}

/// The low-rank updates of one projection. They are apart from the frozen weights, so that several adapters can
/// share one base.
#[derive(Debug)]
pub struct Adapter<'a, B: Backend> {
    /// Every `A` and `B` of the adapter, flat, `[1, parameters]`, `f32`.
    pub params: &'a B::Tensor,
    /// The update of each of the projection's parts, in order; `None` for a part that is no target.
    pub slots: &'a [Option<LoraSlot>],
    /// Dropout on the input of `A`, while training.
    pub dropout: Option<Dropout>,
}

impl<B: Backend> Adapter<'_, B> {
    /// Columns of the saved low-rank activations: the sum of the ranks.
    pub fn rank(&self) -> usize {
        self.slots.iter().flatten().map(|slot| slot.r).sum()
    }
}

impl<B: Backend> Clone for Adapter<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Adapter<'_, B> {}

/// Dropout whose mask is a function of where it is used, not of when: forward, recomputation, backward and a
/// resumed run all see the same one. See [`crate::philox`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element, in `[0, 1)`. What is kept is scaled by `1 / (1 - p)`.
    pub p: f32,
    /// The run's seed.
    pub seed: u64,
    /// Numbers the micro-batch in the run. Together with [`Projection::index`] it names the mask.
    pub micro_batch: u32,
}

/// Decoupled weight decay Adam (Loshchilov and Hutter 2019) for one step, as `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decay of the weights.
    pub weight_decay: f32,
    /// Steps taken, this one included: starts at 1.
    pub step: u32,
    /// Gradients are scaled by `min(1, max_grad_norm / (norm + 1e-6))`, as `torch.nn.utils.clip_grad_norm_`.
    pub max_grad_norm: Option<f32>,
    /// What the loss was multiplied by, so that small gradients survive half precision: gradient and norm are
    /// divided by it first. 1 without loss scaling; a power of two changes no bit of the result.
    pub loss_scale: f32,
}

/// Checks that a tensor has at least `rows` rows and exactly `cols` columns.
///
/// # Errors
/// Names the operation and the operand when it has not.
pub fn check_shape(
    op: &'static str,
    name: &str,
    tensor: &impl DeviceTensor,
    rows: usize,
    cols: usize,
) -> Result<()> {
    let (have_rows, have_cols) = tensor.shape();
    if have_rows >= rows && have_cols == cols {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        reason: format!("{name} is {have_rows} x {have_cols}; at least {rows} rows of {cols} are needed"),
    })
}

/// Checks the rows of a copy inside a tensor, and returns its columns.
///
/// # Errors
/// When rows are outside the tensor, or overlap.
pub fn check_copy_rows(tensor: &impl DeviceTensor, from: &Range<usize>, to: usize) -> Result<usize> {
    let (rows, cols) = tensor.shape();
    let is_inside = |start: usize| start.checked_add(from.len()).is_some_and(|end| end <= rows);
    if !is_inside(from.start) || !is_inside(to) || to.abs_diff(from.start) < from.len() {
        let reason = format!(
            "rows {from:?} cannot be copied to row {to} and those after it; they must not overlap, and there are {rows}"
        );
        return Err(Error::Shape { op: "copy_rows", reason });
    }
    Ok(cols)
}
