//! The memory of a step: what each block keeps for its backward, and the scratch that all blocks share.
//!
//! All of it is allocated once, before the first step, from a [`MemoryPlan`].

use eyas_backend::{Backend, Dtype, ProjectionShape, StepShape};

use crate::Result;
use crate::decoder::{Decoder, ProjectionKind, Wiring};
use crate::footprint::Footprint;
use crate::lora::LoraLayout;
use crate::stream::Stream;

/// What a block's activations cost: kept from forward to backward, or recomputed from the block's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retain {
    /// Keep what the backward reads; only norms and activations are computed again.
    Keep,
    /// Keep the block's input and run the block again before its backward.
    Recompute,
    /// The same, with the block's input in host memory meanwhile.
    RecomputeFromHost,
}

/// How the memory of a step is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The most tokens a batch has.
    pub max_tokens: usize,
    /// The most sequences a batch has.
    pub max_sequences: usize,
    /// Rows of logits that exist at a time.
    pub logit_rows: usize,
    /// One entry a block; empty when there is no backward (evaluation and generation).
    pub blocks: Vec<Retain>,
}

impl MemoryPlan {
    /// For batches that are only evaluated.
    pub fn forward_only(max_tokens: usize, max_sequences: usize, logit_rows: usize) -> Self {
        Self { max_tokens, max_sequences, logit_rows, blocks: Vec::new() }
    }

    /// Whether there is a backward.
    pub fn trains(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Blocks whose input goes to host memory.
    pub fn on_host(&self) -> usize {
        self.blocks.iter().filter(|retain| **retain == Retain::RecomputeFromHost).count()
    }
}

/// What the backward of a block reads.
#[derive(Debug)]
pub struct BlockActivations<B: Backend> {
    /// Before the head norms, where there are any: `[T, width]`.
    pub(crate) raw_qkv: Option<B::Tensor>,
    /// Rotated queries and keys, and values: `[T, width]`.
    pub(crate) qkv: B::Tensor,
    /// Attention's output: `[T, heads * head_dim]`.
    pub(crate) attention: B::Tensor,
    /// Log-sum-exp of the scores: `[T, heads]`.
    pub(crate) lse: B::Tensor,
    /// The residual stream between attention and MLP of a sequential block: `[T, hidden]`.
    pub(crate) middle: Option<B::Tensor>,
    /// The MLP before its activation: `[T, intermediate * fan_in]`.
    pub(crate) mlp: B::Tensor,
}

/// The low-rank activations of a block's projections, `[T, rank]` each. They are small, and always kept.
#[derive(Debug)]
pub struct Hidden<B: Backend>([Option<B::Tensor>; 4]);

/// What all blocks share.
#[derive(Debug)]
pub struct Scratch<B: Backend> {
    pub(crate) stats: B::Tensor,
    pub(crate) normed: B::Tensor,
    pub(crate) activated: B::Tensor,
    pub(crate) gradient: B::Tensor,
    pub(crate) normed_gradient: B::Tensor,
    pub(crate) attention_gradient: B::Tensor,
    pub(crate) qkv_gradient: B::Tensor,
    pub(crate) activated_gradient: B::Tensor,
}

/// What the head and the loss need, for the rows of one chunk of logits.
#[derive(Debug)]
pub struct HeadScratch<B: Backend> {
    pub(crate) x: B::Tensor,
    pub(crate) stats: B::Tensor,
    pub(crate) normed: B::Tensor,
    pub(crate) logits: B::Tensor,
    pub(crate) normed_gradient: B::Tensor,
    pub(crate) gradient: B::Tensor,
}

/// All the memory of a step.
#[derive(Debug)]
pub struct Workspace<B: Backend> {
    pub(crate) plan: MemoryPlan,
    pub(crate) stream: Stream<B>,
    pub(crate) kept: Vec<Option<BlockActivations<B>>>,
    /// For the blocks that keep nothing.
    pub(crate) shared: Option<BlockActivations<B>>,
    pub(crate) hidden: Vec<Hidden<B>>,
    pub(crate) scratch: Scratch<B>,
    pub(crate) head: HeadScratch<B>,
}

impl<B: Backend> BlockActivations<B> {
    fn new(backend: &B, decoder: &Decoder, tokens: usize) -> Result<Self> {
        let dtype = backend.compute_dtype();
        let layout = &decoder.attention.layout;
        let optional = |wanted: bool, cols: usize| -> Result<Option<B::Tensor>> {
            Ok(wanted.then(|| backend.zeros(dtype, tokens, cols)).transpose()?)
        };
        Ok(Self {
            raw_qkv: optional(decoder.attention.head_norm_eps.is_some(), layout.width())?,
            qkv: backend.zeros(dtype, tokens, layout.width())?,
            attention: backend.zeros(dtype, tokens, decoder.attention_width())?,
            lse: backend.zeros(Dtype::F32, tokens, layout.heads)?,
            middle: optional(decoder.wiring == Wiring::Sequential, decoder.hidden_size)?,
            mlp: backend.zeros(dtype, tokens, decoder.mlp_in_width())?,
        })
    }

