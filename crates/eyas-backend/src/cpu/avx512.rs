//! The tiles of the products with AVX-512: `f32`, `bf16` with `vdpbf16ps`, and 16-bit integers with `vpdpwssd`.
//!
//! All have 12 x 32 sums in 24 registers: two loads of a panel and twelve broadcasts for 24 multiply-adds, so that
//! even a processor with two 512-bit multiply-add units waits for them and not for its loads.

use std::arch::x86_64::*;

use half::bf16;

use super::microkernel::{Kernel, Term, by_rows};

/// `f32` multiply-adds.
pub(super) struct Avx512F32;

impl Kernel for Avx512F32 {
    type Element = f32;
    const MR: usize = 12;
    const NR: usize = 32;
    const STEP: usize = 1;
    const GRAIN: usize = 1;
    const DEPTH: usize = 256;
    const ROWS: usize = 96;

    unsafe fn tile(rows: usize, terms: &[Term<f32>], c: *mut f32, c_stride: usize, add: bool) {
        // SAFETY: the caller promises the instructions and the operands.
        by_rows!(rows, f32_tile(terms, c, c_stride, add), 1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

/// `bf16` operands and `f32` sums with `vdpbf16ps`.
pub(super) struct Avx512Bf16;

impl Kernel for Avx512Bf16 {
    type Element = bf16;
    const MR: usize = 12;
    const NR: usize = 32;
    const STEP: usize = 2;
    const GRAIN: usize = 2;
    const DEPTH: usize = 384;
    const ROWS: usize = 96;

    unsafe fn tile(rows: usize, terms: &[Term<bf16>], c: *mut f32, c_stride: usize, add: bool) {
        // SAFETY: the caller promises the instructions and the operands.
        by_rows!(rows, bf16_tile(terms, c, c_stride, add), 1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

/// 16-bit integers in groups with `vpdpwssd`: two products added to each 32-bit lane.
pub(super) struct Avx512I16;

impl Kernel for Avx512I16 {
    type Element = i16;
    const MR: usize = 12;
    const NR: usize = 32;
    const STEP: usize = 2;
    const GRAIN: usize = 2;
    const DEPTH: usize = 512;
    const ROWS: usize = 96;

    unsafe fn tile(rows: usize, terms: &[Term<i16>], c: *mut f32, c_stride: usize, add: bool) {
        // SAFETY: the caller promises the instructions and the operands.
        by_rows!(rows, i16_tile(terms, c, c_stride, add), 1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

/// Steps along the depth for which the rows' addresses are worked out once.
const UNROLL: usize = 4;

/// # Safety
/// As [`Kernel::tile`] with `ROWS` rows.
#[target_feature(enable = "avx512f")]
unsafe fn f32_tile<const ROWS: usize>(terms: &[Term<f32>], c: *mut f32, c_stride: usize, add: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for term in terms {
        let (mut a, mut b) = (term.a, term.b);
        for _ in 0..term.depth / UNROLL {
            // SAFETY: the caller promises `ROWS` rows of `a` and `depth * 32` elements of the panel.
            unsafe {
                f32_steps::<ROWS, UNROLL>(a, term.a_stride, b, &mut sums);
                a = a.add(UNROLL);
                b = b.add(UNROLL * 32);
            }
        }
        for _ in 0..term.depth % UNROLL {
            // SAFETY: as above.
            unsafe {
                f32_steps::<ROWS, 1>(a, term.a_stride, b, &mut sums);
                a = a.add(1);
                b = b.add(32);
            }
        }
    }
    // SAFETY: the caller promises `ROWS` rows of 32 elements at `c`.
    unsafe { store(&sums, c, c_stride, add) }
}

/// Adds the products of `STEPS` steps along the depth.
///
/// # Safety
/// The processor has the instructions; `a` has `ROWS` rows of `STEPS` elements and `b` `STEPS * 32`.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn f32_steps<const ROWS: usize, const STEPS: usize>(
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    sums: &mut [[__m512; 2]; ROWS],
) {
    for k in 0..STEPS {
        // SAFETY: the caller promises the elements.
        unsafe {
            let (b0, b1) = (_mm512_loadu_ps(b.add(32 * k)), _mm512_loadu_ps(b.add(32 * k + 16)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*a.add(i * a_stride + k));
                sums[0] = _mm512_fmadd_ps(a, b0, sums[0]);
                sums[1] = _mm512_fmadd_ps(a, b1, sums[1]);
            }
        }
    }
}

/// # Safety
/// As [`Kernel::tile`] with `ROWS` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn bf16_tile<const ROWS: usize>(terms: &[Term<bf16>], c: *mut f32, c_stride: usize, add: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for term in terms {
        let (mut a, mut b) = (term.a, term.b);
        for _ in 0..term.depth / (2 * UNROLL) {
            // SAFETY: the caller promises `ROWS` rows of `a` and `depth * 32` elements of the panel.
            unsafe {
                bf16_steps::<ROWS, UNROLL>(a, term.a_stride, b, &mut sums);
                a = a.add(2 * UNROLL);
                b = b.add(2 * UNROLL * 32);
            }
        }
        for _ in 0..term.depth / 2 % UNROLL {
            // SAFETY: as above.
            unsafe {
                bf16_steps::<ROWS, 1>(a, term.a_stride, b, &mut sums);
                a = a.add(2);
                b = b.add(64);
            }
        }
    }
    // SAFETY: the caller promises `ROWS` rows of 32 elements at `c`.
    unsafe { store(&sums, c, c_stride, add) }
}

/// Adds the products of `STEPS` pairs along the depth.
///
/// # Safety
/// The processor has the instructions; `a` has `ROWS` rows of `STEPS` pairs and `b` `STEPS * 32` pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn bf16_steps<const ROWS: usize, const STEPS: usize>(
    a: *const bf16,
    a_stride: usize,
    b: *const bf16,
    sums: &mut [[__m512; 2]; ROWS],
) {
    for k in 0..STEPS {
        // SAFETY: the caller promises the elements; vectors of bf16 are plain bits, and a pair of them is read as one
        // `i32` of any alignment.
        unsafe {
            let b0: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(64 * k).cast()));
            let b1: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(64 * k + 32).cast()));
            for (i, sums) in sums.iter_mut().enumerate() {
                let pair = a.add(i * a_stride + 2 * k).cast::<i32>().read_unaligned();
                let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(pair));
                sums[0] = _mm512_dpbf16_ps(sums[0], a, b0);
                sums[1] = _mm512_dpbf16_ps(sums[1], a, b1);
            }
        }
    }
}

