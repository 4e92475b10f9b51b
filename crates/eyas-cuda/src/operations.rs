//! The operations of [`Backend`] on a card: each goes to the file that has it, timed where somebody measures.

use std::ops::Range;

use eyas_backend::{
    Activation, AdamW, Adapter, AttentionSpec, Backend, Dtype, Error, FlatBatch, HostMatrix, HostMoments,
    MomentStorage, NormSpec, OpTime, Projection, QkvLayout, Result, Rope, StepShape, Storage, Write,
};
use eyas_quant::Quantized;

use crate::backend::CudaBackend;
use crate::device::RESERVE;
use crate::{CudaBatch, CudaHostBuffer, CudaMoments, CudaRecording, CudaTensor, CudaWeight};

impl Backend for CudaBackend {
    type Tensor = CudaTensor;
    type Weight = CudaWeight;
    type Batch = CudaBatch;
    type Moments = CudaMoments;
    type HostBuffer = CudaHostBuffer;
    type Recording = CudaRecording;

    const OFFLOADS: bool = true;

    /// A product of fewer rows does not fill a large card.
    const LOGIT_ROWS: usize = 2048;

    /// Dequantising a weight costs what the product of some 500 tokens does.
    const PROMPT_TOKENS: usize = 1024;

    fn name(&self) -> String {
        self.device.name.clone()
    }

    fn compute_dtype(&self) -> Dtype {
        self.dtype
    }

    fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn measure(&self, on: bool) -> Result<()> {
        self.start_measuring(on)
    }

    fn measured(&self) -> Result<Vec<OpTime>> {
        self.read_measured()
    }

    fn record<E: From<Error>>(
        &self,
        work: impl FnMut() -> Result<(), E>,
    ) -> Result<Option<CudaRecording>, E> {
        self.record_work(work)
    }

    fn replay(&self, recording: &CudaRecording) -> Result<bool> {
        self.replay_work(recording)
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        let (free, ..) = self.device.memory()?;
        Ok(Some(free.saturating_sub(RESERVE)))
    }

    fn used_memory(&self) -> Option<(u64, u64)> {
        Some((self.device.used_bytes(), self.device.peak_bytes()))
    }

    fn stored_bytes(dtype: Dtype, rows: usize, cols: usize, storage: Storage) -> u64 {
        Self::planned_weight(dtype, rows, cols, storage)
    }

    fn scratch_bytes(shape: &StepShape) -> u64 {
        Self::planned_scratch(shape)
    }

    fn reserve(&self, shape: &StepShape) -> Result<()> {
        self.reserve_scratch(shape)
    }

    fn release(&self) -> Result<()> {
        self.scratch.clear()
    }

    fn zeros(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<CudaTensor> {
        self.new_tensor(dtype, rows, cols)
    }

    fn upload(&self, values: &[f32], tensor: &mut CudaTensor) -> Result<()> {
        self.upload_tensor(values, tensor)
    }

    fn download(&self, tensor: &CudaTensor, values: &mut [f32]) -> Result<()> {
        self.download_tensor(tensor, values)
    }

    fn clear(&self, tensor: &mut CudaTensor) -> Result<()> {
        self.device.zero(tensor.ptr(), tensor.bytes())
    }

    fn load_weight(&self, matrix: HostMatrix<'_>, storage: Storage) -> Result<CudaWeight> {
        self.load(matrix, storage)
    }

    fn load_quantized(&self, weight: Quantized) -> Result<CudaWeight> {
        self.place_quantized(&weight)
    }

    fn weight_bytes(&self, weight: &CudaWeight) -> u64 {
        weight.bytes()
    }

    fn download_weight(&self, weight: &CudaWeight, rows: Range<usize>, values: &mut Vec<f32>) -> Result<()> {
        self.read_weight(weight, rows, values)
    }

    fn new_host_buffer(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<CudaHostBuffer> {
        self.create_host_buffer(dtype, rows, cols)
    }

    fn offload(&self, tokens: usize, from: &CudaTensor, to: &mut CudaHostBuffer) -> Result<()> {
        self.copy_to_host(tokens, from, to)
    }

    fn fetch(&self, tokens: usize, from: &CudaHostBuffer, to: &mut CudaTensor) -> Result<()> {
        self.copy_from_host(tokens, from, to)
    }

    fn await_copy(&self, buffer: &CudaHostBuffer) -> Result<()> {
        self.hold_for_copy(buffer)
    }

    fn host_values<'b>(&self, buffer: &'b CudaHostBuffer) -> Result<&'b [f32]> {
        buffer.values()
    }

