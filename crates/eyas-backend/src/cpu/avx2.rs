//! The tile of the products with AVX2 and FMA.

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
    for (i, sums) in sums.iter().enumerate() {
        for (j, &sum) in sums.iter().enumerate() {
            // SAFETY: the caller promises `ROWS` rows of 16 elements at `c`.
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
