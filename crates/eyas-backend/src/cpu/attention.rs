//! Causal attention on the flat token axis, forward and backward, and over the key/value cache.
//!
//! The work is cut into [`Piece`]s: some queries of one sequence with some of the heads that share a key/value head.
//! The (query, head) pairs of a piece are the rows of its products, so keys and values are prepared once for all of
//! them, whether the model is multi-head, grouped or multi-query. The cut depends on shapes alone. Tiles of keys
//! start at multiples of a constant within the sequence, so a row's result depends on nothing but its own sequence:
//! not on its neighbours in the batch, nor on how the sequence was cut.

mod backward;
mod cached;
mod forward;
mod product;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

pub(super) use backward::attention_backward;
pub(super) use cached::{attention_cached, cache_write};

use self::forward::{Output, Source, attend};
use super::layout::{check_layout, split_columns};
use super::scratch::Scratch;
use super::{CpuBackend, CpuBatch, CpuTensor};
use crate::backend::DeviceTensor;
use crate::spec::{AttentionSpec, QkvLayout, check_shape};
use crate::{Error, Result};

pub(super) fn attention(
    scratch: &Scratch,
    batch: &CpuBatch,
    spec: &AttentionSpec<CpuBackend>,
    qkv: &CpuTensor,
    out: &mut CpuTensor,
    lse: &mut CpuTensor,
) -> Result<()> {
    let (layout, tokens) = (&spec.layout, batch.batch.tokens());
    check_spec("attention", spec, batch.batch.max_seqlen())?;
    check_shape("attention", "qkv", qkv, tokens, layout.width())?;
    check_shape("attention", "out", out, tokens, layout.heads * layout.head_dim)?;
    check_shape("attention", "lse", lse, tokens, layout.heads)?;

    let pieces = pieces(batch.batch.ranges(), layout, usize::MAX);
    let outputs = split_outputs(&pieces, layout, out.rows_mut(tokens), Some(lse.rows_mut(tokens)));
    pieces.par_iter().zip(outputs).for_each(|(piece, output)| {
        let rows = &qkv.data()[piece.sequence.start * layout.width()..piece.sequence.end * layout.width()];
        let source = Source {
            keys: &rows[layout.key(piece.kv_head)..],
            values: &rows[layout.value(piece.kv_head)..],
            stride: layout.width(),
        };
        attend(scratch, spec, piece, piece.queries.start - piece.sequence.start, qkv, source, output);
    });
    Ok(())
}

/// Queries of one sequence with heads that share a key/value head.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    /// Numbers the sequence in the batch.
    number: usize,
    /// Its tokens on the flat axis.
    sequence: Range<usize>,
    /// The piece's queries on the flat axis.
    queries: Range<usize>,
    kv_head: usize,
    /// The piece's query heads.
    heads: Range<usize>,
}

impl Piece {
    /// (Query, head) pairs; row `r` is query `r / heads.len()` with head `r % heads.len()`.
    fn rows(&self) -> usize {
        self.queries.len() * self.heads.len()
    }
}

