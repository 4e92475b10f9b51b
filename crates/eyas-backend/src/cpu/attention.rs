//! Causal attention on the flat token axis, forward and backward, and over the key/value cache.

#![allow(unused_imports, unused_variables)]
use std::ops::Range;
use super::*;

pub(super) fn attention(batch: &CpuBatch, spec: &AttentionSpec<CpuBackend>, qkv: &CpuTensor, out: &mut CpuTensor, lse: &mut CpuTensor) -> Result<()> {
    todo!()
}

pub(super) fn attention_backward(batch: &CpuBatch, spec: &AttentionSpec<CpuBackend>, qkv: &CpuTensor, out: &CpuTensor, lse: &CpuTensor, dout: &CpuTensor, dqkv: &mut CpuTensor) -> Result<()> {
    todo!()
}

pub(super) fn cache_write(batch: &CpuBatch, layout: &QkvLayout, positions: usize, qkv: &CpuTensor, keys: &mut CpuTensor, values: &mut CpuTensor) -> Result<()> {
    todo!()
}

pub(super) fn attention_cached(batch: &CpuBatch, spec: &AttentionSpec<CpuBackend>, positions: usize, qkv: &CpuTensor, keys: &CpuTensor, values: &CpuTensor, out: &mut CpuTensor) -> Result<()> {
    todo!()
}
