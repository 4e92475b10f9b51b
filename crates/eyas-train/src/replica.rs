//! A copy of the model on a device, what a run keeps in memory there, and its part of a step or an evaluation.

use eyas_backend::{Backend, Dropout, Dtype, FlatBatch};
use eyas_model::{ActiveAdapter, DeviceBatch, LoraLayout, MemoryPlan, Model, Workspace};
use rayon::prelude::*;

use crate::Result;
use crate::together::Signals;

/// Values that are added at a time: what stays in a processor's cache.
const SUM_BLOCK: usize = 1 << 14;

/// A copy of the base on a device. All replicas of a run hold the same weights.
#[derive(Debug)]
pub struct Replica<'a, B: Backend> {
    /// What tells it from the others in messages, such as `cuda:1`.
    pub label: String,
    /// The device.
    pub backend: &'a B,
    /// The base, on the device.
    pub model: &'a Model<B>,
}

impl<'a, B: Backend> Replica<'a, B> {
    /// The only one of a run, named after its device.
    pub fn alone(backend: &'a B, model: &'a Model<B>) -> Self {
        Self { label: backend.name(), backend, model }
    }
}

impl<B: Backend> Clone for Replica<'_, B> {
    fn clone(&self) -> Self {
        Self { label: self.label.clone(), ..*self }
    }
}

/// What a step is the same in for all replicas.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Common<'s> {
    pub layout: &'s LoraLayout,
    /// The micro-batches of the step or the batches of the evaluation, all replicas' together.
    pub batches: &'s [FlatBatch],
    /// The adapter on its way from the first replica to the others, and which one it is.
    pub adapter: (&'s [f32], u64),
    /// How many replicas share the batches: each takes the batch of its own number, and
    /// from there one of every so many.
    pub replicas: usize,
}

/// Of the backward: what the loss is multiplied by, and the dropout of the first micro-batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gradient {
    pub scale: f32,
    pub dropout: Dropout,
}

/// The memory of a run on one device, besides the optimiser's.
#[derive(Debug)]
pub(crate) struct Worker<'a, B: Backend> {
    pub replica: Replica<'a, B>,
    /// The adapter, `[1, parameters]`, `f32`.
    pub params: B::Tensor,
    /// Its gradient, summed over the replica's micro-batches of a step.
    pub grads: B::Tensor,
    /// The gradient in host memory, where there are other replicas to add it to.
    sum: Option<B::HostBuffer>,
    workspace: Workspace<B>,
    batch: DeviceBatch<B>,
    loss: B::Tensor,
    /// Which adapter `params` is.
    version: u64,
}

