//! The inner loops with AVX2, FMA and F16C.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::dense::{End, Step, dense, dots, pair_order, total};
use super::{AHEAD, Dot, Few, FourBitRows, check};
use crate::cpu::decode::STEP;
use crate::cpu::vector::Floats;

/// Vectors of eight.
pub(super) struct Avx2;

impl Dot for Avx2 {
    const FOUR_BIT_ORDER: &'static [usize] = &[0, 2, 4, 6, 1, 3, 5, 7];
    const BF16_ORDER: &'static [usize] = &pair_order::<16>();
    const FOUR_BIT_STEP: usize = STEP;

    fn f32<const T: usize>(rows: &[f32], x: Few<'_>, sums: &mut [[f32; T]]) {
        dense::<f32, 2, T>(rows, x, sums);
    }

    fn f16<const T: usize>(rows: &[f16], x: Few<'_>, sums: &mut [[f32; T]]) {
        dense::<f16, 1, T>(rows, x, sums);
    }

    fn bf16<const T: usize>(rows: &[bf16], x: Few<'_>, sums: &mut [[f32; T]]) {
        dense::<bf16, 2, T>(rows, x, sums);
    }

    fn four_bit<const T: usize>(rows: FourBitRows<'_>, x: Few<'_>, sums: &mut [[f32; T]]) {
        let depth = rows.check(sums.len());
        check(x, T, depth);
        // SAFETY: this type is used only where the processor has the instructions; `x` is checked above, and there is a
        // scale for every code.
        unsafe { dots_four_bit::<T>(rows, depth, x, sums) }
    }
}

dense!(__m256, "avx2,fma,f16c");

impl End for __m256 {
    #[inline(always)]
    unsafe fn end<const N: usize, const T: usize>(
        sums: [[Self; N]; T],
        rest: &[f32],
        done: usize,
        x: Few<'_>,
    ) -> [f32; T] {
        let mut out = [0.0; T];
        for (t, out) in out.iter_mut().enumerate() {
            // SAFETY: the caller promises the instructions.
            *out = unsafe { total(sums[t]).sum() };
            for (i, weight) in rest.iter().enumerate() {
                *out += weight * x.values[t * x.stride + done + i];
            }
        }
        out
    }
}

/// # Safety
/// The processor has the instructions; `x` has `T` rows of `depth` elements, whole steps, with columns in
/// [`Dot::FOUR_BIT_ORDER`]; there are `out.len()` rows of `depth` codes, and every code has its scale.
#[target_feature(enable = "avx2,fma")]
unsafe fn dots_four_bit<const T: usize>(
    rows: FourBitRows<'_>,
    depth: usize,
    x: Few<'_>,
    out: &mut [[f32; T]],
) {
    let FourBitRows { book, codes, first, shift, scales } = rows;
    let mut planes = [_mm256_setzero_si256(); 4];
    for i in 0..4 {
        // SAFETY: a plane is 16 bytes.
        planes[i] = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(book.planes[i].as_ptr().cast())) };
    }
    // Even codes, the high nibbles, go to the low lane and odd ones to the high lane. The widening unpacks then give
    // four even and four odd neighbours in a register.
    let shifts = _mm256_setr_epi64x(4, 4, 0, 0);
    let nibble = _mm256_set1_epi8(15);
    for (row, out) in out.iter_mut().enumerate() {
        let mut sums = [_mm256_setzero_ps(); T];
        for step in 0..depth / STEP {
            let done = row * depth + step * STEP;
            // SAFETY: the step's 16 bytes, its scale and its 32 elements of every row of `x` exist.
            unsafe {
                let bytes = codes.as_ptr().add(done / 2);
                _mm_prefetch::<_MM_HINT_T0>(bytes.wrapping_add(AHEAD).cast());
                let bytes = _mm_loadu_si128(bytes.cast());
                let scale = _mm256_broadcast_ss(scales.get_unchecked((first + done) >> shift));
                let codes = _mm256_srlv_epi64(_mm256_broadcastsi128_si256(bytes), shifts);
                let codes = _mm256_and_si256(codes, nibble);
                let (p0, p1) = (_mm256_shuffle_epi8(planes[0], codes), _mm256_shuffle_epi8(planes[1], codes));
                let (p2, p3) = (_mm256_shuffle_epi8(planes[2], codes), _mm256_shuffle_epi8(planes[3], codes));
                let (low01, low23) = (_mm256_unpacklo_epi8(p0, p1), _mm256_unpacklo_epi8(p2, p3));
                let (high01, high23) = (_mm256_unpackhi_epi8(p0, p1), _mm256_unpackhi_epi8(p2, p3));
                let w0 = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low01, low23));
                let w1 = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low01, low23));
                let w2 = _mm256_castsi256_ps(_mm256_unpacklo_epi16(high01, high23));
                let w3 = _mm256_castsi256_ps(_mm256_unpackhi_epi16(high01, high23));
                for (t, sum) in sums.iter_mut().enumerate() {
                    let x = x.values.as_ptr().add(t * x.stride + step * STEP);
                    let a = _mm256_mul_ps(w0, _mm256_loadu_ps(x));
                    let b = _mm256_mul_ps(w1, _mm256_loadu_ps(x.add(8)));
                    let a = _mm256_fmadd_ps(w2, _mm256_loadu_ps(x.add(16)), a);
                    let b = _mm256_fmadd_ps(w3, _mm256_loadu_ps(x.add(24)), b);
                    *sum = _mm256_fmadd_ps(_mm256_add_ps(a, b), scale, *sum);
                }
            }
        }
        for t in 0..T {
            // SAFETY: this function has the instructions.
            out[t] = unsafe { sums[t].sum() };
        }
    }
}
