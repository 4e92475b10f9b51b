//! A decoder block: forward and backward, side by side.
//!
//! The frozen weights need no gradient, so the backward is a fixed program: it carries the gradient of the residual
//! stream from the block's output to its input and adds the gradients of the low-rank updates on the way. Norms and
//! activations are recomputed from what was kept, which costs no matrix product.

use eyas_backend::{Adapter, AttentionSpec, Backend, Projection, Rope, Write};

use crate::Result;
use crate::activations::{BlockActivations, Hidden, Scratch};
use crate::decoder::{Decoder, ProjectionKind, Wiring};
use crate::device_batch::DeviceBatch;
use crate::lora::LoraLayout;

/// A norm's frozen weights.
#[derive(Debug)]
pub struct Norm<B: Backend> {
    /// `[1, n]`.
    pub weight: B::Tensor,
    /// `[1, n]`.
    pub bias: Option<B::Tensor>,
}

impl<B: Backend> Norm<B> {
    /// `scratch.normed = norm(x)`, with its statistics in `scratch.stats`.
    fn forward(&self, pass: &BlockPass<'_, B>, x: &B::Tensor, scratch: &mut Scratch<B>) -> Result<()> {
        let (tokens, spec, bias) = (pass.batch.tokens(), pass.decoder.norm, self.bias.as_ref());
        let Scratch { normed, stats, .. } = scratch;
        Ok(pass.backend.norm(tokens, spec, x, &self.weight, bias, normed, stats)?)
    }

    /// Adds the gradient of `x` to `scratch.gradient`, from that of its norm in `scratch.normed_gradient`.
    fn backward(&self, pass: &BlockPass<'_, B>, x: &B::Tensor, scratch: &mut Scratch<B>) -> Result<()> {
        let (tokens, spec) = (pass.batch.tokens(), pass.decoder.norm);
        let Scratch { stats, normed_gradient, gradient, .. } = scratch;
        let weight = &self.weight;
        Ok(pass.backend.norm_backward(
            tokens,
            spec,
            x,
            weight,
            stats,
            normed_gradient,
            gradient,
            Write::Add,
        )?)
    }
}

/// The frozen weights of a block.
#[derive(Debug)]
pub struct Block<B: Backend> {
    /// Before attention.
    pub norm1: Norm<B>,
    /// Before the MLP, where it has a norm of its own.
    pub norm2: Option<Norm<B>>,
    /// Weights of the norms of query and key heads.
    pub head_norms: Option<[B::Tensor; 2]>,
    /// To query, key and value.
    pub qkv: Projection<B>,
    /// From attention to the residual stream.
    pub attention_out: Projection<B>,
    /// Into the MLP.
    pub mlp_in: Projection<B>,
    /// From the MLP to the residual stream.
    pub mlp_out: Projection<B>,
    /// The block's attention.
    pub attention: AttentionSpec<B>,
}

/// The low-rank updates in force, for a whole model.
#[derive(Debug)]
pub struct ActiveAdapter<'a, B: Backend> {
    /// Where each update lies.
    pub layout: &'a LoraLayout,
    /// The flat vector.
    pub params: &'a B::Tensor,
    /// While training.
    pub dropout: Option<eyas_backend::Dropout>,
}

impl<B: Backend> Clone for ActiveAdapter<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for ActiveAdapter<'_, B> {}

impl<'a, B: Backend> ActiveAdapter<'a, B> {
    fn of(&self, block: usize, kind: ProjectionKind) -> Option<Adapter<'a, B>> {
        (self.layout.rank(block, kind) > 0).then(|| Adapter {
            params: self.params,
            slots: self.layout.slots(block, kind),
            dropout: self.dropout,
        })
    }
}

/// Where a block's queries find their keys and values.
#[derive(Debug)]
pub enum KeyValues<'a, B: Backend> {
    /// In the batch itself: training and evaluation.
    Batch,
    /// In a cache that the batch extends: generation.
    Cache {
        /// `[slots * positions, kv_heads * head_dim]`.
        keys: &'a mut B::Tensor,
        /// As `keys`.
        values: &'a mut B::Tensor,
        /// Positions a slot has.
        positions: usize,
    },
}

/// What a pass through a block needs besides its weights and tensors.
#[derive(Debug)]
pub struct BlockPass<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// The model's description.
    pub decoder: &'a Decoder,
    /// Rotary tables, unless positions enter otherwise.
    pub rope: Option<&'a Rope<B>>,
    /// The batch.
    pub batch: &'a DeviceBatch<B>,
    /// The updates in force.
    pub adapter: Option<ActiveAdapter<'a, B>>,
    /// The block's number.
    pub index: usize,
}

