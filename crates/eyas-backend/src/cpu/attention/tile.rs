//! Keys and values of a tile, laid out for [`super::product`], and the elementwise work on its scores.

use super::product::COLS;
use crate::cpu::simd::{Level, max, sum, vectorised};
use crate::cpu::vexp::exp;

/// `dim` rounded up to whole panels.
pub(super) fn padded(dim: usize) -> usize {
    dim.next_multiple_of(COLS)
}

/// Lays `count` rows of `dim` elements, `stride` apart, out as panels of their transpose: element `i` of row `j` at
/// `(j / 16 * dim + i) * 16 + j % 16`. Rows missing from the last panel are zero.
pub(super) fn pack_transposed(
    level: Level,
    rows: &[f32],
    stride: usize,
    count: usize,
    dim: usize,
    panels: &mut [f32],
) {
    for (p, panel) in panels.chunks_exact_mut(dim * COLS).take(count.div_ceil(COLS)).enumerate() {
        let first = p * COLS;
        let rows = &rows[first * stride..];
        let present = COLS.min(count - first);
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if present == COLS && level > Level::Portable {
            // SAFETY: the processor has the instructions of `level`, AVX2 among them.
            done = unsafe { transpose_avx2(rows, stride, dim, panel) };
        }
        panel[done * COLS..].fill(0.0);
        for j in 0..present {
            for i in done..dim {
                panel[i * COLS + j] = rows[j * stride + i];
            }
        }
    }
}

/// Transposes sixteen rows in squares of eight by eight, as many as fit; returns the elements of a row that are done.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn transpose_avx2(rows: &[f32], stride: usize, dim: usize, panel: &mut [f32]) -> usize {
    use std::arch::x86_64::*;
    let whole = dim - dim % 8;
    if whole == 0 {
        return 0;
    }
    assert!((COLS - 1) * stride + whole <= rows.len() && whole * COLS <= panel.len());
    for half in [0, 8] {
        for i in (0..whole).step_by(8) {
            // SAFETY: eight elements from `i` on of rows `half..half + 8`, and columns `half..half + 8` of rows
            // `i..i + 8` of the panel, are within what was just checked.
            unsafe {
                let row = |j: usize| _mm256_loadu_ps(rows.as_ptr().add((half + j) * stride + i));
                let pairs = [(0, 1), (2, 3), (4, 5), (6, 7)].map(|(a, b)| {
                    let (a, b) = (row(a), row(b));
                    [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)]
                });
                // Columns c and c + 4 of four rows, for c in 0..4.
                let quads = |a: [__m256; 2], b: [__m256; 2]| {
                    [
                        _mm256_shuffle_ps::<0x44>(a[0], b[0]),
                        _mm256_shuffle_ps::<0xee>(a[0], b[0]),
                        _mm256_shuffle_ps::<0x44>(a[1], b[1]),
                        _mm256_shuffle_ps::<0xee>(a[1], b[1]),
                    ]
                };
                let (upper, lower) = (quads(pairs[0], pairs[1]), quads(pairs[2], pairs[3]));
                let target = panel.as_mut_ptr().add(i * COLS + half);
                for c in 0..4 {
                    let (low, high) = (
                        _mm256_permute2f128_ps::<0x20>(upper[c], lower[c]),
                        _mm256_permute2f128_ps::<0x31>(upper[c], lower[c]),
                    );
                    _mm256_storeu_ps(target.add(c * COLS), low);
                    _mm256_storeu_ps(target.add((c + 4) * COLS), high);
                }
            }
        }
    }
    whole
}

/// Copies `count` rows of `dim` elements, `stride` apart, to rows of [`padded`] elements, zero at the end.
pub(super) fn pack_rows(rows: &[f32], stride: usize, count: usize, dim: usize, packed: &mut [f32]) {
    for (j, packed) in packed.chunks_exact_mut(padded(dim)).take(count).enumerate() {
        packed[..dim].copy_from_slice(&rows[j * stride..][..dim]);
        packed[dim..].fill(0.0);
    }
}

vectorised! {
    /// `packed = factor * row`, zero at the end.
    pub(super) fn pack_scaled(row: &[f32], factor: f32, packed: &mut [f32]) {
        let (scaled, rest) = packed.split_at_mut(row.len());
        for (y, x) in scaled.iter_mut().zip(row) {
            *y = factor * x;
        }
        rest.fill(0.0);
    }
}

