//! Attention's gradient, by FlashAttention-2's recurrences (Dao 2023): probabilities are computed again from the
//! log-sum-exp, tile by tile.
//!
//! A piece sums the gradients of keys and values over its own rows; a second pass adds the pieces up in their order.

use std::ops::Range;

use rayon::prelude::*;

use super::forward::add_bias;
use super::product::{COLS, Left, ROWS, Right, product};
use super::tile::{
    add_to, dot, pack_rows, pack_scaled, pack_transposed, padded, scaled, softmax_row_backward,
};
use super::{Piece, check_spec, end_of_sight, first_key, pieces, same_queries};
use crate::Result;
use crate::cpu::layout::split_columns;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::Level;
use crate::cpu::{CpuBackend, CpuBatch, CpuTensor};
use crate::spec::{AttentionSpec, check_shape};

/// Keys in a tile: whole panels and whole groups of [`ROWS`].
const KEYS: usize = 96;
/// Rows in a tile, whole groups of [`ROWS`].
const BLOCK: usize = 48;
/// Pieces for each sequence and key/value head; bounds the memory of their partial sums.
const MOST_PIECES: usize = 8;

pub(in crate::cpu) fn attention_backward(
    scratch: &Scratch,
    batch: &CpuBatch,
    spec: &AttentionSpec<CpuBackend>,
    qkv: &CpuTensor,
    out: &CpuTensor,
    lse: &CpuTensor,
    dout: &CpuTensor,
    dqkv: &mut CpuTensor,
) -> Result<()> {
    const OP: &str = "attention_backward";
    let (layout, tokens) = (&spec.layout, batch.batch.tokens());
    let (width, dim) = (layout.width(), layout.head_dim);
    check_spec(OP, spec, batch.batch.max_seqlen())?;
    check_shape(OP, "qkv", qkv, tokens, width)?;
    check_shape(OP, "out", out, tokens, layout.heads * dim)?;
    check_shape(OP, "lse", lse, tokens, layout.heads)?;
    check_shape(OP, "dout", dout, tokens, layout.heads * dim)?;
    check_shape(OP, "dqkv", dqkv, tokens, width)?;

    let pieces = pieces(batch.batch.ranges(), layout, MOST_PIECES);
    let spans: Vec<Range<usize>> = pieces.iter().map(|piece| key_span(piece, spec.window)).collect();
    let lengths: Vec<usize> = spans.iter().map(|span| 2 * span.len() * padded(dim)).collect();
    let mut memory = scratch.take::<f32>(lengths.iter().sum());
    let mut partials = split_lengths(&mut memory, &lengths);

    // Rows of the queries' gradient by piece; of the keys' and values' by sequence and key/value head.
    let mut queries = Vec::with_capacity(pieces.len());
    let mut targets = Vec::new();
    targets.resize_with(batch.batch.sequences() * 2 * layout.kv_heads, Vec::new);
    let mut rest = dqkv.rows_mut(tokens);
    for (range, pieces) in same_queries(&pieces) {
        let rows = rest.split_off_mut(..range.len() * width).unwrap_or_default();
        let mut columns: Vec<_> =
            pieces.iter().map(|p| layout.query(p.heads.start)..layout.query(p.heads.end - 1) + dim).collect();
        columns.extend(
            (0..layout.kv_heads)
                .flat_map(|h| [layout.key(h), layout.value(h)])
                .map(|start| start..start + dim),
        );
        let mut parts = Vec::new();
        parts.resize_with(columns.len(), || Vec::with_capacity(range.len()));
        split_columns(rows, width, &columns, &mut parts);
        let shared = parts.split_off(pieces.len());
        queries.extend(parts);
        let first = pieces[0].number * 2 * layout.kv_heads;
        targets[first..].iter_mut().zip(shared).for_each(|(target, part)| target.extend(part));
    }

    pieces.par_iter().zip(&mut partials).zip(queries).for_each(|((piece, partial), dqueries)| {
        piece_backward(scratch, spec, piece, [qkv, out, lse, dout], partial, dqueries);
    });

    let sequences: Vec<Range<usize>> = batch.batch.ranges().collect();
    targets.par_chunks_exact_mut(2).enumerate().for_each(|(i, targets)| {
        let (number, kv_head) = (i / layout.kv_heads, i % layout.kv_heads);
        let parts: Vec<_> = (pieces.iter().zip(&spans).zip(&partials))
            .filter(|((piece, _), _)| piece.number == number && piece.kv_head == kv_head)
            .map(|((_, span), partial)| (span, partial.split_at(partial.len() / 2)))
            .collect();
        for (which, rows) in targets.iter_mut().enumerate() {
            for (key, row) in (0..sequences[number].len()).zip(rows) {
                row.fill(0.0);
                for (span, (dkeys, dvalues)) in parts.iter().filter(|(span, _)| span.contains(&key)) {
                    let partial = if which == 0 { dkeys } else { dvalues };
                    add_to(&partial[(key - span.start) * padded(dim)..][..dim], row);
                }
            }
        }
    });
    Ok(())
}

