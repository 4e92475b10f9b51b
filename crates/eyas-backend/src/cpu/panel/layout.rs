//! How the kernels' types lie in a panel, and in the rows of a left-hand operand.

use half::bf16;

use super::super::simd::{Level, vectorised};

/// How a type is laid out in a panel.
pub(in super::super) trait Layout: Sized {
    /// Neighbours along the depth that lie side by side: as many as a 32-bit word holds.
    const PER_WORD: usize = size_of::<u32>() / size_of::<Self>();
    /// Elements along the depth that share a scale.
    const GROUP: usize = usize::MAX;
    /// Elements that hold a group's scale, behind it; none where the type has no scales.
    const SCALE: usize = 0;

    /// `columns` rows of `source`, each a column of the panel: one group at most.
    fn pack_columns(source: &[f32], panel: &mut [Self], columns: usize);
    /// `columns` columns of the rows of `source`, `stride` apart, from column `first` on: a step where the type has no
    /// scales, else one group at most.
    fn pack_rows(source: &[f32], stride: usize, first: usize, panel: &mut [Self], columns: usize);
    /// A row of a left-hand operand: rounded, and filled up with zeros to the end of `out`.
    fn pack_row(source: &[f32], out: &mut [Self]);
}

impl Layout for f32 {
    fn pack_columns(source: &[f32], panel: &mut [Self], columns: usize) {
        transpose(bytemuck::cast_slice(source), columns, bytemuck::cast_slice_mut(panel));
    }

    fn pack_rows(source: &[f32], _stride: usize, first: usize, panel: &mut [Self], _columns: usize) {
        // Eight at a time, so that it is no call.
        let source = &source[first..first + panel.len()];
        for (panel, source) in panel.as_chunks_mut::<8>().0.iter_mut().zip(source.as_chunks::<8>().0) {
            *panel = *source;
        }
    }

    fn pack_row(source: &[f32], out: &mut [Self]) {
        let (values, rest) = out.split_at_mut(source.len());
        values.copy_from_slice(source);
        rest.fill(0.0);
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
                narrow(&row[start..start + 2 * len], bytemuck::cast_slice_mut(words));
            }
            transpose(&words[..columns * len], columns, &mut panel[start / 2 * columns..][..columns * len]);
        }
    }

    fn pack_rows(source: &[f32], stride: usize, first: usize, panel: &mut [Self], _columns: usize) {
        let (even, odd) = (&source[first..], &source[stride + first..]);
        narrow_pairs(even, odd, bytemuck::cast_slice_mut(panel));
    }

    fn pack_row(source: &[f32], out: &mut [Self]) {
        let (values, rest) = out.split_at_mut(source.len());
        narrow(source, values);
        rest.fill(bf16::ZERO);
    }
}

/// Rounds to the nearest, ties to even. Without the branch for NaN that keeps `half`'s conversion from being
/// vectorised: a NaN keeps its quiet bit here because a product's NaN always has it set.
#[inline(always)]
pub(in super::super) fn to_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    bf16::from_bits((bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16) as u16)
}

vectorised! {
    fn narrow(source: &[f32], out: &mut [bf16]) {
        for (out, &source) in out.iter_mut().zip(source) {
            *out = to_bf16(source);
        }
    }
}

vectorised! {
    /// Words of two neighbours along the depth, the first in the low half.
    fn narrow_pairs(even: &[f32], odd: &[f32], words: &mut [u32]) {
        for ((word, &even), &odd) in words.iter_mut().zip(even).zip(odd) {
            let (even, odd) = (to_bf16(even).to_bits(), to_bf16(odd).to_bits());
            *word = u32::from(even) | u32::from(odd) << 16;
        }
    }
}

/// `out[k][row] = source[row][k]`, both without gaps.
pub(super) fn transpose(source: &[u32], rows: usize, out: &mut [u32]) {
    let depth = source.len() / rows;
    assert!(source.len() == rows * depth && out.len() == source.len());
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if rows.is_multiple_of(8) && Level::Avx2 <= Level::detect() {
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