vectorised! {
    /// `y += x`
    pub(super) fn add_to(x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

vectorised! {
    /// `y = factor * x`
    pub(super) fn scaled(x: &[f32], factor: f32, y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = factor * x;
        }
    }
}

vectorised! {
    /// `y *= factor`
    pub(super) fn scale(y: &mut [f32], factor: f32) {
        for y in y.iter_mut() {
            *y *= factor;
        }
    }
}

vectorised! {
    pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
        sum([x, y], |[x, y]| x * y)
    }
}

/// A row's running softmax: the largest score so far and the sum of exponentials below it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) largest: f32,
    pub(super) total: f32,
}

impl Running {
    pub(super) const START: Self = Self { largest: f32::NEG_INFINITY, total: 0.0 };
}

vectorised! {
    /// Turns a row's scores, minus infinity where it does not see the key, into exponentials below the largest
    /// score so far; what the row summed up before is to be multiplied by the factor returned.
    pub(super) fn softmax_row(scores: &mut [f32], running: &mut Running) -> f32 {
        let largest = max(scores);
        let largest = if largest > running.largest { largest } else { running.largest };
        // A row that has seen no key yet has no largest score to subtract.
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        for score in scores.iter_mut() {
            *score = exp(*score - base);
        }
        let factor = if running.largest == largest { 1.0 } else { exp(running.largest - base) };
        running.largest = largest;
        running.total = running.total.mul_add(factor, sum([&*scores], |[x]| x));
        factor
    }
}

vectorised! {
    /// From scores and the gradient of the probabilities to probabilities and the gradient of the scores:
    /// `p = exp(s - lse)`, `ds = p (dp - delta)`. Minus infinity gives zero for both.
    pub(super) fn softmax_row_backward(scores: &mut [f32], gradient: &mut [f32], lse: f32, delta: f32) {
        let gradient = &mut gradient[..scores.len()];
        for i in 0..scores.len() {
            let p = exp(scores[i] - lse);
            scores[i] = p;
            gradient[i] = p * (gradient[i] - delta);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_transposes_and_pads() {
        for (level, dim) in
            [(Level::Portable, 5), (Level::detect(), 5), (Level::detect(), 19), (Level::detect(), 64)]
        {
            let (stride, count) = (dim + 2, 35);
            let rows: Vec<f32> = (0..stride * count).map(|i| i as f32).collect();
            let mut panels = vec![f32::NAN; 3 * dim * COLS];
            pack_transposed(level, &rows, stride, count, dim, &mut panels);
            let wide = padded(dim);
            let mut packed = vec![f32::NAN; count * wide];
            pack_rows(&rows, stride, count, dim, &mut packed);
            for j in 0..48 {
                for i in 0..dim {
                    let want = if j < count { rows[j * stride + i] } else { 0.0 };
                    assert_eq!(panels[(j / COLS * dim + i) * COLS + j % COLS], want, "row {j}, element {i}");
                }
            }
            for j in 0..count {
                assert_eq!(packed[j * wide..][..dim], rows[j * stride..][..dim]);
                assert!(packed[j * wide + dim..(j + 1) * wide].iter().all(|&x| x == 0.0));
            }
        }
    }

    #[test]
    fn a_row_that_sees_nothing_yet_stays_empty() {
        let mut running = Running::START;
        let mut scores = [f32::NEG_INFINITY; 16];
        assert_eq!(softmax_row(&mut scores, &mut running), 1.0);
        assert_eq!(scores, [0.0; 16]);
        assert_eq!(running.total, 0.0);
        let mut scores = [f32::NEG_INFINITY; 16];
        scores[3] = 5.0;
        softmax_row(&mut scores, &mut running);
        assert_eq!((running.largest, running.total, scores[3]), (5.0, 1.0, 1.0));
        let mut scores = [6.0; 16];
        let factor = softmax_row(&mut scores, &mut running);
        assert!((running.total - (16.0 + factor)).abs() < 1e-6 && (factor - (-1.0f32).exp()).abs() < 1e-6);
    }
}
