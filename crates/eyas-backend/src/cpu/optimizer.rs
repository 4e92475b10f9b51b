//! Gradient norm and AdamW.

use eyas_quant::{dequantize_blockwise_8bit, quantize_blockwise_8bit};
use rayon::prelude::*;

use super::CpuTensor;
use super::simd::vectorised;
use super::tasks::TASK;
use crate::backend::DeviceTensor;
use crate::moments::{Blockwise8, HostMoments, MOMENT_BLOCK, moment_map};
use crate::spec::{AdamW, check_shape};
use crate::{Error, Result};

pub(super) fn grad_norm(grads: &CpuTensor, norm: &mut CpuTensor) -> Result<()> {
    check_shape("grad_norm", "norm", norm, 1, 1)?;
    let partial: Vec<f64> = grads.data().par_chunks(TASK).map(sum_of_squares).collect();
    norm.data[0] = partial.iter().sum::<f64>().sqrt() as f32;
    Ok(())
}

vectorised! {
    fn sum_of_squares(values: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 16];
        let (chunks, rest) = values.as_chunks::<16>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane = f64::from(value).mul_add(f64::from(value), *lane);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane = f64::from(value).mul_add(f64::from(value), *lane);
        }
        lanes.iter().sum()
    }
}

pub(super) fn adamw(
    spec: AdamW,
    grads: &CpuTensor,
    norm: &CpuTensor,
    params: &mut CpuTensor,
    moments: &mut HostMoments,
) -> Result<()> {
    let (rows, cols) = params.shape();
    check_shape("adamw", "grads", grads, rows, cols)?;
    check_shape("adamw", "norm", norm, 1, 1)?;
    moments.check("adamw", rows * cols, moments.format())?;
    if spec.step == 0 {
        return Err(Error::Shape {
            op: "adamw",
            reason: "steps are counted from 1, and this one is 0".into(),
        });
    }
    let factors = AdamWFactors::new(&spec);
    let scale = gradient_scale(&spec, norm.data()[0]);
    let (params, grads) = (params.rows_mut(rows).par_chunks_mut(TASK), grads.rows(rows).par_chunks(TASK));
    match moments {
        HostMoments::F32([first, second]) => params
            .zip(first.par_chunks_mut(TASK))
            .zip(second.par_chunks_mut(TASK))
            .zip(grads)
            .for_each(|(((params, m), v), grads)| update(&factors, scale, grads, params, m, v)),
        HostMoments::Blockwise8([first, second]) => {
            params.zip(pieces(first)).zip(pieces(second)).zip(grads).try_for_each(
                |(((params, mut first), mut second), grads)| {
                    let mut m = read_blocks(0, &first)?;
                    let mut v = read_blocks(1, &second)?;
                    update(&factors, scale, grads, params, &mut m, &mut v);
                    write_blocks(0, &m, &mut first)?;
                    write_blocks(1, &v, &mut second)
                },
            )?;
        }
    }
    Ok(())
}

/// Codes and scales of neighbouring blocks.
type Blocks<'a> = (&'a mut [u8], &'a mut [f32]);

fn pieces(moment: &mut Blockwise8) -> impl IndexedParallelIterator<Item = Blocks<'_>> {
    let Blockwise8 { codes, absmax } = moment;
    codes.par_chunks_mut(TASK).zip(absmax.par_chunks_mut(TASK / MOMENT_BLOCK))
}

fn read_blocks(moment: usize, (codes, absmax): &Blocks<'_>) -> Result<Vec<f32>> {
    let mut values = vec![0.0; codes.len()];
    dequantize_blockwise_8bit(codes, absmax, moment_map(moment), MOMENT_BLOCK, &mut values)?;
    Ok(values)
}

fn write_blocks(moment: usize, values: &[f32], (codes, absmax): &mut Blocks<'_>) -> Result<()> {
    Ok(quantize_blockwise_8bit(values, moment_map(moment), MOMENT_BLOCK, codes, absmax)?)
}

/// What a step multiplies by, worked out in `f64` from the constants as a person wrote them and rounded once: an
/// `f32` 0.999 is off by 1.3e-8, which is 1.3e-5 of the `1 - beta2` that matters.
#[derive(Clone, Copy, Debug, PartialEq)]
struct AdamWFactors {
    /// `1 - lr * weight_decay`.
    keep: f32,
    /// `1 - beta1`.
    first: f32,
    /// `beta2`.
    decay: f32,
    /// `1 - beta2`.
    second: f32,
    /// `sqrt(1 - beta2^step)`.
    second_correction: f32,
    eps: f32,
    /// `-lr / (1 - beta1^step)`.
    step_size: f32,
}

impl AdamWFactors {
    fn new(spec: &AdamW) -> Self {
        let [lr, beta1, beta2, weight_decay] =
            [spec.lr, spec.beta1, spec.beta2, spec.weight_decay].map(shortest_decimal);
        let step = f64::from(spec.step);
        Self {
            keep: (1.0 - lr * weight_decay) as f32,
            first: (1.0 - beta1) as f32,
            decay: spec.beta2,
            second: (1.0 - beta2) as f32,
            second_correction: (1.0 - beta2.powf(step)).sqrt() as f32,
            eps: spec.eps,
            step_size: (-lr / (1.0 - beta1.powf(step))) as f32,
        }
    }
}

/// The decimal with the fewest digits that rounds to `value`: 0.9 for the `f32` 0.9.
fn shortest_decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// What gradients are multiplied by: out of the loss's scale, then clipped.
fn gradient_scale(spec: &AdamW, norm: f32) -> f32 {
    clip_coefficient(spec.max_grad_norm, norm / spec.loss_scale) / spec.loss_scale
}

/// What clipping multiplies gradients by; NaN when their norm is, so that a broken step shows.
fn clip_coefficient(max_grad_norm: Option<f32>, norm: f32) -> f32 {
    match max_grad_norm.map(|max| max / (norm + 1e-6)) {
        None => 1.0,
        Some(coefficient) if coefficient > 1.0 => 1.0,
        Some(coefficient) => coefficient,
    }
}

vectorised! {
    /// One step, in the order of `torch.optim.AdamW`'s operations.
    fn update(
        f: &AdamWFactors, scale: f32, grads: &[f32], params: &mut [f32], m: &mut [f32], v: &mut [f32],
    ) {
        let n = params.len();
        let (grads, m, v) = (&grads[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let g = scale * grads[i];
            m[i] += f.first * (g - m[i]);
            v[i] = (f.second * g).mul_add(g, f.decay * v[i]);
            let root = v[i].sqrt() / f.second_correction + f.eps;
            params[i] = f.keep * params[i] + f.step_size * m[i] / root;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_those_of_the_decimals() {
        let spec = AdamW {
            lr: 2e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step: 1,
            max_grad_norm: None,
            loss_scale: 1.0,
        };
        let factors = AdamWFactors::new(&spec);
        assert_eq!(factors.first, 0.1);
        assert_eq!(factors.second, 0.001);
        assert_eq!(factors.step_size, -2e-3);
        assert_eq!(factors.keep, 1.0);
    }

    #[test]
    fn clipping_never_scales_up_and_shows_nan() {
        assert_eq!(clip_coefficient(None, f32::NAN), 1.0);
        assert_eq!(clip_coefficient(Some(1.0), 0.5), 1.0);
        assert_eq!(clip_coefficient(Some(1.0), 4.0), 1.0 / (4.0 + 1e-6));
        assert!(clip_coefficient(Some(1.0), f32::NAN).is_nan());
    }
}
