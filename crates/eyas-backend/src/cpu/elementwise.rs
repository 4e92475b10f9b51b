//! Embedding, sums, copies and gathers of rows.

#![allow(unused_imports, unused_variables)]
use std::ops::Range;
use super::*;

pub(super) fn embed(batch: &CpuBatch, table: &CpuWeight, x: &mut CpuTensor) -> Result<()> {
    todo!()
}

pub(super) fn add(tokens: usize, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
    todo!()
}

pub(super) fn copy(tokens: usize, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
    todo!()
}

pub(super) fn gather_targets(batch: &CpuBatch, targets: Range<usize>, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
    todo!()
}

pub(super) fn gather_last(batch: &CpuBatch, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
    todo!()
}

pub(super) fn scatter_targets(batch: &CpuBatch, targets: Range<usize>, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
    todo!()
}
