//! The frozen model: embedding, blocks, head; forward, loss and backward of a flat batch.

use eyas_backend::{Backend, Projection, Rope, Write};

use crate::Result;
use crate::activations::Workspace;
use crate::block::{ActiveAdapter, Block, BlockPass, KeyValues, Norm};
use crate::cache::Cache;
use crate::decoder::Decoder;
use crate::device_batch::DeviceBatch;
use crate::footprint::Footprint;

/// A decoder's frozen weights on a device.
#[derive(Debug)]
pub struct Model<B: Backend> {
    pub(crate) decoder: Decoder,
    /// `None` when the head's weight serves.
    pub(crate) embedding: Option<B::Weight>,
    pub(crate) blocks: Vec<Block<B>>,
    pub(crate) final_norm: Norm<B>,
    pub(crate) head: Projection<B>,
    pub(crate) rope: Option<Rope<B>>,
    pub(crate) positions: usize,
    pub(crate) footprint: Footprint,
}

impl<B: Backend> Model<B> {
    /// The model's description.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The longest sequence that the position tables reach.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// What the weights take on the device.
    pub fn footprint(&self) -> &Footprint {
        &self.footprint
    }

    /// The blocks, first to last.
    pub fn blocks(&self) -> &[Block<B>] {
        &self.blocks
    }

    /// The embedding, which is the head's weight when they are tied.
    pub fn embedding(&self) -> &B::Weight {
        self.embedding.as_ref().unwrap_or(&self.head.parts[0].weight)
    }

