//! The trained vectors on the device: the adapter, its gradient and AdamW's moments.

use eyas_backend::{AdamW, Backend, Dtype, HostMoments, MomentStorage};

use crate::Result;
use crate::recipe::Training;

/// AdamW (Loshchilov and Hutter 2019) over the adapter's flat vector.
#[derive(Debug)]
pub struct Optimizer<B: Backend> {
    /// The adapter, `[1, parameters]`, `f32`.
    pub params: B::Tensor,
    /// Its gradient, summed over the micro-batches of a step.
    pub grads: B::Tensor,
    moments: B::Moments,
    norm: B::Tensor,
    parameters: usize,
    /// Steps taken.
    step: u32,
}

/// What a stopped optimiser goes on from.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerState {
    /// Running means of the gradient and of its square: torch's `exp_avg` and `exp_avg_sq`.
    pub moments: HostMoments,
    /// Steps taken.
    pub step: u32,
}

impl<B: Backend> Optimizer<B> {
    /// Puts an adapter on the device, with moments of zero.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(backend: &B, params: &[f32], storage: MomentStorage) -> Result<Self> {
        let vector = || backend.zeros(Dtype::F32, 1, params.len());
        let mut optimizer = Self {
            params: vector()?,
            grads: vector()?,
            moments: backend.new_moments(params.len(), storage)?,
            norm: backend.zeros(Dtype::F32, 1, 1)?,
            parameters: params.len(),
            step: 0,
        };
        backend.upload(params, &mut optimizer.params)?;
        Ok(optimizer)
    }

    /// Bytes that [`Optimizer::new`] takes for the adapter, and for its gradient.
    pub fn vector_bytes(parameters: usize) -> u64 {
        parameters as u64 * Dtype::F32.size() as u64
    }

    /// Goes on from saved moments.
    ///
    /// # Errors
    /// When the device fails.
    pub fn restore(&mut self, backend: &B, state: &OptimizerState) -> Result<()> {
        backend.write_moments(&state.moments, &mut self.moments)?;
        self.step = state.step;
        Ok(())
    }

    /// The adapter's current values.
    ///
    /// # Errors
    /// When the device fails.
    pub fn download_params(&self, backend: &B) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.parameters];
        backend.download(&self.params, &mut values)?;
        Ok(values)
    }

    /// What to save of the optimiser.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self, backend: &B) -> Result<OptimizerState> {
        Ok(OptimizerState { moments: backend.read_moments(&self.moments)?, step: self.step })
    }

    /// The norm of the gradient, before clipping and as it is scaled.
    ///
    /// # Errors
    /// When the device fails.
    pub fn grad_norm(&mut self, backend: &B) -> Result<f32> {
        backend.grad_norm(&self.grads, &mut self.norm)?;
        let mut norm = [0.0];
        backend.download(&self.norm, &mut norm)?;
        Ok(norm[0])
    }

    /// Takes one step with the gradient that [`Optimizer::grad_norm`] was asked about, which is that of `loss_scale`
    /// times the loss.
    ///
    /// # Errors
    /// When the device fails. Where it had no room, nothing has changed.
    pub fn step(
        &mut self,
        backend: &B,
        training: &Training,
        learning_rate: f64,
        loss_scale: f32,
    ) -> Result<()> {
        let step = self.step + 1;
        let spec = AdamW {
            lr: learning_rate as f32,
            beta1: training.adam_beta1 as f32,
            beta2: training.adam_beta2 as f32,
            eps: training.adam_epsilon as f32,
            weight_decay: training.weight_decay as f32,
            step,
            max_grad_norm: (training.max_grad_norm > 0.0).then_some(training.max_grad_norm as f32),
            loss_scale,
        };
        backend.adamw(spec, &self.grads, &self.norm, &mut self.params, &mut self.moments)?;
        self.step = step;
        Ok(())
    }
}
