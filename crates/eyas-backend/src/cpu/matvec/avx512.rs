//! The inner loops with AVX-512.
//!
//! Sixteen 4-bit codes are looked up by one permutation of the sixteen levels. A group of codes is read as sixteen
//! 32-bit words and shifted by four bits at a time, so a vector holds one code of each word; the columns of `x` are
//! put in that order beforehand.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::dense::{End, Step, dense, dots, pair_order, total};
use super::{AHEAD, Dot, Few, FourBitRows, check};
use crate::cpu::decode::STEP;
use crate::cpu::vector::Floats;

/// Vectors of sixteen.
pub(super) struct Avx512;

/// Codes in sixteen words.
pub(super) const GROUP: usize = 128;

/// Column of each element of a group: vector `j` holds code `j` of every word, counted in nibbles from the lowest; the
/// first code of a byte is its high nibble.
const GROUP_ORDER: [usize; GROUP] = {
    let mut order = [0; GROUP];
    let mut i = 0;
    while i < GROUP {
        let (nibble, word) = (i / 16, i % 16);
        order[i] = 8 * word + (nibble ^ 1);
        i += 1;
    }
    order
};

impl Dot for Avx512 {
    const FOUR_BIT_ORDER: &'static [usize] = &GROUP_ORDER;
    const BF16_ORDER: &'static [usize] = &pair_order::<32>();
    const FOUR_BIT_STEP: usize = STEP;

    fn f32<const T: usize>(rows: &[f32], x: Few<'_>, sums: &mut [[f32; T]]) {
        dense::<f32, 1, T>(rows, x, sums);
    }

    fn f16<const T: usize>(rows: &[f16], x: Few<'_>, sums: &mut [[f32; T]]) {
        dense::<f16, 1, T>(rows, x, sums);
    }

    fn bf16<const T: usize>(rows: &[bf16], x: Few<'_>, sums: &mut [[f32; T]]) {
        dense::<bf16, 2, T>(rows, x, sums);
    }

    fn four_bit<const T: usize>(rows: FourBitRows<'_>, x: Few<'_>, sums: &mut [[f32; T]]) {
        let depth = rows.check(sums.len());
        check(x, T, depth.next_multiple_of(GROUP));
        // SAFETY: this type is used only where the processor has the instructions; `x` is checked above, and there is a
        // scale for every code.
        unsafe { dots_four_bit::<T>(rows, depth, x, sums) }
    }
}

dense!(__m512, "avx512f,avx512vl,avx512bw,avx512dq");

impl End for __m512 {
    #[inline(always)]
    unsafe fn end<const N: usize, const T: usize>(
        mut sums: [[Self; N]; T],
        rest: &[f32],
        done: usize,
        x: Few<'_>,
    ) -> [f32; T] {
        for start in (0..rest.len()).step_by(16) {
            let mask = lanes(rest.len() - start);
            // SAFETY: the caller promises the instructions; the lanes read lie inside `rest` and every row of `x`.
            unsafe {
                let weights = _mm512_maskz_loadu_ps(mask, rest.as_ptr().add(start));
                for (t, sums) in sums.iter_mut().enumerate() {
                    let x = x.values.as_ptr().add(t * x.stride + done + start);
                    sums[0] = weights.mul_add(_mm512_maskz_loadu_ps(mask, x), sums[0]);
                }
            }
        }
        let mut out = [0.0; T];
        for t in 0..T {
            // SAFETY: the caller promises the instructions.
            out[t] = unsafe { total(sums[t]).sum() };
        }
        out
    }
}

/// The first `n` lanes.
fn lanes(n: usize) -> u16 {
    if n >= 16 { u16::MAX } else { (1 << n) - 1 }
}

/// # Safety
/// The processor has the instructions; `x` has `T` rows of `depth` elements, whole steps, in
/// [`Dot::FOUR_BIT_ORDER`] and filled up with zeros to whole groups; there are `out.len()` rows of `depth` codes, and
/// every code has its scale.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn dots_four_bit<const T: usize>(
    rows: FourBitRows<'_>,
    depth: usize,
    x: Few<'_>,
    out: &mut [[f32; T]],
) {
    // SAFETY: there are sixteen levels.
    let levels = unsafe { _mm512_loadu_ps(rows.book.levels.as_ptr()) };
    for (number, out) in out.iter_mut().enumerate() {
        let codes = &rows.codes[number * depth / 2..(number + 1) * depth / 2];
        let rows = FourBitRows { codes, first: rows.first + number * depth, ..rows };
        // SAFETY: this is one of the rows.
        *out = unsafe { dot_four_bit(levels, rows, x) };
    }
}

