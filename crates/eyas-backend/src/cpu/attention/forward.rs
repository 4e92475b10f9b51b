//! One piece of attention, forward: softmax along tiles of keys (Milakov and Gimelshein 2018, as FlashAttention).

use super::product::{COLS, Left, ROWS, Right, product};
use super::tile::{
    Running, add_to, pack_rows, pack_scaled, pack_transposed, padded, scale, scaled, softmax_row,
};
use super::{Piece, end_of_sight, first_key};
use crate::backend::DeviceTensor;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::Level;
use crate::cpu::{CpuBackend, CpuTensor};
use crate::spec::AttentionSpec;

/// Keys in a tile: enough to outweigh the work a tile takes beside its products, few enough that its transposed keys
/// and its values (32 KiB each at heads of 64) stay in the second-level cache.
const KEYS: usize = 128;

/// Keys and values of one sequence and one key/value head, row after row.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    /// Elements from one row to the next.
    pub(super) stride: usize,
}

/// Where a piece puts its results: for each query the columns of its heads. `lse` is empty when nobody asks.
pub(super) struct Output<'a> {
    pub(super) out: Vec<&'a mut [f32]>,
    pub(super) lse: Vec<&'a mut [f32]>,
}

/// Attention of a piece whose first query has the position `first` in its sequence, over `source`.
pub(super) fn attend(
    scratch: &Scratch,
    spec: &AttentionSpec<CpuBackend>,
    piece: &Piece,
    first: usize,
    qkv: &CpuTensor,
    source: Source<'_>,
    output: Output<'_>,
) {
    let (dim, heads, rows) = (spec.layout.head_dim, piece.heads.len(), piece.rows());
    let wide = padded(dim);
    let level = Level::detect();
    let position = |row: usize| first + row / heads;
    let last = position(rows - 1);

    let mut queries = scratch.take::<f32>(rows * dim);
    for (row, packed) in queries.chunks_exact_mut(dim).enumerate() {
        let column = spec.layout.query(piece.heads.start + row % heads);
        let token = piece.queries.start + row / heads;
        pack_scaled(&qkv.data()[token * spec.layout.width() + column..][..dim], spec.scale, packed);
    }
    let mut sums = scratch.take::<f32>(rows * wide);
    sums.fill(0.0);
    let mut running = vec![Running::START; rows];
    let mut keys = scratch.take::<f32>(KEYS * dim);
    // Values that few rows read, and that need no padding, are read where they lie.
    let in_place = rows <= ROWS && dim == wide;
    let mut values = scratch.take::<f32>(if in_place { 0 } else { KEYS * wide });
    let mut scores = scratch.take::<f32>(ROWS * KEYS);

    let mut start = first_key(spec.window, first) / KEYS * KEYS;
    while start <= last {
        let count = KEYS.min(last + 1 - start);
        pack_transposed(level, &source.keys[start * source.stride..], source.stride, count, dim, &mut keys);
        let (values, value_stride) = if in_place {
            (&source.values[start * source.stride..], source.stride)
        } else {
            pack_rows(&source.values[start * source.stride..], source.stride, count, dim, &mut values);
            (&values[..], wide)
        };

        let from = start.saturating_sub(first) * heads;
        let sight = end_of_sight(spec.window, start + count - 1).saturating_sub(first);
        let until = rows.min(sight.saturating_mul(heads));
        for group in (from..until).step_by(ROWS) {
            let n = ROWS.min(until - group);
            // Of the tile, the columns that some row of the group sees, in whole panels.
            let low = first_key(spec.window, position(group)).max(start) - start;
            let high = (position(group + n - 1) + 1).min(start + count) - start;
            let (low, high) = (low / COLS * COLS, high.next_multiple_of(COLS));

            let left = Left { data: &queries[group * dim..], row: dim, col: 1 };
            let right = Right { data: &keys[low * dim..], row: COLS, panel: dim * COLS };
            let panels = (high - low) / COLS;
            product(level, (n, dim, panels), left, right, &mut scores[low..], KEYS, false);
            for i in 0..n {
                let row = group + i;
                let seen = first_key(spec.window, position(row)).max(start + low) - start
                    ..(position(row) + 1).min(start + count) - start;
                let scores = &mut scores[i * KEYS..][..high];
                if let Some(alibi) = &spec.alibi {
                    let head = piece.heads.start + row % heads;
                    add_bias(alibi, head, start, seen.clone(), scores);
                }
                scores[low..seen.start.min(high)].fill(f32::NEG_INFINITY);
                scores[seen.end..].fill(f32::NEG_INFINITY);
                let factor = softmax_row(&mut scores[low..], &mut running[row]);
                if factor != 1.0 {
                    scale(&mut sums[row * wide..][..wide], factor);
                }
            }
            let left = Left { data: &scores[low..], row: KEYS, col: 1 };
            let right = Right { data: &values[low * value_stride..], row: value_stride, panel: COLS };
            let depth = high.min(count) - low;
            product(level, (n, depth, wide / COLS), left, right, &mut sums[group * wide..], wide, true);
        }
        start += KEYS;
    }

    for (i, out) in output.out.into_iter().enumerate() {
        for (j, out) in out.chunks_exact_mut(dim).enumerate() {
            let row = i * heads + j;
            scaled(&sums[row * wide..][..dim], 1.0 / running[row].total, out);
        }
    }
    for (i, lse) in output.lse.into_iter().enumerate() {
        for (j, lse) in lse.iter_mut().enumerate() {
            let Running { largest, total } = running[i * heads + j];
            *lse = largest + total.ln();
        }
    }
}

/// Adds the biases of a head to the scores of the tile's keys in `seen`.
pub(super) fn add_bias(
    alibi: &CpuTensor,
    head: usize,
    start: usize,
    seen: std::ops::Range<usize>,
    scores: &mut [f32],
) {
    let positions = alibi.shape().1;
    add_to(&alibi.data()[head * positions + start..][seen.clone()], &mut scores[seen]);
}