    /// Runs the blocks over a batch and leaves in `workspace` what the loss and the backward need.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(
        &self,
        backend: &B,
        batch: &DeviceBatch<B>,
        adapter: Option<ActiveAdapter<'_, B>>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        self.run(backend, batch, adapter, workspace, None, true)
    }

    /// As [`Model::forward`], but no backward follows: nothing is kept for one and no input goes to host memory,
    /// whatever the workspace was planned for.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward_only(
        &self,
        backend: &B,
        batch: &DeviceBatch<B>,
        adapter: Option<ActiveAdapter<'_, B>>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        self.run(backend, batch, adapter, workspace, None, false)
    }

    /// As [`Model::forward_only`], but the batch continues the sequences of a key/value cache.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward_cached(
        &self,
        backend: &B,
        batch: &DeviceBatch<B>,
        adapter: Option<ActiveAdapter<'_, B>>,
        workspace: &mut Workspace<B>,
        cache: &mut Cache<B>,
    ) -> Result<()> {
        self.run(backend, batch, adapter, workspace, Some(cache), false)
    }

    fn run(
        &self,
        backend: &B,
        batch: &DeviceBatch<B>,
        adapter: Option<ActiveAdapter<'_, B>>,
        workspace: &mut Workspace<B>,
        mut cache: Option<&mut Cache<B>>,
        keeps: bool,
    ) -> Result<()> {
        let Workspace { plan, stream, kept, shared, hidden, scratch, .. } = workspace;
        let keeps = keeps && plan.trains();
        backend.embed(batch.on_device(), self.embedding(), stream.begin(backend, keeps)?)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let pass = self.pass(backend, batch, adapter, index);
            let own = if keeps { index } else { 0 };
            let Some(kept) = kept[own].as_mut().or(shared.as_mut()) else {
                unreachable!("a workspace has shared activations for every block that keeps none")
            };
            let key_values = match cache.as_deref_mut() {
                Some(cache) => cache.block(index),
                None => KeyValues::Batch,
            };
            if keeps {
                let (x, y) = stream.step(backend, batch.tokens(), index)?;
                block.forward(&pass, x, y, kept, &mut hidden[index], scratch, key_values)?;
            } else {
                let x = stream.in_place();
                block.forward_in_place(&pass, x, kept, &mut hidden[index], scratch, key_values)?;
            }
        }
        Ok(())
    }

    /// The summed cross-entropy of the batch's targets after [`Model::forward`], added to `loss` `[1, 1]`.
    ///
    /// With `gradient` the gradient of `gradient * loss` with respect to the last block's output is left for
    /// [`Model::backward`]: pass one over the number of targets of the whole accumulated batch.
    ///
    /// # Errors
    /// When the device fails.
    pub fn loss(
        &self,
        backend: &B,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
        loss: &mut B::Tensor,
        gradient: Option<f32>,
    ) -> Result<()> {
        let rows = chunk_rows(batch.targets(), workspace.plan.logit_rows);
        let x = workspace.stream.output();
        let head = &mut workspace.head;
        if gradient.is_some() {
            backend.clear(&mut workspace.scratch.gradient)?;
        }
        for start in (0..batch.targets()).step_by(rows) {
            let targets = start..(start + rows).min(batch.targets());
            let count = targets.len();
            backend.gather_targets(batch.on_device(), targets.clone(), x, &mut head.x)?;
            self.normed_logits(backend, count, head)?;
            backend.cross_entropy(batch.on_device(), targets.clone(), &mut head.logits, loss, gradient)?;
            if gradient.is_none() {
                continue;
            }
            backend.project_backward(
                count,
                &self.head,
                None,
                &head.normed,
                None,
                &head.logits,
                Some((&mut head.normed_gradient, Write::Set)),
            )?;
            backend.norm_backward(
                count,
                self.decoder.norm,
                &head.x,
                &self.final_norm.weight,
                &head.stats,
                &head.normed_gradient,
                &mut head.gradient,
                Write::Set,
            )?;
            backend.scatter_targets(
                batch.on_device(),
                targets,
                &head.gradient,
                &mut workspace.scratch.gradient,
            )?;
        }
        Ok(())
    }

    fn normed_logits(
        &self,
        backend: &B,
        rows: usize,
        head: &mut crate::activations::HeadScratch<B>,
    ) -> Result<()> {
        backend.norm(
            rows,
            self.decoder.norm,
            &head.x,
            &self.final_norm.weight,
            self.final_norm.bias.as_ref(),
            &mut head.normed,
            &mut head.stats,
        )?;
        backend.project(rows, &self.head, None, &head.normed, &mut head.logits, None, Write::Set)?;
        Ok(())
    }

    /// The logits that follow each sequence's last token, after [`Model::forward`] or [`Model::forward_cached`]:
    /// `[sequences, vocab]`.
    ///
    /// # Errors
    /// When the workspace has fewer rows of logits than the batch has sequences, or the device fails.
    pub fn last_logits(
        &self,
        backend: &B,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        self.queue_last_logits(backend, batch, workspace)?;
        self.read_last_logits(backend, batch, workspace, logits)
    }

    /// Queues the computation of [`Model::last_logits`].
    pub(crate) fn queue_last_logits(
        &self,
        backend: &B,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        let x = workspace.stream.output();
        let head = &mut workspace.head;
        backend.gather_last(batch.on_device(), x, &mut head.x)?;
        self.normed_logits(backend, batch.sequences(), head)
    }

    /// Reads the logits after [`Model::decode`], `[sequences, vocab]`. Waits for them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_last_logits(
        &self,
        backend: &B,
        batch: &DeviceBatch<B>,
        workspace: &Workspace<B>,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        logits.resize(batch.sequences() * self.decoder.vocab_size, 0.0);
        backend.download(&workspace.head.logits, logits)?;
        Ok(())
    }

    /// The logits of the tokens that have a target, in their order, after [`Model::forward`]: `visit` is called
    /// with the first row's number and the rows, `[n, vocab]`, chunk by chunk.
    ///
    /// # Errors
    /// When the device fails.
    pub fn target_logits(
        &self,
        backend: &B,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
        mut visit: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let rows = chunk_rows(batch.targets(), workspace.plan.logit_rows);
        let x = workspace.stream.output();
        let head = &mut workspace.head;
        let mut logits = Vec::new();
        for start in (0..batch.targets()).step_by(rows) {
            let targets = start..(start + rows).min(batch.targets());
            let count = targets.len();
            backend.gather_targets(batch.on_device(), targets, x, &mut head.x)?;
            self.normed_logits(backend, count, head)?;
            logits.resize(count * self.decoder.vocab_size, 0.0);
            backend.download(&head.logits, &mut logits)?;
            visit(start, &logits);
        }
        Ok(())
    }

    /// Adds the gradients of the adapter to `grads` `[1, parameters]`, after [`Model::loss`] with a gradient.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward(
        &self,
        backend: &B,
        batch: &DeviceBatch<B>,
        adapter: ActiveAdapter<'_, B>,
        workspace: &mut Workspace<B>,
        grads: &mut B::Tensor,
    ) -> Result<()> {
        let Workspace { stream, kept, shared, hidden, scratch, .. } = workspace;
        stream.turn_back(backend, batch.tokens())?;
        for (index, block) in self.blocks.iter().enumerate().rev() {
            let pass = self.pass(backend, batch, Some(adapter), index);
            let x = stream.input(backend, batch.tokens(), index)?;
            let kept = match (kept[index].as_mut(), shared.as_mut()) {
                (Some(kept), _) => kept,
                (None, Some(shared)) => {
                    block.recompute(&pass, x, shared, &mut hidden[index], scratch)?;
                    shared
                }
                (None, None) => {
                    unreachable!("a workspace has shared activations for every block that keeps none")
                }
            };
            block.backward(&pass, x, kept, &hidden[index], scratch, grads, index > 0)?;
        }
        Ok(())
    }

    fn pass<'a>(
        &'a self,
        backend: &'a B,
        batch: &'a DeviceBatch<B>,
        adapter: Option<ActiveAdapter<'a, B>>,
        index: usize,
    ) -> BlockPass<'a, B> {
        BlockPass { backend, decoder: &self.decoder, rope: self.rope.as_ref(), batch, adapter, index }
    }
}

/// Rows of each chunk of logits: as few chunks as `most` allows, all but the last alike, so that their products are.
fn chunk_rows(targets: usize, most: usize) -> usize {
    const STEP: usize = 64;
    let chunks = targets.div_ceil(most.max(1)).max(1);
    targets.div_ceil(chunks).next_multiple_of(STEP).min(most).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_alike_and_within_the_plan() {
        for (targets, most, rows) in
            [(15_027, 2048, 1920), (2048, 2048, 2048), (5, 256, 64), (100, 16, 16), (0, 16, 1)]
        {
            assert_eq!(chunk_rows(targets, most), rows, "{targets} in {most}");
            assert!(rows * targets.div_ceil(most) >= targets);
        }
    }
}
