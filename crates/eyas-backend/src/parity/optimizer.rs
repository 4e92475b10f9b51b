//! The gradient's norm and AdamW.

use super::{Checker, OpParity, tolerance};
use crate::moments::{HostMoments, MomentFormat, MomentStorage};
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
    for len in [1, 70_001] {
        check_formats(checker, len)?;
    }
    Ok(())
}

fn check_formats<B: Backend>(checker: &mut Checker<'_, B>, len: usize) -> Result<()> {
    let backend = checker.backend;
    for (op, format) in [("adamw", MomentFormat::F32), ("adamw (8 bits)", MomentFormat::Blockwise8)] {
        let mut params = checker.parameter(1, len, 0.0)?;
        let mut moments = backend.new_moments(len, MomentStorage { format, paged: false })?;
        let mut paged = backend.new_moments(len, MomentStorage { format, paged: true })?;
        let mut values = HostMoments::zeros(len, format).values();
        let mut norm = checker.operand(Dtype::F32, 1, &[7.0])?;
        for (step, max_grad_norm, weight_decay, loss_scale) in
            [(1, Some(0.3), 0.0, 1.0), (2, None, 0.1, 1024.0), (3, Some(1e6), 0.01, 3.0)]
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
                loss_scale,
            };
            let mut same = checker.operand(Dtype::F32, len, &checker.values(&params.tensor)?)?;
            backend.adamw(spec, &grads.tensor, &norm.tensor, &mut params.tensor, &mut moments)?;
            backend.adamw(spec, &grads.tensor, &norm.tensor, &mut same.tensor, &mut paged)?;

            let weight_decay = f64::from((weight_decay * 1e6).round()) / 1e6;
            let constants = Constants { lr: 2e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, step };
            let loss_scale = f64::from(loss_scale);
            let clip =
                max_grad_norm.map_or(1.0, |max| (f64::from(max) / (want / loss_scale + 1e-6)).min(1.0));
            let before = params.values.clone();
            let [first, second] = values.each_mut();
            for (i, (m, v)) in first.iter_mut().zip(second).enumerate() {
                let (mut mean, mut square) = (f64::from(*m), f64::from(*v));
                let gradient = clip * grads.values[i] / loss_scale;
                adamw(&constants, gradient, &mut params.values[i], &mut mean, &mut square);
                (*m, *v) = (mean as f32, square as f32);
            }
            // The step itself, which the parameters would drown.
            let got = checker.values(&params.tensor)?;
            let moved: Vec<f32> =
                got.iter().zip(&before).map(|(x, before)| (f64::from(*x) - before) as f32).collect();
            let want: Vec<f64> = params.values.iter().zip(&before).map(|(x, before)| x - before).collect();
            let moved = checker.operand(Dtype::F32, len, &moved)?;
            // The parameters' own rounding, twice, which their number does not average away when there is one.
            let size = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
            let within = 2e-4 + f64::from(f32::EPSILON) * size(&before) / size(&want);
            checker.compare_within(op, format!("{case}, update"), &moved.tensor, &want, &[], within)?;
            checker.compare(op, format!("{case}, parameters"), &params.tensor, &params.values, &[])?;

            // Rounded to the format as the device should; a value between two levels may take either.
            let want = HostMoments::F32(values).into_format(format)?.values();
            let tolerance = if format == MomentFormat::F32 { tolerance(Dtype::F32) } else { 1e-3 };
            let kept = backend.read_moments(&moments)?;
            values = kept.values();
            for (name, got, want) in [("first", &values[0], &want[0]), ("second", &values[1], &want[1])] {
                let want: Vec<f64> = want.iter().map(|x| f64::from(*x)).collect();
                let got = checker.operand(Dtype::F32, len, got)?;
                checker.compare_within(
                    op,
                    format!("{case}, {name} moment"),
                    &got.tensor,
                    &want,
                    &[],
                    tolerance,
                )?;
            }
            let alike = |case: String, same: bool| {
                let error = if same { 0.0 } else { f64::NAN };
                OpParity { op: "adamw (paged)", case, error, tolerance: 0.0 }
            };
            let equal = backend.read_moments(&paged)? == kept && checker.values(&same.tensor)? == got;
            checker.rows.push(alike(format!("{op}, {case}, bits of the resident"), equal));
            backend.write_moments(&kept, &mut paged)?;
            let equal = backend.read_moments(&paged)? == kept;
            checker.rows.push(alike(format!("{op}, {case}, written and read"), equal));
            params.values = got.into_iter().map(f64::from).collect();
        }
    }
    Ok(())
}
