//! One optimiser step and one evaluation: the program that the loop repeats.

use std::sync::atomic::{AtomicBool, Ordering};

use eyas_backend::{Backend, Dropout, Dtype, FlatBatch, MomentStorage};
use eyas_model::{ActiveAdapter, DeviceBatch, LoraLayout, MemoryPlan, Model, Workspace};

use crate::Result;
use crate::loss_scale::LossScale;
use crate::optimizer::{Optimizer, OptimizerState};
use crate::recipe::Training;

/// The memory of a run on its device, and the steps over it.
#[derive(Debug)]
pub struct Engine<'a, B: Backend> {
    backend: &'a B,
    model: &'a Model<B>,
    layout: LoraLayout,
    /// The adapter and its optimiser.
    pub optimizer: Optimizer<B>,
    workspace: Workspace<B>,
    batch: DeviceBatch<B>,
    loss: B::Tensor,
    /// Where activations are in half precision.
    pub loss_scale: Option<LossScale>,
}

/// What a run goes on from, in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The adapter.
    pub params: Vec<f32>,
    /// The optimiser's moments; `None` before the first step, when they are zero.
    pub optimizer: Option<OptimizerState>,
    /// Where activations are in half precision; `None` for the scale to begin with.
    pub loss_scale: Option<LossScale>,
}

/// What a step measured, before its update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Cross-entropy summed over the targets of all micro-batches, over their number.
    pub loss: f32,
    /// Norm of its gradient, before clipping. Not finite where a gradient overflowed.
    pub grad_norm: f32,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub enum Update {
    /// It was taken.
    Taken,
    /// A gradient overflowed half precision: the loss is scaled by less from now on.
    LeftOut {
        /// By how much.
        loss_scale: f32,
    },
    /// A gradient is not finite, and it is not the scale's fault.
    Impossible,
}

