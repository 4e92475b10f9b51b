//! The gradient's norm and AdamW.

use super::Checker;
use crate::spec::AdamW;
use crate::{Backend, Dtype, Result};

/// One step of AdamW (Loshchilov and Hutter 2019, algorithm 2, with the schedule inside `lr`) on one parameter.
fn adamw(spec: &Constants, gradient: f64, parameter: &mut f64, m: &mut f64, v: &mut f64) {
    *parameter -= spec.lr * spec.weight_decay * *parameter;
    *m = spec.beta1 * *m + (1.0 - spec.beta1) * gradient;
    *v = spec.beta2 * *v + (1.0 - spec.beta2) * gradient * gradient;
    let m = *m / (1.0 - spec.beta1.powi(spec.step));
    let v = *v / (1.0 - spec.beta2.powi(spec.step));
    *parameter -= spec.lr * m / (v.sqrt() + spec.eps);
}

/// A step's constants as decimals.
struct Constants {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    step: i32,
}

pub(super) fn check<B: Backend>(checker: &mut Checker<'_, B>) -> Result<()> {
    let backend = checker.backend;
    for len in [1, 70_001] {
        let mut params = checker.parameter(1, len, 0.0)?;
        let mut first = checker.operand(Dtype::F32, len, &vec![0.0; len])?;
        let mut second = checker.operand(Dtype::F32, len, &vec![0.0; len])?;
        let mut norm = checker.operand(Dtype::F32, 1, &[7.0])?;
        for (step, max_grad_norm, weight_decay) in [(1, Some(0.3), 0.0), (2, None, 0.1), (3, Some(1e6), 0.01)]
        {
            let case = format!("{len} parameters, step {step}");
            let grads = checker.parameter(1, len, 0.0)?;
            backend.grad_norm(&grads.tensor, &mut norm.tensor)?;
            let want = grads.values.iter().map(|g| g * g).sum::<f64>().sqrt();
            checker.compare("grad_norm", &case, &norm.tensor, &[want], &[])?;

            let spec = AdamW {
                lr: 2e-4,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay,
                step: step as u32,
                max_grad_norm,
            };
            let (first_tensor, second_tensor) = (&mut first.tensor, &mut second.tensor);
            backend.adamw(
                spec,
                &grads.tensor,
                &norm.tensor,
                &mut params.tensor,
                first_tensor,
                second_tensor,
            )?;
            let weight_decay = f64::from((weight_decay * 1e6).round()) / 1e6;
            let constants = Constants { lr: 2e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, step };
            let clip = max_grad_norm.map_or(1.0, |max| (f64::from(max) / (want + 1e-6)).min(1.0));
            let before = params.values.clone();
            for i in 0..len {
                let (m, v) = (&mut first.values[i], &mut second.values[i]);
                adamw(&constants, clip * grads.values[i], &mut params.values[i], m, v);
            }
            // The step itself, which the parameters would drown.
            let got = checker.values(&params.tensor)?;
            let moved: Vec<f32> =
                got.iter().zip(&before).map(|(x, before)| (f64::from(*x) - before) as f32).collect();
            let want: Vec<f64> = params.values.iter().zip(&before).map(|(x, before)| x - before).collect();
            let moved = checker.operand(Dtype::F32, len, &moved)?;
            checker.compare_within("adamw", format!("{case}, update"), &moved.tensor, &want, &[], 2e-4)?;
            checker.compare("adamw", format!("{case}, first moment"), &first.tensor, &first.values, &[])?;
            checker.compare(
                "adamw",
                format!("{case}, second moment"),
                &second.tensor,
                &second.values,
                &[],
            )?;
            checker.compare("adamw", format!("{case}, parameters"), &params.tensor, &params.values, &[])?;
            for operand in [&mut params, &mut first, &mut second] {
                operand.values = checker.values(&operand.tensor)?.into_iter().map(f64::from).collect();
            }
        }
    }
    Ok(())
}