/// The keys that a piece's queries see, in their sequence, from a tile's start on.
fn key_span(piece: &Piece, window: Option<usize>) -> Range<usize> {
    let first = piece.queries.start - piece.sequence.start;
    first_key(window, first) / KEYS * KEYS..piece.queries.end - piece.sequence.start
}

/// Splits a slice into parts of these lengths.
fn split_lengths<'a>(mut memory: &'a mut [f32], lengths: &[usize]) -> Vec<&'a mut [f32]> {
    let take = |&len: &usize| memory.split_off_mut(..len).unwrap_or_default();
    lengths.iter().map(take).collect()
}

/// The gradient of a piece: of its queries, set, and of its keys and values, to the halves of `partial`.
fn piece_backward(
    scratch: &Scratch,
    spec: &AttentionSpec<CpuBackend>,
    piece: &Piece,
    [qkv, out, lse, dout]: [&CpuTensor; 4],
    partial: &mut [f32],
    dqueries: Vec<&mut [f32]>,
) {
    let layout = &spec.layout;
    let (dim, heads, rows, width) = (layout.head_dim, piece.heads.len(), piece.rows(), layout.width());
    let wide = padded(dim);
    let level = Level::detect();
    let first = piece.queries.start - piece.sequence.start;
    let position = |row: usize| first + row / heads;
    let span = key_span(piece, spec.window);
    partial.fill(0.0);
    let (dkeys, dvalues) = partial.split_at_mut(span.len() * wide);

    let mut queries = scratch.take::<f32>(rows * wide);
    let mut gradients = scratch.take::<f32>(rows * wide);
    let mut statistics = scratch.take::<f32>(2 * rows);
    for row in 0..rows {
        let (token, head) = (piece.queries.start + row / heads, piece.heads.start + row % heads);
        let query = &qkv.data()[token * width + layout.query(head)..][..dim];
        pack_scaled(query, spec.scale, &mut queries[row * wide..][..wide]);
        let column = (token * layout.heads + head) * dim..(token * layout.heads + head + 1) * dim;
        let gradient = &dout.data()[column.clone()];
        pack_scaled(gradient, 1.0, &mut gradients[row * wide..][..wide]);
        statistics[2 * row] = lse.data()[token * layout.heads + head];
        statistics[2 * row + 1] = dot(gradient, &out.data()[column]);
    }
    let mut sums = scratch.take::<f32>(rows * wide);
    sums.fill(0.0);
    let mut keys = scratch.take::<f32>(KEYS * wide);
    let mut keys_transposed = scratch.take::<f32>(KEYS * dim);
    let mut values_transposed = scratch.take::<f32>(KEYS * dim);
    let mut scores = scratch.take::<f32>(BLOCK * KEYS);
    let mut slopes = scratch.take::<f32>(BLOCK * KEYS);

    for start in span.clone().step_by(KEYS) {
        let count = KEYS.min(span.end - start);
        let source = &qkv.data()[(piece.sequence.start + start) * width..];
        let source_keys = &source[layout.key(piece.kv_head)..];
        pack_rows(source_keys, width, count, dim, &mut keys);
        pack_transposed(level, source_keys, width, count, dim, &mut keys_transposed);
        pack_transposed(
            level,
            &source[layout.value(piece.kv_head)..],
            width,
            count,
            dim,
            &mut values_transposed,
        );

        let from = start.saturating_sub(first) * heads;
        let sight = end_of_sight(spec.window, start + count - 1).saturating_sub(first);
        let until = rows.min(sight.saturating_mul(heads));
        for block in (from..until).step_by(BLOCK) {
            let block_rows = BLOCK.min(until - block);
            for offset in (0..block_rows).step_by(ROWS) {
                let (group, n) = (block + offset, ROWS.min(block_rows - offset));
                // Of the tile, the columns that some row of the group sees, in whole panels.
                let low = first_key(spec.window, position(group)).max(start) - start;
                let high = (position(group + n - 1) + 1).min(start + count) - start;
                let (low, high) = (low / COLS * COLS, high.next_multiple_of(COLS));
                let panels = (high - low) / COLS;
                let (scores, slopes) = (&mut scores[offset * KEYS..], &mut slopes[offset * KEYS..]);

                let transposed = |panels| Right { data: panels, row: COLS, panel: dim * COLS };
                let left = Left { data: &queries[group * wide..], row: wide, col: 1 };
                let right = transposed(&keys_transposed[low * dim..]);
                product(level, (n, dim, panels), left, right, &mut scores[low..], KEYS, false);
                let left = Left { data: &gradients[group * wide..], row: wide, col: 1 };
                let right = transposed(&values_transposed[low * dim..]);
                product(level, (n, dim, panels), left, right, &mut slopes[low..], KEYS, false);
                for i in 0..n {
                    let row = group + i;
                    let seen = first_key(spec.window, position(row)).max(start) - start
                        ..(position(row) + 1).min(start + count) - start;
                    let (scores, slopes) = (&mut scores[i * KEYS..][..KEYS], &mut slopes[i * KEYS..][..KEYS]);
                    if let Some(alibi) = &spec.alibi {
                        add_bias(alibi, piece.heads.start + row % heads, start, seen.clone(), scores);
                    }
                    let (lse, delta) = (statistics[2 * row], statistics[2 * row + 1]);
                    let seen = seen.start.min(seen.end)..seen.end;
                    softmax_row_backward(&mut scores[seen.clone()], &mut slopes[seen.clone()], lse, delta);
                    // The products below read whole groups of keys.
                    for tile in [scores, slopes] {
                        tile[..seen.start].fill(0.0);
                        tile[seen.end..].fill(0.0);
                    }
                }
                let left = Left { data: &slopes[low..], row: KEYS, col: 1 };
                let right = Right { data: &keys[low * wide..], row: wide, panel: COLS };
                let depth = high.min(count) - low;
                product(level, (n, depth, wide / COLS), left, right, &mut sums[group * wide..], wide, true);
            }
            for key in (0..count).step_by(ROWS) {
                let n = ROWS.min(count - key);
                // The rows of the block that see one of these keys.
                let top = ((start + key).saturating_sub(first) * heads).max(block) - block;
                let sight = end_of_sight(spec.window, start + key + n - 1).saturating_sub(first);
                let bottom = sight.saturating_mul(heads).min(block + block_rows).max(block) - block;
                if top >= bottom {
                    continue;
                }
                let shape = (n, bottom - top, wide / COLS);
                let target = (start + key - span.start) * wide;
                let packed = |data| Right { data, row: wide, panel: COLS };
                let left = Left { data: &scores[top * KEYS + key..], row: 1, col: KEYS };
                let right = packed(&gradients[(block + top) * wide..]);
                product(level, shape, left, right, &mut dvalues[target..], wide, true);
                let left = Left { data: &slopes[top * KEYS + key..], row: 1, col: KEYS };
                let right = packed(&queries[(block + top) * wide..]);
                product(level, shape, left, right, &mut dkeys[target..], wide, true);
            }
        }
    }

    for (i, dquery) in dqueries.into_iter().enumerate() {
        for (j, dquery) in dquery.chunks_exact_mut(dim).enumerate() {
            scaled(&sums[(i * heads + j) * wide..][..dim], spec.scale, dquery);
        }
    }
}