/// The first key that the query at `position` sees.
fn first_key(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// The first position from which on no query sees the key at `position`.
fn end_of_sight(window: Option<usize>, position: usize) -> usize {
    window.map_or(usize::MAX, |window| position.saturating_add(window))
}

/// Rows that make a piece worth preparing its keys and values for.
const PIECE_ROWS: usize = 384;
/// Heads that a piece keeps together as long as there are enough pieces.
const PIECE_HEADS: usize = 4;

/// Cuts the sequences into pieces, at most about `most` for each sequence and key/value head: ordered by sequence,
/// queries, key/value head, heads.
fn pieces(sequences: impl Iterator<Item = Range<usize>>, layout: &QkvLayout, most: usize) -> Vec<Piece> {
    let group = layout.group();
    let mut pieces = Vec::new();
    for (number, sequence) in sequences.enumerate() {
        let wanted = (sequence.len() * group).div_ceil(PIECE_ROWS).clamp(1, most);
        let head_cuts = wanted.min(group.div_ceil(PIECE_HEADS));
        let query_cuts = wanted.div_ceil(head_cuts).min(sequence.len());
        for queries in cut(sequence.clone(), query_cuts) {
            for kv_head in 0..layout.kv_heads {
                for heads in cut(kv_head * group..(kv_head + 1) * group, head_cuts) {
                    let (sequence, queries) = (sequence.clone(), queries.clone());
                    pieces.push(Piece { number, sequence, queries, kv_head, heads });
                }
            }
        }
    }
    pieces
}

/// Cuts a range into `parts` of nearly equal length.
fn cut(range: Range<usize>, parts: usize) -> impl Iterator<Item = Range<usize>> {
    let (start, len) = (range.start, range.len());
    (0..parts).map(move |i| start + i * len / parts..start + (i + 1) * len / parts)
}

/// The pieces of the same queries, which lie side by side, with those queries.
fn same_queries(pieces: &[Piece]) -> impl Iterator<Item = (Range<usize>, &[Piece])> {
    pieces.chunk_by(|a, b| a.queries == b.queries).map(|pieces| (pieces[0].queries.clone(), pieces))
}

/// Shares the rows of `out` and `lse` out among the pieces.
fn split_outputs<'a>(
    pieces: &[Piece],
    layout: &QkvLayout,
    mut out: &'a mut [f32],
    mut lse: Option<&'a mut [f32]>,
) -> Vec<Output<'a>> {
    let mut outputs = Vec::with_capacity(pieces.len());
    for (queries, pieces) in same_queries(pieces) {
        let split = |rows: &mut &'a mut [f32], elements: usize| {
            let (now, rest) = std::mem::take(rows).split_at_mut(queries.len() * layout.heads * elements);
            *rows = rest;
            let columns: Vec<_> =
                pieces.iter().map(|p| p.heads.start * elements..p.heads.end * elements).collect();
            let mut parts = Vec::new();
            parts.resize_with(pieces.len(), || Vec::with_capacity(queries.len()));
            split_columns(now, layout.heads * elements, &columns, &mut parts);
            parts
        };
        let out = split(&mut out, layout.head_dim);
        match &mut lse {
            Some(lse) => {
                let lse = split(lse, 1);
                outputs.extend(out.into_iter().zip(lse).map(|(out, lse)| Output { out, lse }));
            }
            None => outputs.extend(out.into_iter().map(|out| Output { out, lse: Vec::new() })),
        }
    }
    outputs
}

/// Checks the layout, and that the biases reach as far as the longest sequence.
fn check_spec(op: &'static str, spec: &AttentionSpec<CpuBackend>, longest: usize) -> Result<()> {
    check_layout(op, &spec.layout)?;
    if spec.window == Some(0) {
        return Err(Error::Shape { op, reason: "a window of 0 hides even the token itself".into() });
    }
    if let Some(alibi) = &spec.alibi {
        let positions = alibi.shape().1;
        check_shape(op, "alibi", alibi, spec.layout.heads, positions)?;
        if positions < longest {
            return Err(Error::Shape {
                op,
                reason: format!("alibi has {positions} positions; the longest sequence has {longest}"),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_query_and_head_once() {
        let layouts =
            [QkvLayout::contiguous(9, 3, 64), QkvLayout::contiguous(71, 1, 64), QkvLayout::grouped(8, 8, 64)];
        for layout in layouts {
            for most in [8, usize::MAX] {
                let mut seen = vec![0; 700 * layout.heads];
                for piece in pieces([0..1, 1..130, 130..700].into_iter(), &layout, most) {
                    assert!(piece.heads.clone().all(|head| head / layout.group() == piece.kv_head));
                    assert!(piece.rows() > 0);
                    for query in piece.queries {
                        piece.heads.clone().for_each(|head| seen[query * layout.heads + head] += 1);
                    }
                }
                assert!(seen.iter().all(|&n| n == 1));
            }
        }
    }

    #[test]
    fn a_piece_limit_bounds_the_partial_sums() {
        let layout = QkvLayout::contiguous(71, 1, 64);
        assert_eq!(pieces(std::iter::once(0..1024), &layout, 8).len(), 8);
        assert!(pieces(std::iter::once(0..1024), &layout, usize::MAX).len() > 100);
    }
}
