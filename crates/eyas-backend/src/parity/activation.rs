//! Activations.

use super::Checker;
use crate::spec::Activation;
use crate::{Backend, Result};

/// The standard normal distribution: its power series near zero, Laplace's continued fraction in the tail.
pub(crate) fn normal_distribution(x: f64) -> f64 {
    let density = normal_density(x);
    if x.abs() < 3.0 {
        let (mut term, mut sum, mut k) = (x, x, 1.0);
        while term.abs() > 1e-18 {
            k += 2.0;
            term *= x * x / k;
            sum += term;
        }
        return 0.5 + density * sum;
    }
    let fraction = (1..200).rev().fold(x.abs(), |fraction, k| x.abs() + f64::from(k) / fraction);
    if x < 0.0 { density / fraction } else { 1.0 - density / fraction }
}

/// The standard normal density.
pub(crate) fn normal_density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// An activation of one input, and its derivative.
fn gelu(kind: Activation, x: f64) -> (f64, f64) {
    match kind {
        Activation::GeluTanh => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (c * (x + 0.044_715 * x.powi(3))).tanh();
            let slope = c * (1.0 + 3.0 * 0.044_715 * x * x) * (1.0 - tanh * tanh);
            (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * slope)
        }
        _ => (x * normal_distribution(x), normal_distribution(x) + x * normal_density(x)),
    }
}

/// A row's activation.
fn activation(kind: Activation, x: &[f64]) -> Vec<f64> {
    match kind {
        Activation::SwiGlu => {
            let (gate, up) = x.split_at(x.len() / 2);
            gate.iter().zip(up).map(|(gate, up)| gate * sigmoid(*gate) * up).collect()
        }
        _ => x.iter().map(|&x| gelu(kind, x).0).collect(),
    }
}

/// The gradient of a row of inputs.
fn activation_backward(kind: Activation, x: &[f64], dy: &[f64]) -> Vec<f64> {
    match kind {
        Activation::SwiGlu => {
            let (gate, up) = x.split_at(dy.len());
            let dgate = (0..dy.len()).map(|i| {
                let s = sigmoid(gate[i]);
                dy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s))
            });
            let dup = (0..dy.len()).map(|i| dy[i] * gate[i] * sigmoid(gate[i]));
            dgate.chain(dup).collect()
        }
        _ => x.iter().zip(dy).map(|(&x, dy)| dy * gelu(kind, x).1).collect(),
    }
}

pub(super) fn check<B: Backend>(checker: &mut Checker<'_, B>) -> Result<()> {
    let backend = checker.backend;
    for kind in [Activation::Gelu, Activation::GeluTanh, Activation::SwiGlu] {
        for (tokens, n) in [(1, 1), (19, 1536), (3, 18_176), (70, 35)] {
            let case = format!("{kind:?} {tokens} x {n}");
            let wide = n * kind.fan_in();
            let mut values: Vec<f32> = checker.normal(tokens * wide).into_iter().map(|x| 3.0 * x).collect();
            // The ends, where exponentials overflow.
            if values.len() > 4 {
                values[..4].copy_from_slice(&[-200.0, 90.0, -12.0, 0.0]);
            }
            let x = checker.operand(backend.compute_dtype(), wide, &values)?;
            let mut y = checker.activation(tokens + 1, n)?;
            backend.activation(tokens, kind, &x.tensor, &mut y.tensor)?;
            let want: Vec<f64> = x.values.chunks(wide).flat_map(|x| activation(kind, x)).collect();
            checker.compare("activation", &case, &y.tensor, &want, &y.values)?;

            let dy = checker.activation(tokens, n)?;
            values.extend(checker.normal(wide));
            let mut x = checker.operand(backend.compute_dtype(), wide, &values)?;
            backend.activation_backward(tokens, kind, &dy.tensor, &mut x.tensor)?;
            let rows = x.values.chunks(wide).zip(dy.values.chunks(n));
            let want: Vec<f64> = rows.flat_map(|(x, dy)| activation_backward(kind, x, dy)).collect();
            checker.compare("activation_backward", &case, &x.tensor, &want, &x.values)?;
        }
    }
    Ok(())
}
