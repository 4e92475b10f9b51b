//! The key/value cache: writing to it, and attention over it.

use rayon::prelude::*;

use super::forward::{Source, attend};
use super::{check_spec, pieces, split_outputs};
use crate::cpu::layout::check_layout;
use crate::cpu::scratch::Scratch;
use crate::cpu::{CpuBackend, CpuBatch, CpuTensor};
use crate::spec::{AttentionSpec, QkvLayout, check_shape};
use crate::{Error, Result};

/// Multiply-adds of keys that outweigh handing them over.
const TASK: usize = 1 << 15;

pub(in crate::cpu) fn cache_write(
    batch: &CpuBatch,
    layout: &QkvLayout,
    positions: usize,
    qkv: &CpuTensor,
    keys: &mut CpuTensor,
    values: &mut CpuTensor,
) -> Result<()> {
    check_layout("cache_write", layout)?;
    check_cache("cache_write", batch, layout, positions, keys, values)?;
    let (width, dim, cached) = (layout.width(), layout.head_dim, layout.kv_heads * layout.head_dim);
    check_shape("cache_write", "qkv", qkv, batch.batch.tokens(), width)?;
    for (tokens, &slot) in batch.batch.ranges().zip(batch.batch.slots()) {
        for token in tokens {
            let row = slot as usize * positions + batch.batch.positions()[token] as usize;
            let qkv = &qkv.data()[token * width..][..width];
            let (keys, values) =
                (&mut keys.data[row * cached..][..cached], &mut values.data[row * cached..][..cached]);
            for head in 0..layout.kv_heads {
                keys[head * dim..][..dim].copy_from_slice(&qkv[layout.key(head)..][..dim]);
                values[head * dim..][..dim].copy_from_slice(&qkv[layout.value(head)..][..dim]);
            }
        }
    }
    Ok(())
}

pub(in crate::cpu) fn attention_cached(
    scratch: &Scratch,
    batch: &CpuBatch,
    spec: &AttentionSpec<CpuBackend>,
    positions: usize,
    qkv: &CpuTensor,
    keys: &CpuTensor,
    values: &CpuTensor,
    out: &mut CpuTensor,
) -> Result<()> {
    let (layout, tokens) = (&spec.layout, batch.batch.tokens());
    let longest = batch.batch.positions().iter().max().map_or(0, |&p| p as usize + 1);
    check_spec("attention_cached", spec, longest)?;
    check_cache("attention_cached", batch, layout, positions, keys, values)?;
    check_shape("attention_cached", "qkv", qkv, tokens, layout.width())?;
    check_shape("attention_cached", "out", out, tokens, layout.heads * layout.head_dim)?;

    let stride = layout.kv_heads * layout.head_dim;
    let pieces = pieces(batch.batch.ranges(), layout, usize::MAX);
    let outputs = split_outputs(&pieces, layout, out.rows_mut(tokens), None);
    // Products of every query and key, for a piece: pieces too small to be handed over stay with this thread.
    let work = longest * tokens.div_ceil(batch.batch.sequences().max(1)) * layout.group() * layout.head_dim;
    let together = TASK.div_ceil(work.max(1));
    pieces.par_iter().zip(outputs).with_min_len(together).for_each(|(piece, output)| {
        let slot = batch.batch.slots()[piece.number] as usize;
        let head = slot * positions * stride + piece.kv_head * layout.head_dim;
        let source = Source { keys: &keys.data()[head..], values: &values.data()[head..], stride };
        let position = batch.batch.positions()[piece.queries.start] as usize;
        attend(scratch, spec, piece, position, qkv, source, output);
    });
    Ok(())
}

/// Checks that the cache has the shape of the layout, and the slots and positions of the batch.
fn check_cache(
    op: &'static str,
    batch: &CpuBatch,
    layout: &QkvLayout,
    positions: usize,
    keys: &CpuTensor,
    values: &CpuTensor,
) -> Result<()> {
    let slots = batch.batch.slots().iter().max().map_or(0, |&slot| slot as usize + 1);
    let rows = slots.checked_mul(positions).ok_or_else(|| Error::Shape {
        op,
        reason: format!("{slots} slots of {positions} positions are more than memory can address"),
    })?;
    check_shape(op, "keys", keys, rows, layout.kv_heads * layout.head_dim)?;
    check_shape(op, "values", values, rows, layout.kv_heads * layout.head_dim)?;
    match batch.batch.positions().iter().find(|&&position| position as usize >= positions) {
        None => Ok(()),
        Some(position) => Err(Error::Batch(format!(
            "a token has the position {position}; a slot of the cache holds {positions}"
        ))),
    }
}
