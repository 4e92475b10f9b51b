//! Embedding, sums, copies and gathers of rows.

use std::ops::Range;

use rayon::prelude::*;

use super::tasks::{TASK, rows_a_task};
use super::{CpuBatch, CpuTensor, CpuWeight};
use crate::backend::DeviceTensor;
use crate::spec::{check_copy_rows, check_shape};
use crate::{Error, Result};

pub(super) fn embed(batch: &CpuBatch, table: &CpuWeight, x: &mut CpuTensor) -> Result<()> {
    let (ids, (vocab, n)) = (batch.batch.input_ids(), (table.rows(), table.cols()));
    check_shape("embed", "x", x, ids.len(), n)?;
    if let Some(row) = ids.iter().position(|&id| id as usize >= vocab) {
        return Err(Error::Batch(format!(
            "token {row} has the id {}; the embedding has {vocab} rows",
            ids[row]
        )));
    }
    if n == 0 {
        return Ok(());
    }
    let rows = rows_a_task(n);
    x.rows_mut(ids.len()).par_chunks_mut(rows * n).zip(ids.par_chunks(rows)).for_each(|(x, ids)| {
        x.chunks_exact_mut(n).zip(ids).for_each(|(x, &id)| table.row_into(id as usize, x));
    });
    Ok(())
}

pub(super) fn add(tokens: usize, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
    let n = x.shape().1;
    check_shape("add", "x", x, tokens, n)?;
    check_shape("add", "y", y, tokens, n)?;
    y.rows_mut(tokens).par_chunks_mut(TASK).zip(x.rows(tokens).par_chunks(TASK)).for_each(|(y, x)| {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    });
    Ok(())
}

pub(super) fn copy(tokens: usize, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
    let n = x.shape().1;
    check_shape("copy", "x", x, tokens, n)?;
    check_shape("copy", "y", y, tokens, n)?;
    y.rows_mut(tokens)
        .par_chunks_mut(TASK)
        .zip(x.rows(tokens).par_chunks(TASK))
        .for_each(|(y, x)| y.copy_from_slice(x));
    Ok(())
}

pub(super) fn copy_rows(tensor: &mut CpuTensor, from: Range<usize>, to: usize) -> Result<()> {
    let cols = check_copy_rows(tensor, &from, to)?;
    tensor.data.copy_within(from.start * cols..from.end * cols, to * cols);
    Ok(())
}

pub(super) fn gather_targets(
    batch: &CpuBatch,
    targets: Range<usize>,
    x: &CpuTensor,
    y: &mut CpuTensor,
) -> Result<()> {
    let rows = target_rows("gather_targets", batch, targets)?;
    let n = x.shape().1;
    check_shape("gather_targets", "x", x, batch.batch.tokens(), n)?;
    check_shape("gather_targets", "y", y, rows.len(), n)?;
    gather(rows.par_iter().map(|&row| row as usize), rows.len(), x, y);
    Ok(())
}

pub(super) fn gather_last(batch: &CpuBatch, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
    let ends = &batch.batch.cu_seqlens()[1..];
    let n = x.shape().1;
    check_shape("gather_last", "x", x, batch.batch.tokens(), n)?;
    check_shape("gather_last", "y", y, ends.len(), n)?;
    gather(ends.par_iter().map(|&end| end as usize - 1), ends.len(), x, y);
    Ok(())
}

pub(super) fn scatter_targets(
    batch: &CpuBatch,
    targets: Range<usize>,
    x: &CpuTensor,
    y: &mut CpuTensor,
) -> Result<()> {
    let rows = target_rows("scatter_targets", batch, targets)?;
    let n = x.shape().1;
    check_shape("scatter_targets", "x", x, rows.len(), n)?;
    check_shape("scatter_targets", "y", y, batch.batch.tokens(), n)?;
    if n == 0 {
        return Ok(());
    }
    for (&row, x) in rows.iter().zip(x.rows(rows.len()).chunks_exact(n)) {
        y.data[row as usize * n..][..n].copy_from_slice(x);
    }
    Ok(())
}

/// The rows of the batch that hold these of its targets.
pub(super) fn target_rows<'a>(
    op: &'static str,
    batch: &'a CpuBatch,
    targets: Range<usize>,
) -> Result<&'a [u32]> {
    batch.target_rows.get(targets.clone()).ok_or_else(|| Error::Shape {
        op,
        reason: format!(
            "targets {}..{} asked of a batch that has {}",
            targets.start,
            targets.end,
            batch.target_rows.len()
        ),
    })
}

/// `y[i] = x[rows[i]]`.
fn gather(rows: impl IndexedParallelIterator<Item = usize>, count: usize, x: &CpuTensor, y: &mut CpuTensor) {
    let n = x.shape().1;
    if n == 0 {
        return;
    }
    y.rows_mut(count).par_chunks_exact_mut(n).zip(rows).with_min_len(rows_a_task(n)).for_each(|(y, row)| {
        y.copy_from_slice(&x.data()[row * n..][..n]);
    });
}