impl<'a, B: Backend> Worker<'a, B> {
    /// Allocates all that steps of this plan need.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(
        replica: &Replica<'a, B>,
        layout: &LoraLayout,
        params: &[f32],
        plan: MemoryPlan,
        is_alone: bool,
    ) -> Result<Self> {
        let Replica { backend, model, .. } = *replica;
        let (decoder, dtype) = (model.decoder(), backend.compute_dtype());
        backend.reserve(&Workspace::<B>::step_shape(
            decoder,
            Some(layout),
            &plan,
            dtype,
            model.footprint(),
        ))?;
        let vector = || backend.zeros(Dtype::F32, 1, params.len());
        let mut worker = Self {
            replica: replica.clone(),
            batch: DeviceBatch::new(backend, plan.max_tokens, plan.max_sequences)?,
            params: vector()?,
            grads: vector()?,
            sum: (!is_alone).then(|| backend.new_host_buffer(Dtype::F32, 1, params.len())).transpose()?,
            workspace: Workspace::new(backend, decoder, Some(layout), plan)?,
            loss: backend.zeros(Dtype::F32, 1, 1)?,
            version: 0,
        };
        backend.upload(params, &mut worker.params)?;
        Ok(worker)
    }

    /// Takes the adapter over from the first replica, if it has another.
    fn refresh(&mut self, common: Common<'_>) -> Result<()> {
        let (values, version) = common.adapter;
        if self.version != version {
            self.replica.backend.upload(values, &mut self.params)?;
            self.version = version;
        }
        Ok(())
    }

    /// Sums the gradient over the replica's micro-batches and returns the sum of their losses; where there are others,
    /// [`Worker::sum`] has the gradient afterwards. `None` when it was asked to stop on the way.
    ///
    /// # Errors
    /// When the device fails, or a micro-batch is larger than planned.
    pub fn accumulate(
        &mut self,
        number: usize,
        common: Common<'_>,
        gradient: Gradient,
        mut signals: Signals<'_>,
    ) -> Result<Option<f32>> {
        let Replica { backend, model, .. } = self.replica;
        // The leader's adapter is the one that the others take over.
        if number > 0 {
            self.refresh(common)?;
        }
        backend.clear(&mut self.loss)?;
        backend.clear(&mut self.grads)?;
        for (index, micro_batch) in common.batches.iter().enumerate().skip(number).step_by(common.replicas) {
            if signals.stopped() {
                return Ok(None);
            }
            let first = gradient.dropout;
            let mask = Dropout { micro_batch: first.micro_batch.wrapping_add(index as u32), ..first };
            let Self { params, grads, workspace, batch, loss, .. } = self;
            let adapter =
                ActiveAdapter { layout: common.layout, params, dropout: (mask.p > 0.0).then_some(mask) };
            batch.load(backend, micro_batch)?;
            model.forward(backend, batch, Some(adapter), workspace)?;
            model.loss(backend, batch, workspace, loss, Some(gradient.scale))?;
            model.backward(backend, batch, adapter, workspace, grads)?;
            signals.done();
        }
        if let Some(sum) = self.sum.as_mut().filter(|_| common.replicas > 1) {
            backend.offload(1, &self.grads, sum)?;
            backend.await_copy(sum)?;
        }
        self.read_loss().map(Some)
    }

    /// The gradient that [`Worker::accumulate`] left in host memory; none where the replica is alone.
    ///
    /// # Errors
    /// When the device fails.
    pub fn sum(&self) -> Result<&[f32]> {
        Ok(self.sum.as_ref().map_or(Ok(&[][..]), |sum| self.replica.backend.host_values(sum))?)
    }

    /// Adds the gradients of other replicas to this one's, in their order, on the device as well.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add(&mut self, others: &[&[f32]]) -> Result<()> {
        let Self { replica: Replica { backend, .. }, sum: Some(sum), grads, .. } = self else {
            return Ok(());
        };
        backend.host_values_mut(sum)?.par_chunks_mut(SUM_BLOCK).enumerate().for_each(|(block, sum)| {
            for other in others {
                let values = &other[block * SUM_BLOCK..][..sum.len()];
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        });
        backend.fetch(1, sum, grads)?;
        Ok(backend.await_copy(sum)?)
    }

    /// Cross-entropy of each of the replica's batches, summed over its targets, without dropout. `None` when it was asked
    /// to stop on the way.
    ///
    /// # Errors
    /// When the device fails, or a batch is larger than planned.
    pub fn evaluate(
        &mut self,
        number: usize,
        common: Common<'_>,
        mut signals: Signals<'_>,
    ) -> Result<Option<Vec<f32>>> {
        let Replica { backend, model, .. } = self.replica;
        if number > 0 {
            self.refresh(common)?;
        }
        let mut losses = Vec::new();
        for flat in common.batches.iter().skip(number).step_by(common.replicas) {
            if signals.stopped() {
                return Ok(None);
            }
            let Self { params, workspace, batch, loss, .. } = self;
            let adapter = ActiveAdapter { layout: common.layout, params, dropout: None };
            backend.clear(loss)?;
            batch.load(backend, flat)?;
            model.forward_only(backend, batch, Some(adapter), workspace)?;
            model.loss(backend, batch, workspace, loss, None)?;
            losses.push(self.read_loss()?);
            signals.done();
        }
        Ok(Some(losses))
    }

    /// The adapter's values.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_params(&self, values: &mut [f32]) -> Result<()> {
        Ok(self.replica.backend.download(&self.params, values)?)
    }

    /// Copies the adapter's values to host memory.
    ///
    /// # Errors
    /// When the device fails.
    pub fn send_params(&self, to: &mut B::HostBuffer) -> Result<()> {
        let backend = self.replica.backend;
        backend.offload(1, &self.params, to)?;
        Ok(backend.await_copy(to)?)
    }

    fn read_loss(&self) -> Result<f32> {
        let mut loss = [0.0];
        self.replica.backend.download(&self.loss, &mut loss)?;
        Ok(loss[0])
    }
}
