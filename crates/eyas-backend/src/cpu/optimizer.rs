//! Gradient norm and AdamW.

#![allow(unused_imports, unused_variables)]
use std::ops::Range;
use super::*;

pub(super) fn grad_norm(grads: &CpuTensor, norm: &mut CpuTensor) -> Result<()> {
    todo!()
}

pub(super) fn adamw(spec: AdamW, grads: &CpuTensor, norm: &CpuTensor, params: &mut CpuTensor, first_moment: &mut CpuTensor, second_moment: &mut CpuTensor) -> Result<()> {
    todo!()
}