/// # Safety
/// As [`Kernel::tile`] with `ROWS` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn i16_tile<const ROWS: usize>(terms: &[Term<i16>], c: *mut f32, c_stride: usize, add: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for group in terms.iter().flat_map(|term| term.groups(32)) {
        // SAFETY: the caller promises `ROWS` rows of `a` and the panel, each group with its scales behind it.
        unsafe { i16_group::<ROWS>(group, &mut sums) };
    }
    // SAFETY: the caller promises `ROWS` rows of 32 elements at `c`.
    unsafe { store(&sums, c, c_stride, add) }
}

/// Adds the products of a group.
///
/// # Safety
/// The processor has the instructions; the group has `ROWS` rows of `a` and a panel, with their scales; its depth is
/// even.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn i16_group<const ROWS: usize>(group: Term<i16>, sums: &mut [[__m512; 2]; ROWS]) {
    let Term { a, a_stride, b, depth } = group;
    let mut whole = [[_mm512_setzero_si512(); 2]; ROWS];
    // SAFETY: the caller promises the elements; a pair and a scale are read at any alignment.
    unsafe {
        for k in (0..depth).step_by(2) {
            let b0 = _mm512_loadu_si512(b.add(32 * k).cast());
            let b1 = _mm512_loadu_si512(b.add(32 * k + 32).cast());
            for (i, whole) in whole.iter_mut().enumerate() {
                let a = _mm512_set1_epi32(a.add(i * a_stride + k).cast::<i32>().read_unaligned());
                whole[0] = _mm512_dpwssd_epi32(whole[0], a, b0);
                whole[1] = _mm512_dpwssd_epi32(whole[1], a, b1);
            }
        }
        let scales = b.add(32 * depth).cast::<f32>();
        let scales = [_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(16))];
        for (i, (whole, sums)) in whole.iter().zip(sums).enumerate() {
            let scale = _mm512_set1_ps(a.add(i * a_stride + depth).cast::<f32>().read_unaligned());
            for j in 0..2 {
                let scale = _mm512_mul_ps(scale, scales[j]);
                sums[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[j]), scale, sums[j]);
            }
        }
    }
}

/// Writes a tile, or adds it.
///
/// # Safety
/// The processor has the instructions; `c` has `ROWS` rows of 32 elements, `c_stride` apart.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn store<const ROWS: usize>(sums: &[[__m512; 2]; ROWS], c: *mut f32, c_stride: usize, add: bool) {
    for (i, sums) in sums.iter().enumerate() {
        for (j, &sum) in sums.iter().enumerate() {
            // SAFETY: the caller promises the elements.
            unsafe {
                let out = c.add(i * c_stride + 16 * j);
                let sum = if add { _mm512_add_ps(_mm512_loadu_ps(out), sum) } else { sum };
                _mm512_storeu_ps(out, sum);
            }
        }
    }
}
