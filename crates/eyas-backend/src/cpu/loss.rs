//! Cross-entropy: loss and gradient in one pass.

use std::ops::Range;

use rayon::prelude::*;

use super::elementwise::target_rows;
use super::simd::{max, sum, vectorised};
use super::vexp::exp;
use super::{CpuBatch, CpuTensor};
use crate::backend::DeviceTensor;
use crate::spec::check_shape;
use crate::{Error, Result};

pub(super) fn cross_entropy(
    batch: &CpuBatch,
    targets: Range<usize>,
    logits: &mut CpuTensor,
    loss: &mut CpuTensor,
    gradient: Option<f32>,
) -> Result<()> {
    let rows = target_rows("cross_entropy", batch, targets)?;
    let vocab = logits.shape().1;
    check_shape("cross_entropy", "logits", logits, rows.len(), vocab)?;
    check_shape("cross_entropy", "loss", loss, 1, 1)?;
    let ids = batch.batch.targets();
    if let Some(&row) =
        rows.iter().find(|&&row| !usize::try_from(ids[row as usize]).is_ok_and(|id| id < vocab))
    {
        let id = ids[row as usize];
        return Err(Error::Batch(format!("token {row} has the target {id}; there are {vocab} logits")));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let losses: Vec<f64> = logits
        .rows_mut(rows.len())
        .par_chunks_exact_mut(vocab)
        .zip(rows)
        .map(|(logits, &row)| row_loss(logits, ids[row as usize] as usize, gradient))
        .collect();
    let total: f64 = losses.iter().sum();
    loss.data[0] = (f64::from(loss.data[0]) + total) as f32;
    Ok(())
}

/// Logits whose exponentials are summed in `f32`, while they are in the first-level cache; sums of blocks are `f64`.
const BLOCK: usize = 2048;

/// The loss of one row; its logits become their gradient when one is asked for.
fn row_loss(logits: &mut [f32], target: usize, gradient: Option<f32>) -> f64 {
    let largest = row_max(logits);
    let chosen = f64::from(logits[target]) - f64::from(largest);
    let mut total = 0.0;
    for block in logits.chunks_mut(BLOCK) {
        total += f64::from(match gradient {
            Some(_) => exp_in_place(block, largest),
            None => exp_sum(block, largest),
        });
    }
    if let Some(gradient) = gradient {
        scale(logits, (f64::from(gradient) / total) as f32);
        logits[target] -= gradient;
    }
    total.ln() - chosen
}

vectorised! {
    fn row_max(logits: &[f32]) -> f32 {
        max(logits)
    }
}

vectorised! {
    fn exp_in_place(logits: &mut [f32], largest: f32) -> f32 {
        for x in logits.iter_mut() {
            *x = exp(*x - largest);
        }
        sum([&*logits], |[x]| x)
    }
}

vectorised! {
    fn exp_sum(logits: &[f32], largest: f32) -> f32 {
        let mut exponentials = [0.0; BLOCK];
        let exponentials = &mut exponentials[..logits.len()];
        for (y, &x) in exponentials.iter_mut().zip(logits) {
            *y = exp(x - largest);
        }
        sum([&*exponentials], |[x]| x)
    }
}

vectorised! {
    fn scale(values: &mut [f32], factor: f32) {
        for value in values.iter_mut() {
            *value *= factor;
        }
    }
}
