//! Activations, forward and backward.

#![allow(unused_imports, unused_variables)]
use std::ops::Range;
use super::*;

pub(super) fn activation(tokens: usize, kind: Activation, x: &CpuTensor, y: &mut CpuTensor) -> Result<()> {
    todo!()
}

pub(super) fn activation_backward(tokens: usize, kind: Activation, x: &CpuTensor, dy: &CpuTensor, dx: &mut CpuTensor) -> Result<()> {
    todo!()
}