    /// Bytes a token takes, with activations of `dtype`.
    pub fn bytes_per_token(decoder: &Decoder, dtype: Dtype) -> usize {
        let layout = &decoder.attention.layout;
        let raw = if decoder.attention.head_norm_eps.is_some() { layout.width() } else { 0 };
        let middle = if decoder.wiring == Wiring::Sequential { decoder.hidden_size } else { 0 };
        let columns = raw + layout.width() + decoder.attention_width() + middle + decoder.mlp_in_width();
        columns * dtype.size() + layout.heads * 4
    }
}

impl<B: Backend> Hidden<B> {
    fn new(backend: &B, layout: Option<&LoraLayout>, block: usize, tokens: usize) -> Result<Self> {
        let mut tensors = [const { None }; 4];
        for kind in ProjectionKind::ALL {
            let rank = layout.map_or(0, |layout| layout.rank(block, kind));
            if rank > 0 {
                tensors[kind as usize] = Some(backend.zeros(backend.compute_dtype(), tokens, rank)?);
            }
        }
        Ok(Self(tensors))
    }

    pub(crate) fn of(&mut self, kind: ProjectionKind) -> Option<&mut B::Tensor> {
        self.0[kind as usize].as_mut()
    }

    pub(crate) fn get(&self, kind: ProjectionKind) -> Option<&B::Tensor> {
        self.0[kind as usize].as_ref()
    }
}

impl<B: Backend> Scratch<B> {
    fn new(backend: &B, decoder: &Decoder, tokens: usize, trains: bool) -> Result<Self> {
        let dtype = backend.compute_dtype();
        let forward = |cols: usize| backend.zeros(dtype, tokens, cols);
        let backward = |cols: usize| backend.zeros(dtype, if trains { tokens } else { 0 }, cols);
        Ok(Self {
            stats: backend.zeros(Dtype::F32, tokens, 2)?,
            normed: forward(decoder.hidden_size)?,
            activated: forward(decoder.mlp.intermediate_size)?,
            gradient: backward(decoder.hidden_size)?,
            normed_gradient: backward(decoder.hidden_size)?,
            attention_gradient: backward(decoder.attention_width())?,
            qkv_gradient: backward(decoder.attention.layout.width())?,
            activated_gradient: backward(decoder.mlp.intermediate_size)?,
        })
    }
}

impl<B: Backend> HeadScratch<B> {
    fn new(backend: &B, decoder: &Decoder, rows: usize, trains: bool) -> Result<Self> {
        let dtype = backend.compute_dtype();
        let backward_rows = if trains { rows } else { 0 };
        Ok(Self {
            x: backend.zeros(dtype, rows, decoder.hidden_size)?,
            stats: backend.zeros(Dtype::F32, rows, 2)?,
            normed: backend.zeros(dtype, rows, decoder.hidden_size)?,
            logits: backend.zeros(dtype, rows, decoder.vocab_size)?,
            normed_gradient: backend.zeros(dtype, backward_rows, decoder.hidden_size)?,
            gradient: backend.zeros(dtype, backward_rows, decoder.hidden_size)?,
        })
    }
}

impl<B: Backend> Workspace<B> {
    /// Allocates the memory of a step.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(
        backend: &B,
        decoder: &Decoder,
        layout: Option<&LoraLayout>,
        plan: MemoryPlan,
    ) -> Result<Self> {
        let tokens = plan.max_tokens;
        let trains = plan.trains();
        let blocks = decoder.blocks();
        let stream = Stream::new(backend, &plan, blocks, decoder.hidden_size)?;
        let kept = (0..blocks)
            .map(|block| match plan.blocks.get(block) {
                Some(Retain::Keep) => BlockActivations::new(backend, decoder, tokens).map(Some),
                _ => Ok(None),
            })
            .collect::<Result<Vec<_>>>()?;
        let shared = if kept.iter().any(Option::is_none) {
            Some(BlockActivations::new(backend, decoder, tokens)?)
        } else {
            None
        };
        let hidden = (0..blocks)
            .map(|block| Hidden::new(backend, layout.filter(|_| trains), block, tokens))
            .collect::<Result<_>>()?;
        Ok(Self {
            stream,
            kept,
            shared,
            hidden,
            scratch: Scratch::new(backend, decoder, tokens, trains)?,
            head: HeadScratch::new(backend, decoder, plan.logit_rows, trains)?,
            plan,
        })
    }

