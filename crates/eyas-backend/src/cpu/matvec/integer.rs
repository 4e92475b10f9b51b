//! 4-bit rows times a few rows of `x`, in 16-bit integers.
//!
//! The levels of the codes and groups of 64 columns of `x` are integers of 15 bits with their signs, so that a step of
//! either is 2^-14 of its largest magnitude; a group of products is summed whole in 32 bits before the scales of both
//! meet it. Two byte shuffles look up what four do in `f32`, and an instruction multiplies twice as many: where the
//! products of many rows are in integers, so are these.

use std::arch::x86_64::*;

use super::{AHEAD, FourBitRows, reorder};
use crate::cpu::decode::LEVEL;
use crate::cpu::panel::quantise;
use crate::cpu::scratch::{Buffer, Scratch};
use crate::cpu::vector::Floats;

/// Columns of `x`, and codes of a row, that share a scale.
pub(super) const GROUP: usize = 64;

/// Column of each element of a group, as the byte shuffles leave the codes: even ones of bytes 0 to 7 and 16 to 23, of
/// the other bytes, then the odd ones.
const ORDER: [usize; GROUP] = {
    let mut order = [0; GROUP];
    let mut i = 0;
    while i < GROUP {
        let (odd, byte) = (i / 32, i % 32);
        let byte = byte % 8 + byte % 16 / 8 * 16 + byte / 16 * 8;
        order[i] = 2 * byte + odd;
        i += 1;
    }
    order
};

/// Rows of `x`, in whole groups.
pub(super) struct Quantised<'a> {
    values: Buffer<'a, i16>,
    /// A group's scale, divided by [`LEVEL`] for the levels.
    scales: Buffer<'a, f32>,
    depth: usize,
}

impl<'a> Quantised<'a> {
    /// Whether rows of `depth` columns with blocks of `1 << shift` codes can be multiplied this way.
    pub(super) fn fits(depth: usize, shift: u32) -> bool {
        depth.is_multiple_of(GROUP) && 1usize << shift >= GROUP
    }

    /// `x` `[_, depth]`, whole groups.
    pub(super) fn new(scratch: &'a Scratch, x: &[f32], depth: usize) -> Self {
        let mut ordered = scratch.take::<f32>(x.len());
        reorder(x, depth, &ORDER, depth, &mut ordered);
        let mut values = scratch.take::<i16>(x.len());
        let mut scales = scratch.take::<f32>(x.len() / GROUP);
        let groups = ordered.chunks_exact(GROUP).zip(values.chunks_exact_mut(GROUP));
        for (scale, (group, values)) in scales.iter_mut().zip(groups) {
            *scale = quantise(group, LEVEL, values) / LEVEL;
        }
        Self { values, scales, depth }
    }

    /// The products with some rows of codes, `T` rows of `x` each.
    ///
    /// # Panics
    /// When there are not as many rows of `x`, or a row is not whole groups that have a scale each.
    pub(super) fn four_bit<const T: usize>(&self, rows: FourBitRows<'_>, sums: &mut [[f32; T]]) {
        let depth = rows.check(sums.len());
        assert!(depth == self.depth && Self::fits(depth, rows.shift) && rows.first.is_multiple_of(GROUP));
        assert!(T * depth <= self.values.len());
        // SAFETY: integers are used only where the processor has AVX2; the sizes are checked above.
        unsafe { dots::<T>(rows, self, sums) }
    }
}

