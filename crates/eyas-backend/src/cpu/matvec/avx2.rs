//! The inner loops with AVX2, FMA and F16C.
//!
//! No closure here is passed to a library function: it would be compiled without these instructions, and called.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{AHEAD, Dot, Few, FourBitRows, check};
use crate::cpu::decode::STEP;
use crate::cpu::simd::Isa;

/// Vectors of eight.
pub(super) struct Avx2;

impl Avx2 {
    pub fn is_supported() -> bool {
        Isa::Avx2.is_usable()
    }
}

impl Dot for Avx2 {
    const FOUR_BIT_ORDER: &'static [usize] = &[0, 2, 4, 6, 1, 3, 5, 7];
    const BF16_ORDER: &'static [usize] = &[0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15];
    const FOUR_BIT_STEP: usize = STEP;

    fn f32<const T: usize>(row: &[f32], x: Few<'_>) -> [f32; T] {
        check(x, T, row.len());
        // SAFETY: this type is used only where the processor has the instructions; `x` is checked above.
        unsafe { dot_f32::<T>(row, x) }
    }

    fn f16<const T: usize>(row: &[f16], x: Few<'_>) -> [f32; T] {
        check(x, T, row.len());
        // SAFETY: as above.
        unsafe { dot_f16::<T>(row, x) }
    }

    fn bf16<const T: usize>(rows: &[bf16], x: Few<'_>, sums: &mut [[f32; T]]) {
        check(x, T, rows.len() / sums.len().max(1));
        // SAFETY: as above.
        unsafe { dots_bf16::<T>(rows, x, sums) }
    }

    fn four_bit<const T: usize>(rows: FourBitRows<'_>, x: Few<'_>, sums: &mut [[f32; T]]) {
        let depth = rows.check(sums.len());
        check(x, T, depth);
        // SAFETY: as above, and there is a scale for every code.
        unsafe { dots_four_bit::<T>(rows, depth, x, sums) }
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn sum(values: __m256) -> f32 {
    let sum = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps::<1>(values));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
}

/// The vectors' sums, and the products of what is left from element `done` on.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn finish<const T: usize>(sums: [__m256; T], done: usize, rest: &[f32], x: Few<'_>) -> [f32; T] {
    let mut out = [0.0; T];
    for (t, out) in out.iter_mut().enumerate() {
        *out = sum(sums[t]);
        for (i, weight) in rest.iter().enumerate() {
            *out += weight * x.values[t * x.stride + done + i];
        }
    }
    out
}

/// # Safety
/// The processor has the instructions; `x` has `T` rows as long as `row`.
#[target_feature(enable = "avx2,fma")]
unsafe fn dot_f32<const T: usize>(row: &[f32], x: Few<'_>) -> [f32; T] {
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    let mut done = 0;
    while done + 16 <= row.len() {
        // SAFETY: 16 elements from `done` lie inside the row and every row of `x`.
        unsafe {
            let weights = row.as_ptr().add(done);
            let (w0, w1) = (_mm256_loadu_ps(weights), _mm256_loadu_ps(weights.add(8)));
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = x.values.as_ptr().add(t * x.stride + done);
                sums[0] = _mm256_fmadd_ps(w0, _mm256_loadu_ps(x), sums[0]);
                sums[1] = _mm256_fmadd_ps(w1, _mm256_loadu_ps(x.add(8)), sums[1]);
            }
        }
        done += 16;
    }
    let mut both = [_mm256_setzero_ps(); T];
    for t in 0..T {
        both[t] = _mm256_add_ps(sums[t][0], sums[t][1]);
    }
    finish(both, done, &row[done..], x)
}

/// # Safety
/// As [`dot_f32`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_f16<const T: usize>(row: &[f16], x: Few<'_>) -> [f32; T] {
    let mut sums = [_mm256_setzero_ps(); T];
    let mut done = 0;
    while done + 8 <= row.len() {
        // SAFETY: 8 elements from `done` lie inside the row and every row of `x`.
        unsafe {
            let weights = _mm256_cvtph_ps(_mm_loadu_si128(row.as_ptr().add(done).cast()));
            for (t, sum) in sums.iter_mut().enumerate() {
                let x = _mm256_loadu_ps(x.values.as_ptr().add(t * x.stride + done));
                *sum = _mm256_fmadd_ps(weights, x, *sum);
            }
        }
        done += 8;
    }
    let mut rest = [0.0; 8];
    for (rest, weight) in rest.iter_mut().zip(&row[done..]) {
        *rest = weight.to_f32();
    }
    finish(sums, done, &rest[..row.len() - done], x)
}

/// # Safety
/// As [`dot_f32`]; the columns of `x` are in [`Dot::BF16_ORDER`].
#[target_feature(enable = "avx2,fma")]
unsafe fn dots_bf16<const T: usize>(rows: &[bf16], x: Few<'_>, out: &mut [[f32; T]]) {
    let depth = rows.len() / out.len().max(1);
    for (number, out) in out.iter_mut().enumerate() {
        // SAFETY: `x` has `T` rows as long as this one.
        *out = unsafe { dot_bf16(&rows[number * depth..(number + 1) * depth], x) };
    }
}

/// # Safety
/// As [`dots_bf16`], with one row.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn dot_bf16<const T: usize>(row: &[bf16], x: Few<'_>) -> [f32; T] {
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    let high = _mm256_set1_epi32(0xFFFF_0000_u32 as i32);
    let mut done = 0;
    while done + 16 <= row.len() {
        // SAFETY: 16 elements from `done` lie inside the row and every row of `x`.
        unsafe {
            let pairs = row.as_ptr().add(done);
            _mm_prefetch::<_MM_HINT_T0>(pairs.wrapping_byte_add(AHEAD).cast());
            let pairs = _mm256_loadu_si256(pairs.cast());
            let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
            let odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, high));
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = x.values.as_ptr().add(t * x.stride + done);
                sums[0] = _mm256_fmadd_ps(even, _mm256_loadu_ps(x), sums[0]);
                sums[1] = _mm256_fmadd_ps(odd, _mm256_loadu_ps(x.add(8)), sums[1]);
            }
        }
        done += 16;
    }
    let mut both = [_mm256_setzero_ps(); T];
    for t in 0..T {
        both[t] = _mm256_add_ps(sums[t][0], sums[t][1]);
    }
    let mut rest = [0.0; 16];
    for (rest, weight) in rest.iter_mut().zip(&row[done..]) {
        *rest = weight.to_f32();
    }
    finish(both, done, &rest[..row.len() - done], x)
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
            out[t] = sum(sums[t]);
        }
    }
}
