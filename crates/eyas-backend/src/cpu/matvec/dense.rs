//! Dense rows times a few rows of `x`: one loop over vectors of either width.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{AHEAD, Dense, Few};
use crate::cpu::vector::{Floats, Words};

/// An element whose rows are read a step at a time: `N` vectors, each with sums of its own.
pub(super) trait Step<V, const N: usize>: Dense {
    /// # Safety
    /// The processor has the instructions of `V`; the elements of a step exist.
    unsafe fn load(from: *const Self) -> [V; N];

    /// Elements in `f32`, in `buffer` where they have another type.
    #[inline(always)]
    fn widen<'a>(elements: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32] {
        for (value, element) in buffer.iter_mut().zip(elements) {
            *value = element.to_f32();
        }
        &buffer[..elements.len()]
    }
}

impl<V: Floats, const N: usize> Step<V, N> for f32 {
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [V; N] {
        // SAFETY: the caller's promises.
        unsafe {
            let mut weights = [V::zero(); N];
            for (i, weights) in weights.iter_mut().enumerate() {
                *weights = V::load(from.add(i * V::LANES));
            }
            weights
        }
    }

    #[inline(always)]
    fn widen<'a>(elements: &'a [f32], _buffer: &'a mut [f32]) -> &'a [f32] {
        elements
    }
}

impl<V: Floats> Step<V, 1> for f16 {
    #[inline(always)]
    unsafe fn load(from: *const f16) -> [V; 1] {
        // SAFETY: the caller's promises.
        unsafe { [V::load_f16(from)] }
    }
}

/// The low halves of words of two, then the high ones: columns as [`super::Dot::BF16_ORDER`] has them.
impl<V: Floats> Step<V, 2> for bf16 {
    #[inline(always)]
    unsafe fn load(from: *const bf16) -> [V; 2] {
        // SAFETY: the caller's promises; what is not there is prefetched without harm.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_byte_add(AHEAD).cast());
            let pairs = V::Words::load(from.cast());
            [V::from_bits(pairs.low_half_up()), V::from_bits(pairs.and(V::Words::splat(0xFFFF_0000)))]
        }
    }
}

/// [`super::Dot::BF16_ORDER`] for steps of `N` columns.
pub(super) const fn pair_order<const N: usize>() -> [usize; N] {
    let mut order = [0; N];
    let mut i = 0;
    while i < N {
        order[i] = i % (N / 2) * 2 + i / (N / 2);
        i += 1;
    }
    order
}

/// A width's way to end a row.
pub(super) trait End: Floats {
    /// The totals of `sums`, with the products of `rest`, the row's elements from column `done` on.
    ///
    /// # Safety
    /// The processor has the instructions; every row of `x` has these columns.
    unsafe fn end<const N: usize, const T: usize>(
        sums: [[Self; N]; T],
        rest: &[f32],
        done: usize,
        x: Few<'_>,
    ) -> [f32; T];
}

/// The products with `out.len()` rows.
///
/// # Safety
/// The processor has the instructions of `V`; `x` has `T` rows as long as one of these.
#[inline(always)]
pub(super) unsafe fn dots<V: End, E: Step<V, N>, const N: usize, const T: usize>(
    rows: &[E],
    x: Few<'_>,
    out: &mut [[f32; T]],
) {
    let depth = rows.len() / out.len().max(1);
    for (number, out) in out.iter_mut().enumerate() {
        let row = &rows[number * depth..(number + 1) * depth];
        // SAFETY: the caller promises the instructions; a step from `done` lies inside the row and every row of `x`.
        unsafe {
            let mut sums = [[V::zero(); N]; T];
            let mut done = 0;
            while done + N * V::LANES <= depth {
                let weights = E::load(row.as_ptr().add(done));
                for (t, sums) in sums.iter_mut().enumerate() {
                    let x = x.values.as_ptr().add(t * x.stride + done);
                    for i in 0..N {
                        sums[i] = weights[i].mul_add(V::load(x.add(i * V::LANES)), sums[i]);
                    }
                }
                done += N * V::LANES;
            }
            let mut buffer = [0.0; 32];
            *out = V::end(sums, E::widen(&row[done..], &mut buffer), done, x);
        }
    }
}

/// Defines `dense`: [`dots`] with vectors of one width, compiled for the instructions named.
macro_rules! dense {
    ($vector:ty, $instructions:literal) => {
        fn dense<E: Step<$vector, N>, const N: usize, const T: usize>(
            rows: &[E],
            x: Few<'_>,
            sums: &mut [[f32; T]],
        ) {
            #[target_feature(enable = $instructions)]
            unsafe fn compiled<E: Step<$vector, N>, const N: usize, const T: usize>(
                rows: &[E],
                x: Few<'_>,
                sums: &mut [[f32; T]],
            ) {
                // SAFETY: the caller promises the rows of `x`.
                unsafe { dots::<$vector, E, N, T>(rows, x, sums) }
            }
            check(x, T, rows.len() / sums.len().max(1));
            // SAFETY: this width is used only where the processor has the instructions; `x` is checked above.
            unsafe { compiled::<E, N, T>(rows, x, sums) }
        }
    };
}
pub(super) use dense;

/// The sums of a step's vectors.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn total<V: Floats, const N: usize>(sums: [V; N]) -> V {
    let mut total = sums[0];
    for sum in &sums[1..] {
        // SAFETY: the caller promises the instructions.
        total = unsafe { total.add(*sum) };
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::matvec::reorder;

    #[test]
    fn halves_of_words_meet_their_columns() {
        let x: Vec<f32> = (0..40).map(|i| i as f32).collect();
        let mut ordered = vec![0.0; 40];
        reorder(&x, 40, &pair_order::<32>(), 40, &mut ordered);
        for i in 0..16 {
            assert_eq!((ordered[i], ordered[16 + i]), (2.0 * i as f32, 2.0 * i as f32 + 1.0));
        }
        assert_eq!(ordered[32..], x[32..]);
    }
}