/// # Safety
/// The processor has the instructions; `x` has `T` rows; there are `out.len()` rows of whole groups of codes, and every
/// group has its scale.
#[target_feature(enable = "avx2,fma")]
unsafe fn dots<const T: usize>(rows: FourBitRows<'_>, x: &Quantised<'_>, out: &mut [[f32; T]]) {
    let FourBitRows { book, codes, first, shift, scales } = rows;
    let mut planes = [_mm256_setzero_si256(); 2];
    for i in 0..2 {
        // SAFETY: a plane is 16 bytes.
        planes[i] =
            unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(book.integer_planes[i].as_ptr().cast())) };
    }
    let nibble = _mm256_set1_epi8(15);
    let groups = x.depth / GROUP;
    for (row, out) in out.iter_mut().enumerate() {
        let mut sums = [_mm256_setzero_ps(); T];
        for group in 0..groups {
            let done = (row * groups + group) * GROUP;
            // SAFETY: the group's 32 bytes, its scale, and its 64 elements and scale in every row of `x` exist.
            unsafe {
                let bytes = codes.as_ptr().add(done / 2);
                _mm_prefetch::<_MM_HINT_T0>(bytes.wrapping_add(AHEAD).cast());
                let bytes = _mm256_loadu_si256(bytes.cast());
                let even = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble);
                let odd = _mm256_and_si256(bytes, nibble);
                let even = [_mm256_shuffle_epi8(planes[0], even), _mm256_shuffle_epi8(planes[1], even)];
                let odd = [_mm256_shuffle_epi8(planes[0], odd), _mm256_shuffle_epi8(planes[1], odd)];
                let weights = [
                    _mm256_unpacklo_epi8(even[0], even[1]),
                    _mm256_unpackhi_epi8(even[0], even[1]),
                    _mm256_unpacklo_epi8(odd[0], odd[1]),
                    _mm256_unpackhi_epi8(odd[0], odd[1]),
                ];
                let scale = *scales.get_unchecked((first + done) >> shift);
                for (t, sum) in sums.iter_mut().enumerate() {
                    let values = x.values.as_ptr().add(t * x.depth + group * GROUP).cast::<__m256i>();
                    let mut products = [_mm256_setzero_si256(); 4];
                    for i in 0..4 {
                        products[i] = _mm256_madd_epi16(weights[i], _mm256_loadu_si256(values.add(i)));
                    }
                    let whole = _mm256_add_epi32(
                        _mm256_add_epi32(products[0], products[1]),
                        _mm256_add_epi32(products[2], products[3]),
                    );
                    let scale = _mm256_set1_ps(scale * x.scales.get_unchecked(t * groups + group));
                    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, *sum);
                }
            }
        }
        for t in 0..T {
            // SAFETY: this function has the instructions.
            out[t] = unsafe { sums[t].sum() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::decode::Codebook;
    use crate::cpu::matvec::portable::Portable;
    use crate::cpu::matvec::{Dot, Few};
    use crate::cpu::simd::Isa;

    #[test]
    fn integers_are_near_the_reals() {
        if !Isa::Avx2.is_usable() {
            return eprintln!("skipped: this processor has no AVX2");
        }
        const T: usize = 3;
        const ROWS: usize = 5;
        let book = Codebook::new(&std::array::from_fn(|i| (i as f32 * 1.7).sin()));
        let scratch = Scratch::default();
        for depth in [64, 192, 576] {
            // The second row has its outlier, and the third a group of zeros.
            let x: Vec<f32> = (0..T * depth)
                .map(|i| match i {
                    _ if i == depth + 70 % depth => 300.0,
                    _ if i >= 2 * depth && i % depth < 64 => 0.0,
                    _ => ((i * 37 % 101) as f32 - 50.0) / 50.0,
                })
                .collect();
            let codes: Vec<u8> = (0..ROWS * depth / 2).map(|i| (i * 167 + 13) as u8).collect();
            for (first, shift) in [(0, 6), (64, 6), (64, 7), (192, 12)] {
                let end = first + ROWS * depth;
                let scales: Vec<f32> = (0..end.div_ceil(1 << shift)).map(|i| 0.1 + i as f32 * 0.01).collect();
                let rows = FourBitRows { book: &book, codes: &codes, first, shift, scales: &scales };
                let (mut got, mut want) = ([[f32::NAN; T]; ROWS], [[f32::NAN; T]; ROWS]);
                Quantised::new(&scratch, &x, depth).four_bit(rows, &mut got);
                Portable::four_bit(rows, Few { values: &x, stride: depth }, &mut want);
                for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                    let most = scales.last().unwrap() * 300.0;
                    assert!((got - want).abs() < most * 1e-3, "{depth}, {first}, {shift}: {got} {want}");
                }
                // Without the outlier every sum is near its own.
                for (got, want) in got.iter().zip(&want).flat_map(|(g, w)| [(g[0], w[0]), (g[2], w[2])]) {
                    assert!((got - want).abs() < 2e-3 * scales.last().unwrap(), "{got} {want}");
                }
            }
        }
    }

    #[test]
    fn a_number_that_is_not_finite_reaches_the_sum() {
        if !Isa::Avx2.is_usable() {
            return eprintln!("skipped: this processor has no AVX2");
        }
        let book = Codebook::new(&[0.5; 16]);
        let mut x = vec![1.0f32; 64];
        x[9] = f32::INFINITY;
        let rows = FourBitRows { book: &book, codes: &[0; 32], first: 0, shift: 6, scales: &[1.0] };
        let mut sums = [[0.0f32; 1]];
        Quantised::new(&Scratch::default(), &x, 64).four_bit(rows, &mut sums);
        assert!(!sums[0][0].is_finite());
    }
}
