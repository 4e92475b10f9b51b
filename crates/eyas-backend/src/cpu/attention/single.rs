//! Attention of one query: generation. Keys and values are read where they lie, since nothing is used twice that
//! would repay laying them out.

use super::Piece;
use super::first_key;
use super::forward::{KEYS, Output, Source};
use super::tile::{Running, add_to, pack_scaled, scale, softmax_row};
use crate::backend::DeviceTensor;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{LANES, sum, vectorised};
use crate::cpu::{CpuBackend, CpuTensor};
use crate::spec::AttentionSpec;

/// Attention of a piece with one query, at `position` of its sequence, over `source`. There is no `lse`.
pub(super) fn attend_one(
    scratch: &Scratch,
    spec: &AttentionSpec<CpuBackend>,
    piece: &Piece,
    position: usize,
    qkv: &CpuTensor,
    source: Source<'_>,
    output: Output<'_>,
) {
    let (dim, heads) = (spec.layout.head_dim, piece.heads.len());
    let Some(out) = output.out.into_iter().next() else { return };
    let mut queries = scratch.take::<f32>(heads * dim);
    for (head, query) in piece.heads.clone().zip(queries.chunks_exact_mut(dim)) {
        let column = piece.queries.start * spec.layout.width() + spec.layout.query(head);
        pack_scaled(&qkv.data()[column..][..dim], spec.scale, query);
    }
    out.fill(0.0);
    let mut running = vec![Running::START; heads];
    let mut scores = [0.0; KEYS];
    let first = first_key(spec.window, position);
    for start in (first / KEYS * KEYS..=position).step_by(KEYS) {
        let seen = first.max(start)..(position + 1).min(start + KEYS);
        let scores = &mut scores[..seen.len()];
        let (keys, values) =
            (&source.keys[seen.start * source.stride..], &source.values[seen.start * source.stride..]);
        for (i, (query, out)) in queries.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
            dots(query, keys, source.stride, scores);
            if let Some(alibi) = &spec.alibi {
                let biases = (piece.heads.start + i) * alibi.shape().1;
                add_to(&alibi.data()[biases + seen.start..][..seen.len()], scores);
            }
            let factor = softmax_row(scores, &mut running[i]);
            if factor != 1.0 {
                scale(out, factor);
            }
            add_weighted(scores, values, source.stride, out);
        }
    }
    for (out, running) in out.chunks_exact_mut(dim).zip(running) {
        scale(out, 1.0 / running.total);
    }
}

vectorised! {
    /// `out[j] = x . rows[j]`, rows `stride` apart.
    fn dots(x: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
        for (j, out) in out.iter_mut().enumerate() {
            *out = sum([x, &rows[j * stride..][..x.len()]], |[x, y]| x * y);
        }
    }
}

vectorised! {
    /// `out += sum_j weights[j] rows[j]`, rows `stride` apart.
    fn add_weighted(weights: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
        /// Sums that stay in registers.
        const BLOCK: usize = 4 * LANES;
        let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
        let done = blocks.len() * BLOCK;
        for (b, out) in blocks.iter_mut().enumerate() {
            let mut sums = *out;
            for (j, &weight) in weights.iter().enumerate() {
                let row: &[f32; BLOCK] = rows[j * stride + b * BLOCK..].first_chunk().expect("a row's block");
                for l in 0..BLOCK {
                    sums[l] = weight.mul_add(row[l], sums[l]);
                }
            }
            *out = sums;
        }
        for (j, &weight) in weights.iter().enumerate() {
            let row = &rows[j * stride + done..][..rest.len()];
            for (out, &x) in rest.iter_mut().zip(row) {
                *out = weight.mul_add(x, *out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_weighed_and_multiplied() {
        for dim in [5, 64, 100] {
            let (stride, n) = (dim + 3, 7);
            let rows: Vec<f32> = (0..n * stride).map(|i| (i * 37 % 101) as f32).collect();
            let x: Vec<f32> = (0..dim).map(|i| (i % 5) as f32).collect();
            let mut out = vec![0.0; n];
            dots(&x, &rows, stride, &mut out);
            for (j, &out) in out.iter().enumerate() {
                let want: f32 = (0..dim).map(|i| x[i] * rows[j * stride + i]).sum();
                assert_eq!(out, want, "row {j} of {dim}");
            }
            let mut sums = x.clone();
            let weights: Vec<f32> = (0..n).map(|j| j as f32).collect();
            add_weighted(&weights, &rows, stride, &mut sums);
            for (i, &sum) in sums.iter().enumerate() {
                let want: f32 = (0..n).map(|j| weights[j] * rows[j * stride + i]).sum();
                assert_eq!(sum, x[i] + want, "element {i} of {dim}");
            }
        }
    }
}