impl<B: Backend> BlockPass<'_, B> {
    fn adapter(&self, kind: ProjectionKind) -> Option<Adapter<'_, B>> {
        self.adapter.and_then(|adapter| adapter.of(self.index, kind))
    }
}

impl<B: Backend> Block<B> {
    /// From the block's input `x` to its output `y`, both `[tokens, hidden]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(
        &self,
        pass: &BlockPass<'_, B>,
        x: &B::Tensor,
        y: &mut B::Tensor,
        kept: &mut BlockActivations<B>,
        hidden: &mut Hidden<B>,
        scratch: &mut Scratch<B>,
        key_values: KeyValues<'_, B>,
    ) -> Result<()> {
        self.forward_to_mlp(pass, x, Some(y), kept, hidden, scratch, key_values)?;
        self.mlp_to_stream(pass, kept, y, hidden, scratch)
    }

    /// As [`Block::forward`] where no backward follows: `x` becomes the output, and nothing is copied.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward_in_place(
        &self,
        pass: &BlockPass<'_, B>,
        x: &mut B::Tensor,
        kept: &mut BlockActivations<B>,
        hidden: &mut Hidden<B>,
        scratch: &mut Scratch<B>,
        key_values: KeyValues<'_, B>,
    ) -> Result<()> {
        self.attend(pass, x, kept, hidden, scratch, key_values)?;
        // Where both branches start from the input, its norm comes before the first adds to it.
        let sequential = pass.decoder.wiring == Wiring::Sequential;
        if !sequential {
            self.norm2(pass, x, scratch)?;
        }
        self.project(pass, ProjectionKind::AttentionOut, &kept.attention, x, hidden, Write::Add)?;
        if sequential {
            self.norm2(pass, x, scratch)?;
        }
        self.project(pass, ProjectionKind::MlpIn, &scratch.normed, &mut kept.mlp, hidden, Write::Set)?;
        self.mlp_to_stream(pass, kept, x, hidden, scratch)
    }

    /// Recomputes what [`Block::forward`] kept, from the block's input. The MLP's second half is left out: nothing
    /// that the backward needs comes after it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn recompute(
        &self,
        pass: &BlockPass<'_, B>,
        x: &B::Tensor,
        kept: &mut BlockActivations<B>,
        hidden: &mut Hidden<B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.forward_to_mlp(pass, x, None, kept, hidden, scratch, KeyValues::Batch)
    }

    /// The block up to the MLP's first half. `y` receives the residual stream without the MLP; a sequential block
    /// keeps it anyway, a parallel one needs it only in the forward.
    fn forward_to_mlp(
        &self,
        pass: &BlockPass<'_, B>,
        x: &B::Tensor,
        y: Option<&mut B::Tensor>,
        kept: &mut BlockActivations<B>,
        hidden: &mut Hidden<B>,
        scratch: &mut Scratch<B>,
        key_values: KeyValues<'_, B>,
    ) -> Result<()> {
        self.attend(pass, x, kept, hidden, scratch, key_values)?;
        let (backend, tokens) = (pass.backend, pass.batch.tokens());
        let (kind, attention) = (ProjectionKind::AttentionOut, &kept.attention);
        match (&mut kept.middle, pass.decoder.wiring) {
            (Some(middle), Wiring::Sequential) => {
                backend.copy(tokens, x, middle)?;
                self.project(pass, kind, attention, middle, hidden, Write::Add)?;
                if let Some(y) = y {
                    backend.copy(tokens, middle, y)?;
                }
                self.norm2(pass, middle, scratch)?;
            }
            _ => {
                if let Some(y) = y {
                    backend.copy(tokens, x, y)?;
                    self.project(pass, kind, attention, y, hidden, Write::Add)?;
                }
                self.norm2(pass, x, scratch)?;
            }
        }
        self.project(pass, ProjectionKind::MlpIn, &scratch.normed, &mut kept.mlp, hidden, Write::Set)
    }

    /// The MLP's second half, added to the residual stream.
    fn mlp_to_stream(
        &self,
        pass: &BlockPass<'_, B>,
        kept: &BlockActivations<B>,
        stream: &mut B::Tensor,
        hidden: &mut Hidden<B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let activation = pass.decoder.mlp.activation;
        pass.backend.activation(pass.batch.tokens(), activation, &kept.mlp, &mut scratch.activated)?;
        self.project(pass, ProjectionKind::MlpOut, &scratch.activated, stream, hidden, Write::Add)
    }

    /// From the gradient of the block's output to that of its input, in place in `scratch.gradient`; adds the
    /// updates' gradients to `grads`; `kept` is used up. With `input_gradient` false the block is the first and nobody needs the rest.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward(
        &self,
        pass: &BlockPass<'_, B>,
        x: &B::Tensor,
        kept: &mut BlockActivations<B>,
        hidden: &Hidden<B>,
        scratch: &mut Scratch<B>,
        grads: &mut B::Tensor,
        input_gradient: bool,
    ) -> Result<()> {
        let mlp = &mut kept.mlp;
        match (&kept.middle, pass.decoder.wiring) {
            (Some(middle), Wiring::Sequential) => {
                self.mlp_backward(pass, middle, mlp, hidden, scratch, grads, true)?;
                self.norm2_backward(pass, middle, scratch)?;
                self.attention_out_backward(pass, &kept.attention, hidden, scratch, grads)?;
                self.attention_backward(pass, x, kept, hidden, scratch, grads, input_gradient, Write::Set)?;
            }
            (_, Wiring::ParallelTwoNorms) => {
                // Both branches start from the output's gradient, so it is read twice before it is added to.
                self.attention_out_backward(pass, &kept.attention, hidden, scratch, grads)?;
                self.mlp_backward(pass, x, mlp, hidden, scratch, grads, input_gradient)?;
                if input_gradient {
                    self.norm2_backward(pass, x, scratch)?;
                }
                self.attention_backward(pass, x, kept, hidden, scratch, grads, input_gradient, Write::Set)?;
            }
            _ => {
                self.attention_out_backward(pass, &kept.attention, hidden, scratch, grads)?;
                self.mlp_backward(pass, x, mlp, hidden, scratch, grads, input_gradient)?;
                self.attention_backward(pass, x, kept, hidden, scratch, grads, input_gradient, Write::Add)?;
            }
        }
        if input_gradient {
            self.norm1.backward(pass, x, scratch)?;
        }
        Ok(())
    }

    /// The frozen weights of a projection.
    fn projection(&self, kind: ProjectionKind) -> &Projection<B> {
        match kind {
            ProjectionKind::Qkv => &self.qkv,
            ProjectionKind::AttentionOut => &self.attention_out,
            ProjectionKind::MlpIn => &self.mlp_in,
            ProjectionKind::MlpOut => &self.mlp_out,
        }
    }

    /// A projection with its update, whose low-rank activations go to `hidden`.
    fn project(
        &self,
        pass: &BlockPass<'_, B>,
        kind: ProjectionKind,
        from: &B::Tensor,
        to: &mut B::Tensor,
        hidden: &mut Hidden<B>,
        write: Write,
    ) -> Result<()> {
        let (tokens, adapter) = (pass.batch.tokens(), pass.adapter(kind));
        Ok(pass.backend.project(tokens, self.projection(kind), adapter, from, to, hidden.of(kind), write)?)
    }

    /// The gradients of [`Block::project`]: the update's to `grads`, the input's to `dx` where somebody needs it.
    fn project_backward(
        &self,
        pass: &BlockPass<'_, B>,
        kind: ProjectionKind,
        x: &B::Tensor,
        hidden: &Hidden<B>,
        dy: &B::Tensor,
        dx: Option<(&mut B::Tensor, Write)>,
        grads: &mut B::Tensor,
    ) -> Result<()> {
        let (tokens, of) = (pass.batch.tokens(), self.projection(kind));
        let adapter = pass.adapter(kind).map(|adapter| (adapter, grads));
        Ok(pass.backend.project_backward(tokens, of, adapter, x, hidden.get(kind), dy, dx)?)
    }

    /// The MLP's norm of `x`; where it has none of its own, `scratch.normed` already holds the first one's.
    fn norm2(&self, pass: &BlockPass<'_, B>, x: &B::Tensor, scratch: &mut Scratch<B>) -> Result<()> {
        self.norm2.as_ref().map_or(Ok(()), |norm| norm.forward(pass, x, scratch))
    }

    fn norm2_backward(&self, pass: &BlockPass<'_, B>, x: &B::Tensor, scratch: &mut Scratch<B>) -> Result<()> {
        self.norm2.as_ref().map_or(Ok(()), |norm| norm.backward(pass, x, scratch))
    }

    /// From the block's input to `kept.attention`: the first norm, query, key and value, and attention.
    fn attend(
        &self,
        pass: &BlockPass<'_, B>,
        x: &B::Tensor,
        kept: &mut BlockActivations<B>,
        hidden: &mut Hidden<B>,
        scratch: &mut Scratch<B>,
        key_values: KeyValues<'_, B>,
    ) -> Result<()> {
        let (backend, batch, layout) = (pass.backend, pass.batch.on_device(), &self.attention.layout);
        self.norm1.forward(pass, x, scratch)?;
        let head_norms = self.head_norms.as_ref().zip(pass.decoder.attention.head_norm_eps);
        match (head_norms, &mut kept.raw_qkv) {
            (Some(([query, key], eps)), Some(raw)) => {
                self.project(pass, ProjectionKind::Qkv, &scratch.normed, raw, hidden, Write::Set)?;
                backend.head_norm(pass.batch.tokens(), layout, eps, raw, query, key, &mut kept.qkv)?;
            }
            _ => {
                let qkv = &mut kept.qkv;
                self.project(pass, ProjectionKind::Qkv, &scratch.normed, qkv, hidden, Write::Set)?;
            }
        }
        match key_values {
            KeyValues::Batch => {
                if let Some(rope) = pass.rope {
                    backend.rope(batch, layout, rope, &mut kept.qkv, false)?;
                }
                backend.attention(batch, &self.attention, &kept.qkv, &mut kept.attention, &mut kept.lse)?;
            }
            KeyValues::Cache { keys, values, positions } => {
                backend.cache_write(batch, layout, pass.rope, positions, &mut kept.qkv, keys, values)?;
                backend.attention_cached(
                    batch,
                    &self.attention,
                    positions,
                    &kept.qkv,
                    keys,
                    values,
                    &mut kept.attention,
                )?;
            }
        }
        Ok(())
    }

    /// From `scratch.gradient` through the MLP to `scratch.normed_gradient`; `x` is the input of the MLP's norm,
    /// and `mlp` becomes its own gradient.
    fn mlp_backward(
        &self,
        pass: &BlockPass<'_, B>,
        x: &B::Tensor,
        mlp: &mut B::Tensor,
        hidden: &Hidden<B>,
        scratch: &mut Scratch<B>,
        grads: &mut B::Tensor,
        input_gradient: bool,
    ) -> Result<()> {
        let (backend, tokens) = (pass.backend, pass.batch.tokens());
        let activation = pass.decoder.mlp.activation;
        backend.activation(tokens, activation, mlp, &mut scratch.activated)?;
        self.project_backward(
            pass,
            ProjectionKind::MlpOut,
            &scratch.activated,
            hidden,
            &scratch.gradient,
            Some((&mut scratch.activated_gradient, Write::Set)),
            grads,
        )?;
        backend.activation_backward(tokens, activation, &scratch.activated_gradient, mlp)?;
        self.norm2.as_ref().unwrap_or(&self.norm1).forward(pass, x, scratch)?;
        let dx = input_gradient.then_some((&mut scratch.normed_gradient, Write::Set));
        self.project_backward(pass, ProjectionKind::MlpIn, &scratch.normed, hidden, mlp, dx, grads)
    }

    /// From `scratch.gradient` through attention's output projection to `scratch.attention_gradient`.
    fn attention_out_backward(
        &self,
        pass: &BlockPass<'_, B>,
        attention: &B::Tensor,
        hidden: &Hidden<B>,
        scratch: &mut Scratch<B>,
        grads: &mut B::Tensor,
    ) -> Result<()> {
        let (dy, dx) = (&scratch.gradient, Some((&mut scratch.attention_gradient, Write::Set)));
        self.project_backward(pass, ProjectionKind::AttentionOut, attention, hidden, dy, dx, grads)
    }

    /// From `scratch.attention_gradient` through attention to `scratch.normed_gradient`; leaves the first norm's
    /// statistics of `x` in `scratch.stats`.
    fn attention_backward(
        &self,
        pass: &BlockPass<'_, B>,
        x: &B::Tensor,
        kept: &BlockActivations<B>,
        hidden: &Hidden<B>,
        scratch: &mut Scratch<B>,
        grads: &mut B::Tensor,
        input_gradient: bool,
        write: Write,
    ) -> Result<()> {
        let (backend, tokens, batch) = (pass.backend, pass.batch.tokens(), pass.batch.on_device());
        let layout = &self.attention.layout;
        backend.attention_backward(
            batch,
            &self.attention,
            &kept.qkv,
            &kept.attention,
            &kept.lse,
            &scratch.attention_gradient,
            &mut scratch.qkv_gradient,
        )?;
        if let Some(rope) = pass.rope {
            backend.rope(batch, layout, rope, &mut scratch.qkv_gradient, true)?;
        }
        if let (Some([query, key]), Some(eps), Some(raw)) =
            (&self.head_norms, pass.decoder.attention.head_norm_eps, &kept.raw_qkv)
        {
            backend.head_norm_backward(tokens, layout, eps, raw, query, key, &mut scratch.qkv_gradient)?;
        }
        self.norm1.forward(pass, x, scratch)?;
        let (dy, dx) =
            (&scratch.qkv_gradient, input_gradient.then_some((&mut scratch.normed_gradient, write)));
        self.project_backward(pass, ProjectionKind::Qkv, &scratch.normed, hidden, dy, dx, grads)
    }
}
