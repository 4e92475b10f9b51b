//! The CPU backend: `f32` activations, one file an operation, work shared out with rayon in fixed pieces so that
//! results do not depend on the number of threads.

mod activation;
mod amx;
mod attention;
mod awake;
mod decode;
mod dropout;
mod elementwise;
mod layout;
mod loss;
mod matvec;
mod microkernel;
mod norm;
mod optimizer;
mod panel;
mod product;
mod project;
mod rope;
mod scratch;
mod simd;
mod tasks;
#[cfg(target_arch = "x86_64")]
mod tile;
#[cfg(target_arch = "x86_64")]
mod vector;
mod vexp;
mod weight;

use std::ops::Range;

use eyas_quant::Quantized;
use rayon::prelude::*;

use crate::backend::{Backend, DeviceTensor};
use crate::batch::{FlatBatch, IGNORE_INDEX};
use crate::memory::{StepShape, host_memory, resident_memory};
use crate::moments::{HostMoments, MomentStorage};
use crate::spec::{
    Activation, AdamW, Adapter, AttentionSpec, Dtype, HostMatrix, NormSpec, Projection, QkvLayout, Rope,
    Storage, Write,
};
use crate::{Error, Result};
pub use microkernel::MatmulKernel;
use scratch::Scratch;
pub use weight::CpuWeight;

/// How the CPU backend is set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// The kernel of the large matrix products; `None` takes the fastest that the processor has.
    pub matmul: Option<MatmulKernel>,
}

/// The processor as a [`Backend`].
#[derive(Debug)]
pub struct CpuBackend {
    matmul: MatmulKernel,
    scratch: Scratch,
}

/// A dense `f32` matrix in host memory.
#[derive(Clone, Debug, Default)]
pub struct CpuTensor {
    pub(crate) data: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl CpuTensor {
    /// All elements, row by row.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The first `rows` rows.
    pub(crate) fn rows(&self, rows: usize) -> &[f32] {
        &self.data[..rows * self.cols]
    }

    /// The first `rows` rows, to write.
    pub(crate) fn rows_mut(&mut self, rows: usize) -> &mut [f32] {
        &mut self.data[..rows * self.cols]
    }
}

impl DeviceTensor for CpuTensor {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
}

/// A flat batch, with its rows that have a target listed.
#[derive(Debug, Default)]
pub struct CpuBatch {
    pub(crate) batch: FlatBatch,
    pub(crate) target_rows: Vec<u32>,
    max_tokens: usize,
    max_sequences: usize,
}

impl CpuBackend {
    /// The processor, with the fastest kernels it has unless told otherwise.
    ///
    /// # Errors
    /// When the kernel asked for needs instructions that this processor lacks or that the environment variable
    /// `EYAS_MAX_CPU_ISA` (`portable`, `avx2`, `avx512`, `avx512_vnni`, `avx512_bf16`, `amx`) forbids, and when that names none.
    pub fn new(options: CpuOptions) -> Result<Self> {
        simd::Isa::limit().map_err(|reason| Error::Device { device: "CPU".into(), reason })?;
        let matmul = options.matmul.unwrap_or_else(MatmulKernel::best);
        if !matmul.is_supported() {
            return Err(Error::Device {
                device: "CPU".into(),
                reason: format!(
                    "this processor lacks the instructions of the {matmul} kernel, or EYAS_MAX_CPU_ISA forbids them; \
                     take f32"
                ),
            });
        }
        Ok(Self { matmul, scratch: Scratch::default() })
    }

    /// The kernel of the large matrix products.
    pub fn matmul(&self) -> MatmulKernel {
        self.matmul
    }
}

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Weight = CpuWeight;
    type Batch = CpuBatch;
    type Moments = HostMoments;
    type HostBuffer = CpuTensor;
    type Recording = ();

    const OFFLOADS: bool = false;

    /// Enough for a product to be fast, and few beside the activations.
    const LOGIT_ROWS: usize = 256;

    /// Longer ones gain nothing.
    const PROMPT_TOKENS: usize = 256;

