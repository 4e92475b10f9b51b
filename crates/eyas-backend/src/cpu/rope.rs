//! Rotary positions.

#![allow(unused_imports, unused_variables)]
use std::ops::Range;
use super::*;

pub(super) fn rope(batch: &CpuBatch, layout: &QkvLayout, rope: &Rope<CpuBackend>, qkv: &mut CpuTensor, inverse: bool) -> Result<()> {
    todo!()
}
