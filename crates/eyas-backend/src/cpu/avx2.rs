//! The tiles of the products with AVX2: `f32`, and 16-bit integers.

use std::arch::x86_64::*;

use super::microkernel::{Kernel, Term, by_rows};

/// `f32` with AVX2 and FMA: 6 x 16 sums in 12 registers.
pub(super) struct Avx2F32;

impl Kernel for Avx2F32 {
    type Element = f32;
    const MR: usize = 6;
    const NR: usize = 16;
    const STEP: usize = 1;
    const GRAIN: usize = 1;
    const DEPTH: usize = 256;
    const ROWS: usize = 48;

    unsafe fn tile(rows: usize, terms: &[Term<f32>], c: *mut f32, c_stride: usize, add: bool) {
        // SAFETY: the caller promises the instructions and the operands.
        by_rows!(rows, f32_tile(terms, c, c_stride, add), 1 2 3 4 5 6)
    }
}

/// 16-bit integers in groups with AVX2's `vpmaddwd`: two products and their sum in each 32-bit lane. 6 x 16 sums.
pub(super) struct Avx2I16;

impl Kernel for Avx2I16 {
    type Element = i16;
    const MR: usize = 6;
    const NR: usize = 16;
    const STEP: usize = 2;
    const GRAIN: usize = 2;
    const DEPTH: usize = 512;
    const ROWS: usize = 48;

    unsafe fn tile(rows: usize, terms: &[Term<i16>], c: *mut f32, c_stride: usize, add: bool) {
        // SAFETY: the caller promises the instructions and the operands.
        by_rows!(rows, i16_tile(terms, c, c_stride, add), 1 2 3 4 5 6)
    }
}

/// # Safety
/// As [`Kernel::tile`] with `ROWS` rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_tile<const ROWS: usize>(terms: &[Term<f32>], c: *mut f32, c_stride: usize, add: bool) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for term in terms {
        let (mut a, mut b) = (term.a, term.b);
        // Four steps at a time: the rows' addresses are then worked out once for all of them.
        for _ in 0..term.depth / 4 {
            // SAFETY: the caller promises `ROWS` rows of `a` and `depth * 16` elements of the panel.
            unsafe {
                f32_steps::<ROWS, 4>(a, term.a_stride, b, &mut sums);
                a = a.add(4);
                b = b.add(4 * 16);
            }
        }
        for _ in 0..term.depth % 4 {
            // SAFETY: as above.
            unsafe {
                f32_steps::<ROWS, 1>(a, term.a_stride, b, &mut sums);
                a = a.add(1);
                b = b.add(16);
            }
        }
    }
    // SAFETY: the caller promises `ROWS` rows of 16 elements at `c`.
    unsafe { store(&sums, c, c_stride, add) }
}

/// Writes a tile, or adds it.
///
/// # Safety
/// The processor has the instructions; `c` has `ROWS` rows of 16 elements, `c_stride` apart.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn store<const ROWS: usize>(sums: &[[__m256; 2]; ROWS], c: *mut f32, c_stride: usize, add: bool) {
    for (i, sums) in sums.iter().enumerate() {
        for (j, &sum) in sums.iter().enumerate() {
            // SAFETY: the caller promises the elements.
            unsafe {
                let out = c.add(i * c_stride + 8 * j);
                let sum = if add { _mm256_add_ps(_mm256_loadu_ps(out), sum) } else { sum };
                _mm256_storeu_ps(out, sum);
            }
        }
    }
}

/// Adds the products of `STEPS` steps along the depth.
///
/// # Safety
/// The processor has the instructions; `a` has `ROWS` rows of `STEPS` elements and `b` `STEPS * 16`.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn f32_steps<const ROWS: usize, const STEPS: usize>(
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    sums: &mut [[__m256; 2]; ROWS],
) {
    for k in 0..STEPS {
        // SAFETY: the caller promises the elements.
        unsafe {
            let (b0, b1) = (_mm256_loadu_ps(b.add(16 * k)), _mm256_loadu_ps(b.add(16 * k + 8)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = _mm256_broadcast_ss(&*a.add(i * a_stride + k));
                sums[0] = _mm256_fmadd_ps(a, b0, sums[0]);
                sums[1] = _mm256_fmadd_ps(a, b1, sums[1]);
            }
        }
    }
}

/// # Safety
/// As [`Kernel::tile`] with `ROWS` rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn i16_tile<const ROWS: usize>(terms: &[Term<i16>], c: *mut f32, c_stride: usize, add: bool) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for group in terms.iter().flat_map(|term| term.groups(16)) {
        // SAFETY: the caller promises `ROWS` rows of `a` and the panel, each group with its scales behind it.
        unsafe { i16_group::<ROWS>(group, &mut sums) };
    }
    // SAFETY: the caller promises `ROWS` rows of 16 elements at `c`.
    unsafe { store(&sums, c, c_stride, add) }
}

/// Adds the products of a group.
///
/// # Safety
/// The processor has the instructions; the group has `ROWS` rows of `a` and a panel, with their scales; its depth is
/// even.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn i16_group<const ROWS: usize>(group: Term<i16>, sums: &mut [[__m256; 2]; ROWS]) {
    let Term { mut a, a_stride, mut b, depth } = group;
    let mut whole = [[_mm256_setzero_si256(); 2]; ROWS];
    // SAFETY: the caller promises the elements.
    unsafe {
        for _ in 0..depth / 2 {
            i16_step::<ROWS>(a, a_stride, b, &mut whole);
            a = a.add(2);
            b = b.add(2 * 16);
        }
        let scales = [_mm256_loadu_ps(b.cast()), _mm256_loadu_ps(b.add(16).cast())];
        for (i, (whole, sums)) in whole.iter().zip(sums).enumerate() {
            let scale = _mm256_set1_ps(a.add(i * a_stride).cast::<f32>().read_unaligned());
            for j in 0..2 {
                let scale = _mm256_mul_ps(scale, scales[j]);
                sums[j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[j]), scale, sums[j]);
            }
        }
    }
}

/// Adds the products of a pair along the depth.
///
/// # Safety
/// The processor has the instructions; `a` has `ROWS` rows of a pair and `b` 16 pairs.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn i16_step<const ROWS: usize>(
    a: *const i16,
    a_stride: usize,
    b: *const i16,
    sums: &mut [[__m256i; 2]; ROWS],
) {
    // SAFETY: the caller promises the elements; a pair is read as one word of any alignment.
    unsafe {
        let b = [_mm256_loadu_si256(b.cast()), _mm256_loadu_si256(b.add(16).cast())];
        for (i, sums) in sums.iter_mut().enumerate() {
            let a = _mm256_set1_epi32(a.add(i * a_stride).cast::<i32>().read_unaligned());
            for (sum, &b) in sums.iter_mut().zip(&b) {
                multiply_add(sum, a, b);
            }
        }
    }
}

/// Adds the products of pairs, two and two.
#[target_feature(enable = "avx2")]
#[inline]
fn multiply_add(sum: &mut __m256i, a: __m256i, b: __m256i) {
    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, b));
}
