//! Projections with their low-rank updates, forward and backward.

#![allow(unused_variables)]
use super::*;

pub(super) fn project(
    backend: &CpuBackend,
    tokens: usize,
    projection: &Projection<CpuBackend>,
    adapter: Option<Adapter<'_, CpuBackend>>,
    x: &CpuTensor,
    y: &mut CpuTensor,
    hidden: Option<&mut CpuTensor>,
    write: Write,
) -> Result<()> {
    todo!()
}

pub(super) fn project_backward(
    backend: &CpuBackend,
    tokens: usize,
    projection: &Projection<CpuBackend>,
    adapter: Option<(Adapter<'_, CpuBackend>, &mut CpuTensor)>,
    x: &CpuTensor,
    hidden: Option<&CpuTensor>,
    dy: &CpuTensor,
    dx: Option<(&mut CpuTensor, Write)>,
) -> Result<()> {
    todo!()
}