    fn name(&self) -> String {
        format!("CPU ({} threads, {} products)", rayon::current_num_threads(), self.matmul)
    }

    fn compute_dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(host_memory())
    }

    fn used_memory(&self) -> Option<(u64, u64)> {
        resident_memory()
    }

    fn stored_bytes(_dtype: Dtype, rows: usize, cols: usize, storage: Storage) -> u64 {
        let len = rows as u64 * cols as u64;
        match storage {
            Storage::Dense(dtype) | Storage::OnHost(dtype) => len * dtype.size() as u64,
            Storage::Quantised(config) => config.stored_bytes(len),
        }
    }

    /// Blocks of weights are decoded into a few buffers of the size of a cache, which do not show beside the rest.
    fn scratch_bytes(_shape: &StepShape) -> u64 {
        0
    }

    fn reserve(&self, _shape: &StepShape) -> Result<()> {
        Ok(())
    }

    fn zeros(&self, _dtype: Dtype, rows: usize, cols: usize) -> Result<CpuTensor> {
        let len =
            rows.checked_mul(cols).filter(|n| n.checked_mul(4).is_some()).ok_or_else(|| Error::Shape {
                op: "zeros",
                reason: format!("{rows} x {cols} elements are more than memory can address"),
            })?;
        let mut data = Vec::new();
        data.try_reserve_exact(len).map_err(|_| Error::OutOfMemory {
            device: "CPU".into(),
            requested: len as u64 * 4,
            available: 0,
        })?;
        data.resize(len, 0.0);
        Ok(CpuTensor { data, rows, cols })
    }

    fn upload(&self, values: &[f32], tensor: &mut CpuTensor) -> Result<()> {
        let len = tensor.data.len();
        let target = tensor.data.get_mut(..values.len()).ok_or_else(|| Error::Shape {
            op: "upload",
            reason: format!("{} values do not fit a tensor of {len}", values.len()),
        })?;
        target.copy_from_slice(values);
        Ok(())
    }

    fn download(&self, tensor: &CpuTensor, values: &mut [f32]) -> Result<()> {
        let source = tensor.data.get(..values.len()).ok_or_else(|| Error::Shape {
            op: "download",
            reason: format!("{} values asked of a tensor of {}", values.len(), tensor.data.len()),
        })?;
        values.copy_from_slice(source);
        Ok(())
    }

    fn clear(&self, tensor: &mut CpuTensor) -> Result<()> {
        tensor.data.par_chunks_mut(1 << 16).for_each(|chunk| chunk.fill(0.0));
        Ok(())
    }

    fn load_weight(&self, matrix: HostMatrix<'_>, storage: Storage) -> Result<CpuWeight> {
        CpuWeight::load(matrix, storage)
    }

    fn load_quantized(&self, weight: Quantized) -> Result<CpuWeight> {
        CpuWeight::from_quantized(weight)
    }

    fn weight_bytes(&self, weight: &CpuWeight) -> u64 {
        weight.bytes()
    }

    fn download_weight(&self, weight: &CpuWeight, rows: Range<usize>, values: &mut Vec<f32>) -> Result<()> {
        weight.read_rows(rows, values)
    }

    fn new_host_buffer(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<CpuTensor> {
        self.zeros(dtype, rows, cols)
    }

    fn offload(&self, tokens: usize, from: &CpuTensor, to: &mut CpuTensor) -> Result<()> {
        elementwise::copy(tokens, from, to)
    }

    fn fetch(&self, tokens: usize, from: &CpuTensor, to: &mut CpuTensor) -> Result<()> {
        elementwise::copy(tokens, from, to)
    }

    fn await_copy(&self, _buffer: &CpuTensor) -> Result<()> {
        Ok(())
    }

    fn host_values<'b>(&self, buffer: &'b CpuTensor) -> Result<&'b [f32]> {
        Ok(buffer.data())
    }

    fn host_values_mut<'b>(&self, buffer: &'b mut CpuTensor) -> Result<&'b mut [f32]> {
        Ok(buffer.rows_mut(buffer.rows))
    }

    fn new_batch(&self, max_tokens: usize, max_sequences: usize) -> Result<CpuBatch> {
        Ok(CpuBatch { max_tokens, max_sequences, ..CpuBatch::default() })
    }

    fn load_batch(&self, batch: &FlatBatch, into: &mut CpuBatch) -> Result<()> {
        if batch.tokens() > into.max_tokens || batch.sequences() > into.max_sequences {
            return Err(Error::Batch(format!(
                "{} tokens in {} sequences do not fit the planned {} in {}",
                batch.tokens(),
                batch.sequences(),
                into.max_tokens,
                into.max_sequences
            )));
        }
        into.batch.clone_from(batch);
        into.target_rows.clear();
        into.target_rows.extend(
            batch
                .targets()
                .iter()
                .enumerate()
                .filter(|&(_, &t)| t != IGNORE_INDEX)
                .map(|(row, _)| row as u32),
        );
        Ok(())
    }

    fn embed(&self, batch: &CpuBatch, table: &CpuWeight, x: &mut CpuTensor) -> Result<()> {
        elementwise::embed(batch, table, x)
    }

    fn norm(
        &self,
        tokens: usize,
        spec: NormSpec,
        x: &CpuTensor,
        weight: &CpuTensor,
        bias: Option<&CpuTensor>,
        y: &mut CpuTensor,
        stats: &mut CpuTensor,
    ) -> Result<()> {
        norm::norm(tokens, spec, x, weight, bias, y, stats)
    }

    fn norm_backward(
        &self,
        tokens: usize,
        spec: NormSpec,
        x: &CpuTensor,
        weight: &CpuTensor,
        stats: &CpuTensor,
        dy: &CpuTensor,
        dx: &mut CpuTensor,
        write: Write,
    ) -> Result<()> {
        norm::norm_backward(tokens, spec, x, weight, stats, dy, dx, write)
    }

    fn head_norm(
        &self,
        tokens: usize,
        layout: &QkvLayout,
        eps: f32,
        raw: &CpuTensor,
        q_weight: &CpuTensor,
        k_weight: &CpuTensor,
        qkv: &mut CpuTensor,
    ) -> Result<()> {
        norm::head_norm(tokens, layout, eps, raw, q_weight, k_weight, qkv)
    }

    fn head_norm_backward(
        &self,
        tokens: usize,
        layout: &QkvLayout,
        eps: f32,
        raw: &CpuTensor,
        q_weight: &CpuTensor,
        k_weight: &CpuTensor,
        dqkv: &mut CpuTensor,
    ) -> Result<()> {
        norm::head_norm_backward(tokens, layout, eps, raw, q_weight, k_weight, dqkv)
    }

    fn add(&self, tokens: usize, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
        elementwise::add(tokens, x, y)
    }

    fn copy(&self, tokens: usize, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
        elementwise::copy(tokens, x, y)
    }

    fn copy_rows(&self, tensor: &mut CpuTensor, from: Range<usize>, to: usize) -> Result<()> {
        elementwise::copy_rows(tensor, from, to)
    }

    fn project(
        &self,
        tokens: usize,
        projection: &Projection<Self>,
        adapter: Option<Adapter<'_, Self>>,
        x: &CpuTensor,
        y: &mut CpuTensor,
        hidden: Option<&mut CpuTensor>,
        write: Write,
    ) -> Result<()> {
        project::project(self, tokens, projection, adapter, x, y, hidden, write)
    }

    fn project_backward(
        &self,
        tokens: usize,
        projection: &Projection<Self>,
        adapter: Option<(Adapter<'_, Self>, &mut CpuTensor)>,
        x: &CpuTensor,
        hidden: Option<&CpuTensor>,
        dy: &CpuTensor,
        dx: Option<(&mut CpuTensor, Write)>,
    ) -> Result<()> {
        project::project_backward(self, tokens, projection, adapter, x, hidden, dy, dx)
    }

    fn rope(
        &self,
        batch: &CpuBatch,
        layout: &QkvLayout,
        rope: &Rope<Self>,
        qkv: &mut CpuTensor,
        inverse: bool,
    ) -> Result<()> {
        rope::rope(batch, layout, rope, qkv, inverse)
    }

    fn attention(
        &self,
        batch: &CpuBatch,
        spec: &AttentionSpec<Self>,
        qkv: &CpuTensor,
        out: &mut CpuTensor,
        lse: &mut CpuTensor,
    ) -> Result<()> {
        attention::attention(&self.scratch, batch, spec, qkv, out, lse)
    }

    fn attention_backward(
        &self,
        batch: &CpuBatch,
        spec: &AttentionSpec<Self>,
        qkv: &CpuTensor,
        out: &CpuTensor,
        lse: &CpuTensor,
        dout: &CpuTensor,
        dqkv: &mut CpuTensor,
    ) -> Result<()> {
        attention::attention_backward(&self.scratch, batch, spec, qkv, out, lse, dout, dqkv)
    }

    fn cache_write(
        &self,
        batch: &CpuBatch,
        layout: &QkvLayout,
        rope: Option<&Rope<Self>>,
        positions: usize,
        qkv: &mut CpuTensor,
        keys: &mut CpuTensor,
        values: &mut CpuTensor,
    ) -> Result<()> {
        if let Some(rope) = rope {
            self.rope(batch, layout, rope, qkv, false)?;
        }
        attention::cache_write(batch, layout, positions, qkv, keys, values)
    }

    fn attention_cached(
        &self,
        batch: &CpuBatch,
        spec: &AttentionSpec<Self>,
        positions: usize,
        qkv: &CpuTensor,
        keys: &CpuTensor,
        values: &CpuTensor,
        out: &mut CpuTensor,
    ) -> Result<()> {
        attention::attention_cached(&self.scratch, batch, spec, positions, qkv, keys, values, out)
    }

    fn activation(&self, tokens: usize, kind: Activation, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
        activation::activation(tokens, kind, x, y)
    }

    fn activation_backward(
        &self,
        tokens: usize,
        kind: Activation,
        dy: &CpuTensor,
        x: &mut CpuTensor,
    ) -> Result<()> {
        activation::activation_backward(tokens, kind, dy, x)
    }

    fn gather_targets(
        &self,
        batch: &CpuBatch,
        targets: Range<usize>,
        x: &CpuTensor,
        y: &mut CpuTensor,
    ) -> Result<()> {
        elementwise::gather_targets(batch, targets, x, y)
    }

    fn gather_last(&self, batch: &CpuBatch, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
        elementwise::gather_last(batch, x, y)
    }

    fn scatter_targets(
        &self,
        batch: &CpuBatch,
        targets: Range<usize>,
        x: &CpuTensor,
        y: &mut CpuTensor,
    ) -> Result<()> {
        elementwise::scatter_targets(batch, targets, x, y)
    }

    fn cross_entropy(
        &self,
        batch: &CpuBatch,
        targets: Range<usize>,
        logits: &mut CpuTensor,
        loss: &mut CpuTensor,
        gradient: Option<f32>,
    ) -> Result<()> {
        loss::cross_entropy(batch, targets, logits, loss, gradient)
    }

    fn grad_norm(&self, grads: &CpuTensor, norm: &mut CpuTensor) -> Result<()> {
        optimizer::grad_norm(grads, norm)
    }

    fn moment_bytes(parameters: usize, storage: MomentStorage) -> u64 {
        storage.bytes(parameters)
    }

    fn new_moments(&self, parameters: usize, storage: MomentStorage) -> Result<HostMoments> {
        Ok(HostMoments::zeros(parameters, storage.format))
    }

    fn read_moments(&self, moments: &HostMoments) -> Result<HostMoments> {
        Ok(moments.clone())
    }

    fn write_moments(&self, from: &HostMoments, moments: &mut HostMoments) -> Result<()> {
        from.check("write_moments", moments.len(), moments.format())?;
        moments.clone_from(from);
        Ok(())
    }

    fn adamw(
        &self,
        spec: AdamW,
        grads: &CpuTensor,
        norm: &CpuTensor,
        params: &mut CpuTensor,
        moments: &mut HostMoments,
    ) -> Result<()> {
        optimizer::adamw(spec, grads, norm, params, moments)
    }
}