impl<'a, B: Backend> Engine<'a, B> {
    /// Allocates all that steps of this plan need.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(
        backend: &'a B,
        model: &'a Model<B>,
        layout: LoraLayout,
        params: &[f32],
        moments: MomentStorage,
        plan: MemoryPlan,
    ) -> Result<Self> {
        let (decoder, dtype) = (model.decoder(), backend.compute_dtype());
        backend.reserve(&Workspace::<B>::step_shape(
            decoder,
            Some(&layout),
            &plan,
            dtype,
            model.footprint(),
        ))?;
        let batch = DeviceBatch::new(backend, plan.max_tokens, plan.max_sequences)?;
        Ok(Self {
            backend,
            model,
            optimizer: Optimizer::new(backend, params, moments)?,
            workspace: Workspace::new(backend, model.decoder(), Some(&layout), plan)?,
            layout,
            batch,
            loss: backend.zeros(Dtype::F32, 1, 1)?,
            loss_scale: (backend.compute_dtype() == Dtype::F16).then(LossScale::default),
        })
    }

    /// As [`Engine::new`], going on from a state.
    ///
    /// # Errors
    /// When the device has no room, or the moments are not of the format or the number that the plan says.
    pub fn resumed(
        backend: &'a B,
        model: &'a Model<B>,
        layout: LoraLayout,
        state: &State,
        moments: MomentStorage,
        plan: MemoryPlan,
    ) -> Result<Self> {
        let mut engine = Self::new(backend, model, layout, &state.params, moments, plan)?;
        if let Some(optimizer) = &state.optimizer {
            engine.optimizer.restore(backend, optimizer)?;
        }
        if engine.loss_scale.is_some() {
            engine.loss_scale = state.loss_scale.or(engine.loss_scale);
        }
        Ok(engine)
    }

    /// Reads back what the run can go on from, bit for bit: the state after the last step that was taken.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<State> {
        Ok(State {
            params: self.optimizer.download_params(self.backend)?,
            optimizer: Some(self.optimizer.state(self.backend)?),
            loss_scale: self.loss_scale,
        })
    }

    /// The adapter's layout.
    pub fn layout(&self) -> &LoraLayout {
        &self.layout
    }

    /// Sums the gradient over the micro-batches and measures it. `first` numbers the first micro-batch in the run,
    /// which decides its dropout; `done` is told after each. `None` when `stop` was set on the way: nothing has
    /// changed then.
    ///
    /// The loss is the mean over all targets of the accumulated batch, not the mean of the micro-batches' means,
    /// which would give a target in a short micro-batch more weight than one in a long.
    ///
    /// # Errors
    /// When the device fails, or a micro-batch is larger than planned.
    pub fn accumulate(
        &mut self,
        micro_batches: &[FlatBatch],
        first: u32,
        training: &Training,
        stop: &AtomicBool,
        mut done: impl FnMut(usize),
    ) -> Result<Option<Measured>> {
        let targets: usize = micro_batches.iter().map(FlatBatch::target_tokens).sum();
        let scale = 1.0 / targets.max(1) as f32;
        let loss_scale = self.loss_factor();
        let dropout = self.layout.config.lora_dropout as f32;
        self.backend.clear(&mut self.loss)?;
        self.backend.clear(&mut self.optimizer.grads)?;
        for (index, micro_batch) in micro_batches.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let mask =
                Dropout { p: dropout, seed: training.seed, micro_batch: first.wrapping_add(index as u32) };
            let Self { backend, model, layout, optimizer, workspace, batch, loss, .. } = self;
            let adapter =
                ActiveAdapter { layout, params: &optimizer.params, dropout: (dropout > 0.0).then_some(mask) };
            batch.load(backend, micro_batch)?;
            model.forward(backend, batch, Some(adapter), workspace)?;
            model.loss(backend, batch, workspace, loss, Some(scale * loss_scale))?;
            model.backward(backend, batch, adapter, workspace, &mut optimizer.grads)?;
            done(index + 1);
        }
        let grad_norm = self.optimizer.grad_norm(self.backend)? / loss_scale;
        Ok(Some(Measured { loss: self.read_loss()? * scale, grad_norm }))
    }

    /// Takes the step that [`Engine::accumulate`] measured. Where its gradient is not finite nothing changes but the
    /// loss's scale, if there is one.
    ///
    /// # Errors
    /// When the device fails.
    pub fn update(&mut self, measured: Measured, training: &Training, learning_rate: f64) -> Result<Update> {
        if !measured.grad_norm.is_finite() {
            let backed_off = self.loss_scale.as_mut().is_some_and(LossScale::back_off);
            let loss_scale = self.loss_factor();
            return Ok(if backed_off { Update::LeftOut { loss_scale } } else { Update::Impossible });
        }
        let factor = self.loss_factor();
        self.optimizer.step(self.backend, training, learning_rate, factor)?;
        if let Some(scale) = &mut self.loss_scale {
            scale.taken();
        }
        Ok(Update::Taken)
    }

    /// What the loss is multiplied by before the backward.
    fn loss_factor(&self) -> f32 {
        self.loss_scale.map_or(1.0, |scale| scale.scale)
    }

    /// Cross-entropy summed over the targets of the batches, without dropout. `None` when `stop` was set on the way.
    ///
    /// # Errors
    /// When the device fails, or a batch is larger than planned.
    pub fn evaluate(
        &mut self,
        batches: &[FlatBatch],
        stop: &AtomicBool,
        mut done: impl FnMut(usize),
    ) -> Result<Option<f64>> {
        let mut sum = 0.0;
        for (index, flat) in batches.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let Self { backend, model, layout, optimizer, workspace, batch, loss, .. } = self;
            let adapter = ActiveAdapter { layout, params: &optimizer.params, dropout: None };
            backend.clear(loss)?;
            batch.load(backend, flat)?;
            model.forward_only(backend, batch, Some(adapter), workspace)?;
            model.loss(backend, batch, workspace, loss, None)?;
            sum += f64::from(self.read_loss()?);
            done(index + 1);
        }
        Ok(Some(sum))
    }

    fn read_loss(&self) -> Result<f32> {
        let mut loss = [0.0];
        self.backend.download(&self.loss, &mut loss)?;
        Ok(loss[0])
    }
}