/// # Safety
/// As [`dots_four_bit`], with one row.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
#[inline]
unsafe fn dot_four_bit<const T: usize>(levels: __m512, row: FourBitRows<'_>, x: Few<'_>) -> [f32; T] {
    let FourBitRows { codes, first, shift, scales, .. } = row;
    let depth = codes.len() * 2;
    let mut sums = [_mm512_setzero_ps(); T];
    for start in (0..depth).step_by(GROUP) {
        let present = lanes((depth - start) / 8);
        // SAFETY: the words read lie inside the codes; scales exist up to that of the last code; `x` has whole groups.
        unsafe {
            let words = codes.as_ptr().add(start / 2);
            _mm_prefetch::<_MM_HINT_T0>(words.wrapping_add(AHEAD).cast());
            let mut words = _mm512_maskz_loadu_epi32(present, words.cast());
            let mut partial = [_mm512_setzero_ps(); T];
            for nibble in 0..8 {
                // The permutation looks at the low four bits of a lane.
                let weights = _mm512_permutexvar_ps(words, levels);
                words = _mm512_srli_epi32::<4>(words);
                for (t, partial) in partial.iter_mut().enumerate() {
                    let x = x.values.as_ptr().add(t * x.stride + start + 16 * nibble);
                    *partial = _mm512_fmadd_ps(weights, _mm512_loadu_ps(x), *partial);
                }
            }
            // A scale holds for at least 32 codes, a quarter of the lanes.
            let scale = |quarter: usize| {
                let last = (start + quarter * STEP).min(depth - STEP);
                _mm_load_ss(scales.as_ptr().add((first + last) >> shift))
            };
            let mut by_lane = _mm512_broadcastss_ps(scale(0));
            if shift == 5 || !first.is_multiple_of(64) {
                by_lane = _mm512_mask_broadcastss_ps(by_lane, 0x00F0, scale(1));
                by_lane = _mm512_mask_broadcastss_ps(by_lane, 0x0F00, scale(2));
                by_lane = _mm512_mask_broadcastss_ps(by_lane, 0xF000, scale(3));
            } else {
                by_lane = _mm512_mask_broadcastss_ps(by_lane, 0xFF00, scale(2));
            }
            for t in 0..T {
                sums[t] = _mm512_fmadd_ps(partial[t], by_lane, sums[t]);
            }
        }
    }
    let mut out = [0.0; T];
    for t in 0..T {
        // SAFETY: this function has the instructions.
        out[t] = unsafe { sums[t].sum() };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::matvec::reorder;

    /// The loop over a group as the instructions do it, lane by lane.
    #[test]
    fn each_lane_meets_its_column() {
        let depth = 160;
        let codes: Vec<u8> = (0..depth / 2).map(|i| (i * 73 + 11) as u8).collect();
        let x: Vec<f32> = (0..depth).map(|i| i as f32 + 1.0).collect();
        let mut ordered = vec![f32::NAN; 2 * GROUP];
        reorder(&x, depth, &GROUP_ORDER, 2 * GROUP, &mut ordered);
        let mut seen = vec![0; depth];
        for start in [0, GROUP] {
            for word in 0..16.min((depth - start) / 8) {
                let bytes = codes[start / 2 + 4 * word..][..4].try_into().unwrap();
                for nibble in 0..8 {
                    let code = (u32::from_le_bytes(bytes) >> (4 * nibble) & 15) as u8;
                    let column = ordered[start + 16 * nibble + word] as usize - 1;
                    let byte = codes[column / 2];
                    assert_eq!(code, if column.is_multiple_of(2) { byte >> 4 } else { byte & 15 });
                    assert_eq!(column / STEP, (start + 8 * word) / STEP, "a lane's scale is another's");
                    seen[column] += 1;
                }
            }
        }
        assert!(seen.iter().all(|&n| n == 1));
        assert_eq!(ordered.iter().filter(|&&x| x == 0.0).count(), 2 * GROUP - depth);
    }
}
