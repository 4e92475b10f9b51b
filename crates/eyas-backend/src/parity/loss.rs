//! Cross-entropy.

use super::Checker;
use crate::{Backend, Dtype, Result};

/// Logarithm of the sum of exponentials.
fn log_sum_exp(logits: &[f64]) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + logits.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
}

pub(super) fn check<B: Backend>(checker: &mut Checker<'_, B>) -> Result<()> {
    let backend = checker.backend;
    for (vocab, lengths, skip) in [(65_024, &[7][..], 0), (1003, &[1, 30, 9], 4), (1, &[3], 0)] {
        let (batch, host) = checker.batch(lengths, vocab as u32)?;
        let targets: Vec<usize> = host.targets().iter().filter_map(|&id| usize::try_from(id).ok()).collect();
        let range = skip.min(targets.len())..targets.len();
        let targets = &targets[range.clone()];
        for gradient in [None, Some(0.37f32)] {
            let case = format!("{} x {vocab}, gradient {gradient:?}", targets.len());
            let values: Vec<f32> =
                checker.normal((range.len() + 1) * vocab).into_iter().map(|x| 4.0 * x).collect();
            let mut logits = checker.operand(backend.compute_dtype(), vocab, &values)?;
            let mut loss = checker.operand(Dtype::F32, 1, &[0.5])?;
            backend.cross_entropy(&batch, range.clone(), &mut logits.tensor, &mut loss.tensor, gradient)?;

            let rows = logits.values.chunks(vocab).zip(targets);
            let sum: f64 = rows.clone().map(|(logits, &target)| log_sum_exp(logits) - logits[target]).sum();
            checker.compare("cross_entropy", &case, &loss.tensor, &[0.5 + sum], &[])?;
            if let Some(gradient) = gradient {
                let mut want = Vec::new();
                for (logits, &target) in rows {
                    let lse = log_sum_exp(logits);
                    want.extend(logits.iter().enumerate().map(|(id, x)| {
                        let onehot = if id == target { 1.0 } else { 0.0 };
                        f64::from(gradient) * ((x - lse).exp() - onehot)
                    }));
                }
                let op = "cross_entropy (gradient)";
                checker.compare(op, &case, &logits.tensor, &want, &logits.values)?;
            }
        }
    }
    Ok(())
}
