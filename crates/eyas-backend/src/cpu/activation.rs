//! Activations, forward and backward.

use rayon::prelude::*;

use super::CpuTensor;
use super::simd::vectorised;
use super::tasks::TASK;
use super::vexp::{normal, sigmoid};
use crate::Result;
use crate::backend::DeviceTensor;
use crate::spec::{Activation, check_shape};

/// `sqrt(2 / pi)` and the cubic's factor of GELU's tanh approximation.
const GELU_TANH: (f32, f32) = (0.797_884_6, 0.044_715);

pub(super) fn activation(tokens: usize, kind: Activation, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
    let n = y.shape().1;
    check_shape("activation", "x", x, tokens, n * kind.fan_in())?;
    check_shape("activation", "y", y, tokens, n)?;
    let (x, y) = (x.rows(tokens), y.rows_mut(tokens));
    match kind {
        Activation::Gelu => {
            y.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(y, x)| gelu(x, y));
        }
        Activation::GeluTanh => {
            y.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(y, x)| gelu_tanh(x, y));
        }
        Activation::SwiGlu => {
            let rows = (TASK / n.max(1)).max(1);
            y.par_chunks_mut(rows * n.max(1)).zip(x.par_chunks(rows * n.max(1) * 2)).for_each(|(y, x)| {
                for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(2 * n)) {
                    let (gate, up) = x.split_at(n);
                    swiglu(gate, up, y);
                }
            });
        }
    }
    Ok(())
}

pub(super) fn activation_backward(
    tokens: usize,
    kind: Activation,
    dy: &CpuTensor,
    x: &mut CpuTensor,
) -> Result<()> {
    let n = dy.shape().1;
    check_shape("activation_backward", "x", x, tokens, n * kind.fan_in())?;
    check_shape("activation_backward", "dy", dy, tokens, n)?;
    let (dy, x) = (dy.rows(tokens), x.rows_mut(tokens));
    let elementwise = |x: &mut [f32], kernel: fn(&[f32], &mut [f32])| {
        x.par_chunks_mut(TASK).zip(dy.par_chunks(TASK)).for_each(|(x, dy)| kernel(dy, x));
    };
    match kind {
        Activation::Gelu => elementwise(x, gelu_backward),
        Activation::GeluTanh => elementwise(x, gelu_tanh_backward),
        Activation::SwiGlu => {
            let task = (TASK / n.max(1)).max(1) * n.max(1);
            x.par_chunks_mut(2 * task).zip(dy.par_chunks(task)).for_each(|(x, dy)| {
                for (x, dy) in x.chunks_exact_mut(2 * n).zip(dy.chunks_exact(n)) {
                    let (gate, up) = x.split_at_mut(n);
                    swiglu_backward(dy, gate, up);
                }
            });
        }
    }
    Ok(())
}

vectorised! {
    fn gelu(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * normal(x).0;
        }
    }
}

vectorised! {
    fn gelu_backward(dy: &[f32], x: &mut [f32]) {
        for (x, &dy) in x.iter_mut().zip(dy) {
            let (distribution, density) = normal(*x);
            *x = dy * x.mul_add(density, distribution);
        }
    }
}

/// `0.5 (1 + tanh(u))`, the logistic function of `2u`, with `u = c (x + k x^3)`, and `du/dx`.
#[inline(always)]
fn gelu_tanh_gate(x: f32) -> (f32, f32) {
    let (c, k) = GELU_TANH;
    let square = x * x;
    let u = c * x * square.mul_add(k, 1.0);
    (sigmoid(2.0 * u), c * square.mul_add(3.0 * k, 1.0))
}

vectorised! {
    fn gelu_tanh(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * gelu_tanh_gate(x).0;
        }
    }
}

vectorised! {
    fn gelu_tanh_backward(dy: &[f32], x: &mut [f32]) {
        for (x, &dy) in x.iter_mut().zip(dy) {
            let (gate, slope) = gelu_tanh_gate(*x);
            let dgate = 2.0 * gate * (1.0 - gate) * slope;
            *x = dy * x.mul_add(dgate, gate);
        }
    }
}

vectorised! {
    fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate * sigmoid(gate) * up;
        }
    }
}

vectorised! {
    fn swiglu_backward(dy: &[f32], gate: &mut [f32], up: &mut [f32]) {
        let n = dy.len();
        let (gate, up) = (&mut gate[..n], &mut up[..n]);
        for i in 0..n {
            let s = sigmoid(gate[i]);
            let silu = gate[i] * s;
            gate[i] = dy[i] * up[i] * silu.mul_add(1.0 - s, s);
            up[i] = dy[i] * silu;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extreme_inputs_stay_finite() {
        let x = [-1e4, -100.0, -40.0, 0.0, 40.0, 100.0, 1e4];
        let mut y = [0.0; 7];
        let saturated = [0.0, 0.0, 0.0, 0.0, 40.0, 100.0, 1e4];
        gelu(&x, &mut y);
        assert_eq!(y.map(f32::abs), saturated);
        gelu_tanh(&x, &mut y);
        for (y, want) in y.iter().zip(saturated) {
            assert!((y - want).abs() < 1e-30, "{y} for {want}");
        }
        for backward in [gelu_backward, gelu_tanh_backward] {
            y = x;
            backward(&[1.0; 7], &mut y);
            for (y, want) in y.iter().zip([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]) {
                assert!((y - want).abs() < 1e-6, "slope {y} for {want}");
            }
        }
    }
}
