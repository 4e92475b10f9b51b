//! AdamW over the adapter: its moments on the device of the first replica.

use eyas_backend::{AdamW, Backend, Dtype, HostMoments, MomentStorage};

use crate::Result;
use crate::recipe::Training;

/// AdamW (Loshchilov and Hutter 2019) over the adapter's flat vector.
#[derive(Debug)]
pub struct Optimizer<B: Backend> {
    moments: B::Moments,
    norm: B::Tensor,
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
    /// Moments of zero on the device.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(backend: &B, parameters: usize, storage: MomentStorage) -> Result<Self> {
        Ok(Self {
            moments: backend.new_moments(parameters, storage)?,
            norm: backend.zeros(Dtype::F32, 1, 1)?,
            step: 0,
        })
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
    pub fn grad_norm(&mut self, backend: &B, grads: &B::Tensor) -> Result<f32> {
        backend.grad_norm(grads, &mut self.norm)?;
        let mut norm = [0.0];
        backend.download(&self.norm, &mut norm)?;
        Ok(norm[0])
    }

    /// Takes one step of `params` with the gradient that [`Optimizer::grad_norm`] was asked about, which is that of
    /// `loss_scale` times the loss.
    ///
    /// # Errors
    /// When the device fails. Where it had no room, nothing has changed.
    pub fn step(
        &mut self,
        backend: &B,
        training: &Training,
        learning_rate: f64,
        loss_scale: f32,
        grads: &B::Tensor,
        params: &mut B::Tensor,
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
        backend.adamw(spec, grads, &self.norm, params, &mut self.moments)?;
        self.step = step;
        Ok(())
    }
}