    fn host_values_mut<'b>(&self, buffer: &'b mut CudaHostBuffer) -> Result<&'b mut [f32]> {
        buffer.values_mut()
    }

    fn new_batch(&self, max_tokens: usize, max_sequences: usize) -> Result<CudaBatch> {
        self.create_batch(max_tokens, max_sequences)
    }

    fn load_batch(&self, batch: &FlatBatch, into: &mut CudaBatch) -> Result<()> {
        self.fill_batch(batch, into)
    }

    fn embed(&self, batch: &CudaBatch, table: &CudaWeight, x: &mut CudaTensor) -> Result<()> {
        self.timed("embed", String::new, || self.run_embed(batch, table, x))
    }

    fn norm(
        &self,
        tokens: usize,
        spec: NormSpec,
        x: &CudaTensor,
        weight: &CudaTensor,
        bias: Option<&CudaTensor>,
        y: &mut CudaTensor,
        stats: &mut CudaTensor,
    ) -> Result<()> {
        self.timed("norm", String::new, || self.run_norm(tokens, spec, x, weight, bias, y, stats))
    }

    fn norm_backward(
        &self,
        tokens: usize,
        spec: NormSpec,
        x: &CudaTensor,
        weight: &CudaTensor,
        stats: &CudaTensor,
        dy: &CudaTensor,
        dx: &mut CudaTensor,
        write: Write,
    ) -> Result<()> {
        self.timed("norm_backward", String::new, || {
            self.run_norm_backward(tokens, spec, x, weight, stats, dy, dx, write)
        })
    }

    fn head_norm(
        &self,
        tokens: usize,
        layout: &QkvLayout,
        eps: f32,
        raw: &CudaTensor,
        q_weight: &CudaTensor,
        k_weight: &CudaTensor,
        qkv: &mut CudaTensor,
    ) -> Result<()> {
        self.timed("head_norm", String::new, || {
            self.run_head_norm(tokens, layout, eps, raw, q_weight, k_weight, qkv)
        })
    }

    fn head_norm_backward(
        &self,
        tokens: usize,
        layout: &QkvLayout,
        eps: f32,
        raw: &CudaTensor,
        q_weight: &CudaTensor,
        k_weight: &CudaTensor,
        dqkv: &mut CudaTensor,
    ) -> Result<()> {
        self.timed("head_norm_backward", String::new, || {
            self.run_head_norm_backward(tokens, layout, eps, raw, q_weight, k_weight, dqkv)
        })
    }

    fn add(&self, tokens: usize, x: &CudaTensor, y: &mut CudaTensor) -> Result<()> {
        self.timed("add", String::new, || self.run_add(tokens, x, y))
    }

    fn copy(&self, tokens: usize, x: &CudaTensor, y: &mut CudaTensor) -> Result<()> {
        self.timed("copy", String::new, || self.run_copy(tokens, x, y))
    }

    fn copy_rows(&self, tensor: &mut CudaTensor, from: Range<usize>, to: usize) -> Result<()> {
        self.timed("copy_rows", String::new, || self.run_copy_rows(tensor, from, to))
    }

    fn project(
        &self,
        tokens: usize,
        projection: &Projection<Self>,
        adapter: Option<Adapter<'_, Self>>,
        x: &CudaTensor,
        y: &mut CudaTensor,
        hidden: Option<&mut CudaTensor>,
        write: Write,
    ) -> Result<()> {
        self.timed(
            "project",
            || shape_of(projection),
            || self.run_project(tokens, projection, adapter, x, y, hidden, write),
        )
    }

    fn project_backward(
        &self,
        tokens: usize,
        projection: &Projection<Self>,
        adapter: Option<(Adapter<'_, Self>, &mut CudaTensor)>,
        x: &CudaTensor,
        hidden: Option<&CudaTensor>,
        dy: &CudaTensor,
        dx: Option<(&mut CudaTensor, Write)>,
    ) -> Result<()> {
        self.timed(
            "project_backward",
            || shape_of(projection),
            || self.run_project_backward(tokens, projection, adapter, x, hidden, dy, dx),
        )
    }

    fn rope(
        &self,
        batch: &CudaBatch,
        layout: &QkvLayout,
        rope: &Rope<Self>,
        qkv: &mut CudaTensor,
        inverse: bool,
    ) -> Result<()> {
        self.timed("rope", String::new, || self.run_rope(batch, layout, rope, qkv, inverse))
    }

    fn attention(
        &self,
        batch: &CudaBatch,
        spec: &AttentionSpec<Self>,
        qkv: &CudaTensor,
        out: &mut CudaTensor,
        lse: &mut CudaTensor,
    ) -> Result<()> {
        self.timed("attention", String::new, || self.run_attention(batch, spec, qkv, out, lse))
    }

    fn attention_backward(
        &self,
        batch: &CudaBatch,
        spec: &AttentionSpec<Self>,
        qkv: &CudaTensor,
        out: &CudaTensor,
        lse: &CudaTensor,
        dout: &CudaTensor,
        dqkv: &mut CudaTensor,
    ) -> Result<()> {
        self.timed("attention_backward", String::new, || {
            self.run_attention_backward(batch, spec, qkv, out, lse, dout, dqkv)
        })
    }

    fn cache_write(
        &self,
        batch: &CudaBatch,
        layout: &QkvLayout,
        rope: Option<&Rope<Self>>,
        positions: usize,
        qkv: &mut CudaTensor,
        keys: &mut CudaTensor,
        values: &mut CudaTensor,
    ) -> Result<()> {
        self.timed("cache_write", String::new, || {
            self.run_cache_write(batch, layout, rope, positions, qkv, keys, values)
        })
    }

    fn attention_cached(
        &self,
        batch: &CudaBatch,
        spec: &AttentionSpec<Self>,
        positions: usize,
        qkv: &CudaTensor,
        keys: &CudaTensor,
        values: &CudaTensor,
        out: &mut CudaTensor,
    ) -> Result<()> {
        self.timed("attention_cached", String::new, || {
            self.run_attention_cached(batch, spec, positions, qkv, keys, values, out)
        })
    }

    fn activation(&self, tokens: usize, kind: Activation, x: &CudaTensor, y: &mut CudaTensor) -> Result<()> {
        self.timed("activation", String::new, || self.run_activation(tokens, kind, x, y))
    }

    fn activation_backward(
        &self,
        tokens: usize,
        kind: Activation,
        dy: &CudaTensor,
        x: &mut CudaTensor,
    ) -> Result<()> {
        self.timed("activation_backward", String::new, || self.run_activation_backward(tokens, kind, dy, x))
    }

    fn gather_targets(
        &self,
        batch: &CudaBatch,
        targets: Range<usize>,
        x: &CudaTensor,
        y: &mut CudaTensor,
    ) -> Result<()> {
        self.timed("gather_targets", String::new, || self.run_gather_targets(batch, targets, x, y))
    }

    fn gather_last(&self, batch: &CudaBatch, x: &CudaTensor, y: &mut CudaTensor) -> Result<()> {
        self.timed("gather_last", String::new, || self.run_gather_last(batch, x, y))
    }

    fn scatter_targets(
        &self,
        batch: &CudaBatch,
        targets: Range<usize>,
        x: &CudaTensor,
        y: &mut CudaTensor,
    ) -> Result<()> {
        self.timed("scatter_targets", String::new, || self.run_scatter_targets(batch, targets, x, y))
    }

    fn cross_entropy(
        &self,
        batch: &CudaBatch,
        targets: Range<usize>,
        logits: &mut CudaTensor,
        loss: &mut CudaTensor,
        gradient: Option<f32>,
    ) -> Result<()> {
        self.timed("cross_entropy", String::new, || {
            self.run_cross_entropy(batch, targets, logits, loss, gradient)
        })
    }

    fn grad_norm(&self, grads: &CudaTensor, norm: &mut CudaTensor) -> Result<()> {
        self.timed("grad_norm", String::new, || self.run_grad_norm(grads, norm))
    }

    fn moment_bytes(parameters: usize, storage: MomentStorage) -> u64 {
        Self::planned_moments(parameters, storage)
    }

    fn new_moments(&self, parameters: usize, storage: MomentStorage) -> Result<CudaMoments> {
        self.create_moments(parameters, storage)
    }

    fn read_moments(&self, moments: &CudaMoments) -> Result<HostMoments> {
        self.download_moments(moments)
    }

    fn write_moments(&self, from: &HostMoments, moments: &mut CudaMoments) -> Result<()> {
        self.upload_moments(from, moments)
    }

    fn adamw(
        &self,
        spec: AdamW,
        grads: &CudaTensor,
        norm: &CudaTensor,
        params: &mut CudaTensor,
        moments: &mut CudaMoments,
    ) -> Result<()> {
        self.timed("adamw", String::new, || self.run_adamw(spec, grads, norm, params, moments))
    }
}

fn shape_of(projection: &Projection<CudaBackend>) -> String {
    format!("{} -> {}", projection.in_features, projection.out_features())
}
