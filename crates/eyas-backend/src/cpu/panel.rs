//! The right-hand operands of the products, packed into the panels that the kernels read.
//!
//! A panel holds `NR` columns: for each [`Kernel::STEP`] elements along the depth, those of the first column, of the
//! second, and so on. It is made right before it is used, from 4-bit codes too, so that no dequantised copy of a
//! weight exists beyond the block of it in the cache.

use std::ops::Range;

use half::bf16;

use super::CpuWeight;
use super::dropout::Mask;
use super::microkernel::{Element, Kernel};

/// Where the right-hand operand `b` `[depth, cols]` of a product comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// `b = W`.
    Weight(&'a CpuWeight),
    /// `b = W^T`.
    WeightTransposed(&'a CpuWeight),
    /// `b = scale * M`, rows of `M` `stride` elements apart.
    Matrix { values: &'a [f32], stride: usize, scale: f32 },
    /// `b = scale * M^T`.
    MatrixTransposed { values: &'a [f32], stride: usize, scale: f32 },
    /// `b = dropout(M)`: rows are tokens.
    Dropped { values: &'a [f32], stride: usize, mask: Mask },
}

impl Source<'_> {
    /// Whether a row of the source is a column of `b`.
    fn is_transposed(&self) -> bool {
        matches!(self, Self::WeightTransposed(_) | Self::MatrixTransposed { .. })
    }

    /// Reads part of a row of the source.
    fn read(&self, row: usize, col: usize, out: &mut [f32]) {
        match *self {
            Self::Weight(weight) | Self::WeightTransposed(weight) => weight.read(row, col, out),
            Self::Matrix { values, stride, scale } | Self::MatrixTransposed { values, stride, scale } => {
                prefetch(values, (row + AHEAD) * stride + col, out.len());
                let source = &values[row * stride + col..][..out.len()];
                for (out, value) in out.iter_mut().zip(source) {
                    *out = value * scale;
                }
            }
            Self::Dropped { values, stride, mask } => {
                prefetch(values, (row + AHEAD) * stride + col, out.len());
                mask.apply::<false>(row, col, &values[row * stride + col..][..out.len()], out);
            }
        }
    }
}

/// Rows that are fetched ahead: a block's rows are far apart, which the processor does not foresee.
const AHEAD: usize = 8;

/// Asks for elements to be brought into the cache, as far as they exist.
#[inline]
fn prefetch(values: &[f32], first: usize, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in values.get(first..).unwrap_or_default().chunks(16).take(len.div_ceil(16)) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, which changes nothing a program can see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

/// The depth as packed.
pub(super) const fn padded_depth<K: Kernel>(depth: usize) -> usize {
    depth.next_multiple_of(K::GRAIN)
}

/// Elements of the panels of `depth x cols`.
pub(super) const fn panels_len<K: Kernel>(depth: usize, cols: usize) -> usize {
    padded_depth::<K>(depth) * cols.next_multiple_of(K::NR)
}

/// `f32` values that [`pack`] needs to work in.
pub(super) const fn staging_len<K: Kernel>(depth: usize, cols: usize) -> usize {
    let transposed = padded_depth::<K>(depth) * K::NR;
    let straight = cols.next_multiple_of(K::NR) * K::STEP;
    if transposed > straight { transposed } else { straight }
}

/// Packs columns `cols` of `b` at depths `depth`, filling up with zeros.
///
/// `staging` and `panels` are as long as [`staging_len`] and [`panels_len`] say.
pub(super) fn pack<K: Kernel>(
    source: &Source<'_>,
    depth: Range<usize>,
    cols: Range<usize>,
    staging: &mut [f32],
    panels: &mut [K::Element],
) {
    let padded = padded_depth::<K>(depth.len());
    let panel_len = padded * K::NR;
    if source.is_transposed() {
        let staging = &mut staging[..panel_len];
        for (p, panel) in
            panels[..panels_len::<K>(depth.len(), cols.len())].chunks_exact_mut(panel_len).enumerate()
        {
            for (j, row) in staging.chunks_exact_mut(padded).enumerate() {
                let col = cols.start + p * K::NR + j;
                if col < cols.end {
                    source.read(col, depth.start, &mut row[..depth.len()]);
                    row[depth.len()..].fill(0.0);
                } else {
                    row.fill(0.0);
                }
            }
            K::Element::pack_columns(staging, panel, K::NR);
        }
        return;
    }
    let width = cols.len().next_multiple_of(K::NR);
    let staging = &mut staging[..width * K::STEP];
    for step in 0..padded / K::STEP {
        for (k, row) in staging.chunks_exact_mut(width).enumerate() {
            let k = depth.start + step * K::STEP + k;
            if k < depth.end {
                source.read(k, cols.start, &mut row[..cols.len()]);
                row[cols.len()..].fill(0.0);
            } else {
                row.fill(0.0);
            }
        }
        for p in 0..width / K::NR {
            let panel = &mut panels[p * panel_len + step * K::NR * K::STEP..][..K::NR * K::STEP];
            K::Element::pack_rows(staging, width, p * K::NR, panel);
        }
    }
}

/// How a type is laid out in a panel.
pub(super) trait Layout: Sized {
    /// `columns` rows of `source`, each a column of the panel.
    fn pack_columns(source: &[f32], panel: &mut [Self], columns: usize);
    /// The rows of one step, `stride` apart, from column `first` on.
    fn pack_rows(source: &[f32], stride: usize, first: usize, panel: &mut [Self]);
    /// Rounds values.
    fn narrow_row(source: &[f32], out: &mut [Self]);
}

impl Layout for f32 {
    fn pack_columns(source: &[f32], panel: &mut [Self], columns: usize) {
        transpose(bytemuck::cast_slice(source), columns, bytemuck::cast_slice_mut(panel));
    }

    fn pack_rows(source: &[f32], _stride: usize, first: usize, panel: &mut [Self]) {
        // Eight at a time, so that it is no call.
        let source = &source[first..first + panel.len()];
        for (panel, source) in panel.as_chunks_mut::<8>().0.iter_mut().zip(source.as_chunks::<8>().0) {
            *panel = *source;
        }
    }

    fn narrow_row(source: &[f32], out: &mut [Self]) {
        out.copy_from_slice(source);
    }
}

impl Layout for bf16 {
    fn pack_columns(source: &[f32], panel: &mut [Self], columns: usize) {
        // Two neighbours along the depth make a word, and the words are transposed. A few at a time, on the stack.
        const WORDS: usize = 64;
        let depth = source.len() / columns;
        let panel: &mut [u32] = bytemuck::cast_slice_mut(panel);
        let mut words = [0u32; 32 * WORDS];
        for start in (0..depth).step_by(2 * WORDS) {
            let len = (depth - start).min(2 * WORDS) / 2;
            for (words, row) in words.chunks_exact_mut(len).zip(source.chunks_exact(depth)) {
                bf16::narrow_row(&row[start..start + 2 * len], bytemuck::cast_slice_mut(words));
            }
            transpose(&words[..columns * len], columns, &mut panel[start / 2 * columns..][..columns * len]);
        }
    }

    fn pack_rows(source: &[f32], stride: usize, first: usize, panel: &mut [Self]) {
        let (even, odd) = (&source[first..], &source[stride + first..]);
        for ((pair, &even), &odd) in panel.chunks_exact_mut(2).zip(even).zip(odd) {
            pair[0] = bf16::narrow(even);
            pair[1] = bf16::narrow(odd);
        }
    }

    fn narrow_row(source: &[f32], out: &mut [Self]) {
        for (out, &source) in out.iter_mut().zip(source) {
            *out = bf16::narrow(source);
        }
    }
}

/// `out[k][row] = source[row][k]`, both without gaps.
fn transpose(source: &[u32], rows: usize, out: &mut [u32]) {
    let depth = source.len() / rows;
    assert!(source.len() == rows * depth && out.len() == source.len());
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if rows.is_multiple_of(8) && is_x86_feature_detected!("avx2") {
        done = depth / 8 * 8;
        // SAFETY: the processor has AVX2; the lengths are checked above.
        unsafe { transpose_avx2(source, rows, depth, out) };
    }
    for k in done..depth {
        for row in 0..rows {
            out[k * rows + row] = source[row * depth + k];
        }
    }
}

/// [`transpose`] of the first `depth / 8 * 8` columns.
///
/// # Safety
/// The processor has AVX2; `rows` is a multiple of 8; both slices hold `rows * depth` words.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_avx2(source: &[u32], rows: usize, depth: usize, out: &mut [u32]) {
    use std::arch::x86_64::*;
    for k in (0..depth / 8 * 8).step_by(8) {
        for row in (0..rows).step_by(8) {
            let mut r = [_mm256_setzero_ps(); 8];
            for (i, r) in r.iter_mut().enumerate() {
                // SAFETY: row + i < rows and k + 8 <= depth.
                *r = unsafe { _mm256_loadu_ps(source.as_ptr().add((row + i) * depth + k).cast()) };
            }
            let t = [
                _mm256_unpacklo_ps(r[0], r[1]),
                _mm256_unpackhi_ps(r[0], r[1]),
                _mm256_unpacklo_ps(r[2], r[3]),
                _mm256_unpackhi_ps(r[2], r[3]),
                _mm256_unpacklo_ps(r[4], r[5]),
                _mm256_unpackhi_ps(r[4], r[5]),
                _mm256_unpacklo_ps(r[6], r[7]),
                _mm256_unpackhi_ps(r[6], r[7]),
            ];
            let s = [
                _mm256_shuffle_ps::<0b01_00_01_00>(t[0], t[2]),
                _mm256_shuffle_ps::<0b11_10_11_10>(t[0], t[2]),
                _mm256_shuffle_ps::<0b01_00_01_00>(t[1], t[3]),
                _mm256_shuffle_ps::<0b11_10_11_10>(t[1], t[3]),
                _mm256_shuffle_ps::<0b01_00_01_00>(t[4], t[6]),
                _mm256_shuffle_ps::<0b11_10_11_10>(t[4], t[6]),
                _mm256_shuffle_ps::<0b01_00_01_00>(t[5], t[7]),
                _mm256_shuffle_ps::<0b11_10_11_10>(t[5], t[7]),
            ];
            for i in 0..4 {
                // SAFETY: k + i + 4 < depth and row + 8 <= rows.
                unsafe {
                    let low = out.as_mut_ptr().add((k + i) * rows + row).cast();
                    let high = out.as_mut_ptr().add((k + i + 4) * rows + row).cast();
                    _mm256_storeu_ps(low, _mm256_permute2f128_ps::<0x20>(s[i], s[i + 4]));
                    _mm256_storeu_ps(high, _mm256_permute2f128_ps::<0x31>(s[i], s[i + 4]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::microkernel::{PortableBf16, PortableF32};
    use super::*;

    fn check<K: Kernel>() {
        let (rows, cols) = (150, 70);
        let values: Vec<f32> = (0..rows * cols).map(|i| (i % 251) as f32).collect();
        for (depth, width) in [(1, 1), (2, 16), (7, 33), (8, 32), (64, 40), (70, 70)] {
            for transposed in [false, true] {
                let source = if transposed {
                    Source::MatrixTransposed { values: &values, stride: cols, scale: 1.0 }
                } else {
                    Source::Matrix { values: &values, stride: cols, scale: 1.0 }
                };
                let first = 70 - depth.max(width);
                let mut staging = vec![f32::NAN; staging_len::<K>(depth, width)];
                let mut panels = vec![K::Element::narrow(f32::NAN); panels_len::<K>(depth, width)];
                pack::<K>(&source, first..first + depth, first..first + width, &mut staging, &mut panels);
                let padded = padded_depth::<K>(depth);
                for j in 0..width.next_multiple_of(K::NR) {
                    for k in 0..padded {
                        let at = j / K::NR * K::NR * padded
                            + k / K::STEP * K::STEP * K::NR
                            + j % K::NR * K::STEP
                            + k % K::STEP;
                        let (row, col) =
                            if transposed { (first + j, first + k) } else { (first + k, first + j) };
                        let inside = j < width && k < depth;
                        let expected = if inside { values[row * cols + col] } else { 0.0 };
                        assert_eq!(
                            panels[at].widen(),
                            expected,
                            "{depth} x {width} {transposed} at {k}, {j}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn panels_hold_each_column_in_its_place() {
        check::<PortableF32>();
        check::<PortableBf16>();
        check::<crate::cpu::amx::EmulatedAmx>();
    }
}
