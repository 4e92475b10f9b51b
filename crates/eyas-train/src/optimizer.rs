//! The trained vectors on the device: the adapter, its gradient and AdamW's moments.

use eyas_backend::{AdamW, Backend, Dtype};

use crate::Result;
use crate::recipe::Training;

/// AdamW (Loshchilov and Hutter 2019) over the adapter's flat vector.
#[derive(Debug)]
pub struct Optimizer<B: Backend> {
    /// The adapter, `[1, parameters]`, `f32`.
    pub params: B::Tensor,
    /// Its gradient, summed over the micro-batches of a step.
    pub grads: B::Tensor,
    first_moment: B::Tensor,
    second_moment: B::Tensor,
    norm: B::Tensor,
    parameters: usize,
    /// Steps taken.
    step: u32,
}

/// What a stopped optimiser goes on from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient: torch's `exp_avg`.
    pub exp_avg: Vec<f32>,
    /// Running mean of its square: torch's `exp_avg_sq`.
    pub exp_avg_sq: Vec<f32>,
    /// Steps taken.
    pub step: u32,
}

impl<B: Backend> Optimizer<B> {
    /// Puts an adapter on the device, with moments of zero.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(backend: &B, params: &[f32]) -> Result<Self> {
        let vector = || backend.zeros(Dtype::F32, 1, params.len());
        let mut optimizer = Self {
            params: vector()?,
            grads: vector()?,
            first_moment: vector()?,
            second_moment: vector()?,
            norm: backend.zeros(Dtype::F32, 1, 1)?,
            parameters: params.len(),
            step: 0,
        };
        backend.upload(params, &mut optimizer.params)?;
        Ok(optimizer)
    }

    /// Bytes that [`Optimizer::new`] takes for one of its four vectors.
    pub fn vector_bytes(parameters: usize) -> u64 {
        parameters as u64 * Dtype::F32.size() as u64
    }

    /// Goes on from saved moments.
    ///
    /// # Errors
    /// When the device fails.
    pub fn restore(&mut self, backend: &B, moments: &Moments) -> Result<()> {
        backend.upload(&moments.exp_avg, &mut self.first_moment)?;
        backend.upload(&moments.exp_avg_sq, &mut self.second_moment)?;
        self.step = moments.step;
        Ok(())
    }

    /// The adapter's current values.
    ///
    /// # Errors
    /// When the device fails.
    pub fn download_params(&self, backend: &B) -> Result<Vec<f32>> {
        self.download(backend, &self.params)
    }

    /// What to save of the optimiser.
    ///
    /// # Errors
    /// When the device fails.
    pub fn moments(&self, backend: &B) -> Result<Moments> {
        Ok(Moments {
            exp_avg: self.download(backend, &self.first_moment)?,
            exp_avg_sq: self.download(backend, &self.second_moment)?,
            step: self.step,
        })
    }

    fn download(&self, backend: &B, tensor: &B::Tensor) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.parameters];
        backend.download(tensor, &mut values)?;
        Ok(values)
    }

    /// The norm of the gradient, before clipping.
    ///
    /// # Errors
    /// When the device fails.
    pub fn grad_norm(&mut self, backend: &B) -> Result<f32> {
        backend.grad_norm(&self.grads, &mut self.norm)?;
        let mut norm = [0.0];
        backend.download(&self.norm, &mut norm)?;
        Ok(norm[0])
    }

    /// Takes one step with the gradient that [`Optimizer::grad_norm`] was asked about.
    ///
    /// # Errors
    /// When the device fails.
    pub fn step(&mut self, backend: &B, training: &Training, learning_rate: f64) -> Result<()> {
        self.step += 1;
        let spec = AdamW {
            lr: learning_rate as f32,
            beta1: training.adam_beta1 as f32,
            beta2: training.adam_beta2 as f32,
            eps: training.adam_epsilon as f32,
            weight_decay: training.weight_decay as f32,
            step: self.step,
            max_grad_norm: (training.max_grad_norm > 0.0).then_some(training.max_grad_norm as f32),
        };
        backend.adamw(
            spec,
            &self.grads,
            &self.norm,
            &mut self.params,
            &mut self.first_moment,
            &mut self.second_moment,
        )?;
        Ok(())
    }
}