    /// Bytes of host memory, apart from the device's, that [`Workspace::new`] takes.
    pub fn host_bytes(decoder: &Decoder, plan: &MemoryPlan, dtype: Dtype) -> u64 {
        let input = (plan.max_tokens * decoder.hidden_size * dtype.size()) as u64;
        if B::OFFLOADS { plan.on_host() as u64 * input } else { 0 }
    }

    /// Bytes of the device's memory that [`Workspace::new`] takes.
    pub fn bytes(decoder: &Decoder, layout: Option<&LoraLayout>, plan: &MemoryPlan, dtype: Dtype) -> u64 {
        let trains = plan.trains();
        let hidden = decoder.hidden_size;
        let kept = plan.blocks.iter().filter(|retain| **retain == Retain::Keep).count();
        let sets = kept + usize::from(kept < decoder.blocks());
        let apart = if B::OFFLOADS { 0 } else { plan.on_host() };
        let streams = Stream::<B>::tensors(plan, decoder.blocks()) + apart;
        let forward = hidden + decoder.mlp.intermediate_size;
        let backward = if trains {
            2 * hidden
                + decoder.attention_width()
                + decoder.attention.layout.width()
                + decoder.mlp.intermediate_size
        } else {
            0
        };
        let ranks: usize = match layout.filter(|_| trains) {
            Some(layout) => layout.targets().iter().map(|target| target.slot.r).sum(),
            None => 0,
        };
        let per_token = sets * BlockActivations::<B>::bytes_per_token(decoder, dtype)
            + (streams * hidden + forward + backward + ranks) * dtype.size()
            + 8;
        let head_columns = 2 * hidden + decoder.vocab_size + if trains { 2 * hidden } else { 0 };
        let per_logit_row = head_columns * dtype.size() + 8;
        (per_token * plan.max_tokens) as u64 + (per_logit_row * plan.logit_rows) as u64
    }

    /// What steps of this plan ask of a backend's own working memory.
    pub fn step_shape(
        decoder: &Decoder,
        layout: Option<&LoraLayout>,
        plan: &MemoryPlan,
        dtype: Dtype,
        weights: &Footprint,
    ) -> StepShape {
        let attention = &decoder.attention.layout;
        let mut projections: Vec<_> = ProjectionKind::ALL
            .into_iter()
            .map(|kind| {
                let (in_features, out_features) = decoder.projection_shape(kind);
                let rank = (0..decoder.blocks())
                    .map(|block| layout.map_or(0, |layout| layout.rank(block, kind)))
                    .max()
                    .unwrap_or(0);
                let storage = weights.linear_storage;
                ProjectionShape { in_features, out_features, rank, rows: plan.max_tokens, storage }
            })
            .collect();
        projections.push(ProjectionShape {
            in_features: decoder.hidden_size,
            out_features: decoder.vocab_size,
            rank: 0,
            rows: plan.logit_rows,
            storage: weights.table_storage,
        });
        StepShape {
            dtype,
            tokens: plan.max_tokens,
            trains: plan.trains(),
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            projections,
        }
    }

    /// The plan that it was made from.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }
}
