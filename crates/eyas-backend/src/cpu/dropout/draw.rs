//! A mask's bits drawn with vectors: Philox of one counter in each lane.

use std::arch::x86_64::*;

use super::Mask;
use crate::cpu::simd::Level;
use crate::cpu::vector::{Words, widths};
use crate::philox::{MULTIPLIERS, ROUNDS, WEYL};

widths! {
    /// What Philox and its words' way to bits need of a vector.
    ///
    /// # Safety
    /// For all operations: the processor has the width's instructions.
    trait Counters: Words => __m256i, __m512i;

    /// Products of the even lanes, 64 bits each.
    fn multiply_even(self, by: Self) -> Self = _mm256_mul_epu32(self, by), _mm512_mul_epu32(self, by);
    /// Odd lanes in the places of their even neighbours.
    fn odd_to_even(self) -> Self = _mm256_srli_epi64::<32>(self), _mm512_srli_epi64::<32>(self);
    /// Even lanes in the places of their odd neighbours.
    fn even_to_odd(self) -> Self = _mm256_slli_epi64::<32>(self), _mm512_slli_epi64::<32>(self);
    /// The even lanes of `self` and the odd ones of `odd`.
    fn with_odd(self, odd: Self) -> Self =
        _mm256_blend_epi32::<0b1010_1010>(self, odd), _mm512_mask_blend_epi32(0b1010_1010_1010_1010, self, odd);
    /// Lanes of both in turn, from the first half of each 128 bits.
    fn zip_low(self, other: Self) -> Self = _mm256_unpacklo_epi32(self, other), _mm512_unpacklo_epi32(self, other);
    /// As [`Counters::zip_low`], from the second half.
    fn zip_high(self, other: Self) -> Self = _mm256_unpackhi_epi32(self, other), _mm512_unpackhi_epi32(self, other);
    /// Pairs of lanes of both: the first of each 128 bits.
    fn zip_low_pairs(self, other: Self) -> Self =
        _mm256_unpacklo_epi64(self, other), _mm512_unpacklo_epi64(self, other);
    /// As [`Counters::zip_low_pairs`], the second of each.
    fn zip_high_pairs(self, other: Self) -> Self =
        _mm256_unpackhi_epi64(self, other), _mm512_unpackhi_epi64(self, other);
    /// 0, 1, 2 and so on.
    fn count() -> Self =
        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    /// A byte for each counter, in order: which of its 16-bit numbers are at least `threshold`. A register holds counter
    /// `i` of every four, its words side by side.
    fn write_kept(counters: [Self; 4], threshold: u16, bytes: &mut [u8]) =
        write_eight(counters, threshold, bytes), write_sixteen(counters, threshold, bytes);
}

/// Draws the first bytes of a row as [`Mask::draw_bits`] does, the widest vectors first. Returns how many: all but fewer
/// than the smallest vector draws.
pub(super) fn draw(mask: &Mask, token: u32, block: u32, bits: &mut [u8]) -> usize {
    let level = Level::detect();
    let mut drawn = 0;
    if level >= Level::Avx512 {
        // SAFETY: the processor has AVX-512.
        drawn += unsafe { draw_sixteens(mask, token, block, bits) };
    }
    if level >= Level::Avx2 {
        // SAFETY: the processor has AVX2.
        drawn += unsafe { draw_eights(mask, token, block + drawn as u32, &mut bits[drawn..]) };
    }
    drawn
}

#[target_feature(enable = "avx2")]
fn draw_eights(mask: &Mask, token: u32, block: u32, bits: &mut [u8]) -> usize {
    // SAFETY: this function has the instructions.
    unsafe { draw_vectors::<__m256i>(mask, token, block, bits) }
}

#[target_feature(enable = "avx512f,avx512bw,avx2")]
fn draw_sixteens(mask: &Mask, token: u32, block: u32, bits: &mut [u8]) -> usize {
    // SAFETY: this function has the instructions.
    unsafe { draw_vectors::<__m512i>(mask, token, block, bits) }
}

/// Draws as many bytes as whole vectors give; returns how many.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn draw_vectors<V: Counters>(mask: &Mask, token: u32, block: u32, bits: &mut [u8]) -> usize {
    let whole = bits.len() / V::LANES * V::LANES;
    let Ok(threshold) = u16::try_from(mask.threshold) else {
        // No number of 16 bits reaches it.
        bits[..whole].fill(0);
        return whole;
    };
    for (i, bytes) in bits[..whole].chunks_exact_mut(V::LANES).enumerate() {
        // SAFETY: the caller promises the instructions.
        unsafe {
            let [a, b, c, d] = philox::<V>(mask, token, block + (i * V::LANES) as u32);
            // From one word of all counters a register to the four words of a counter side by side.
            let (low, high) = ([a.zip_low(b), c.zip_low(d)], [a.zip_high(b), c.zip_high(d)]);
            let counters = [
                low[0].zip_low_pairs(low[1]),
                low[0].zip_high_pairs(low[1]),
                high[0].zip_low_pairs(high[1]),
                high[0].zip_high_pairs(high[1]),
            ];
            V::write_kept(counters, threshold, bytes);
        }
    }
    whole
}

/// Philox of the counters from `block` on, [`crate::philox::philox4x32`] in each lane: one word of all a register.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn philox<V: Counters>(mask: &Mask, token: u32, block: u32) -> [V; 4] {
    // SAFETY: the caller promises the instructions.
    unsafe {
        let mut c = [
            V::splat(block).add(V::count()),
            V::splat(token),
            V::splat(mask.projection),
            V::splat(mask.micro_batch),
        ];
        let (m0, m1) = (V::splat(MULTIPLIERS[0]), V::splat(MULTIPLIERS[1]));
        let mut key = [mask.seed as u32, (mask.seed >> 32) as u32];
        for _ in 0..ROUNDS {
            let (a_low, a_high) = multiply(c[0], m0);
            let (b_low, b_high) = multiply(c[2], m1);
            c = [
                b_high.xor(c[1]).xor(V::splat(key[0])),
                b_low,
                a_high.xor(c[3]).xor(V::splat(key[1])),
                a_low,
            ];
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        c
    }
}

/// Low and high halves of the products.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn multiply<V: Counters>(a: V, b: V) -> (V, V) {
    // SAFETY: the caller promises the instructions.
    unsafe {
        let even = a.multiply_even(b);
        let odd = a.odd_to_even().multiply_even(b);
        (even.with_odd(odd.even_to_odd()), even.odd_to_even().with_odd(odd))
    }
}

/// [`Counters::write_kept`] of eight counters: `i` and `i + 4` in register `i`.
#[target_feature(enable = "avx2")]
#[inline]
fn write_eight(counters: [__m256i; 4], threshold: u16, bytes: &mut [u8]) {
    let threshold = _mm256_set1_epi16(threshold as i16);
    let mut keep = [_mm256_setzero_si256(); 4];
    for i in 0..4 {
        keep[i] = _mm256_cmpeq_epi16(_mm256_max_epu16(counters[i], threshold), counters[i]);
    }
    // Bits of counters 0, 1, 4 and 5, then of 2, 3, 6 and 7.
    let m01 = _mm256_movemask_epi8(_mm256_packs_epi16(keep[0], keep[1])) as u32;
    let m23 = _mm256_movemask_epi8(_mm256_packs_epi16(keep[2], keep[3])) as u32;
    bytes[..4].copy_from_slice(&(m01 & 0xFFFF | m23 << 16).to_le_bytes());
    bytes[4..].copy_from_slice(&(m01 >> 16 | m23 & 0xFFFF_0000).to_le_bytes());
}

/// [`Counters::write_kept`] of sixteen counters: `i`, `i + 4`, `i + 8` and `i + 12` in register `i`.
#[target_feature(enable = "avx512f,avx512bw,avx2")]
#[inline]
fn write_sixteen(counters: [__m512i; 4], threshold: u16, bytes: &mut [u8]) {
    let threshold = _mm512_set1_epi16(threshold as i16);
    let in_order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let mut keep = [0; 4];
    for i in 0..4 {
        keep[i] = _mm512_cmpge_epu16_mask(counters[i], threshold) as i32;
    }
    let keep = _mm_shuffle_epi8(_mm_setr_epi32(keep[0], keep[1], keep[2], keep[3]), in_order);
    assert_eq!(bytes.len(), 16);
    // SAFETY: there are 16 bytes.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), keep) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Dropout;

    /// A width against the portable form, at thresholds from one bit in 65536 to all.
    fn check(lanes: usize, draw: unsafe fn(&Mask, u32, u32, &mut [u8]) -> usize) {
        for p in [1e-4, 0.05, 0.5, 0.9999, 1.0] {
            let dropout = Dropout { p, seed: 0x1234_5678_9abc_def0, micro_batch: 7 };
            let mask = Mask::new(Some(dropout), 11).unwrap();
            for len in [0, 1, lanes - 1, lanes, 3 * lanes + 5] {
                let (mut got, mut expected) = (vec![0xA5; len], vec![0x5A; len]);
                // SAFETY: the caller has seen that the processor has the instructions.
                let drawn = unsafe { draw(&mask, 1000, u32::MAX - 100, &mut got) };
                mask.draw_portable(1000, u32::MAX - 100, &mut expected);
                assert_eq!(drawn, len / lanes * lanes);
                assert_eq!(got[..drawn], expected[..drawn], "p = {p}");
                assert!(got[drawn..].iter().all(|&byte| byte == 0xA5), "more was written than is said");
            }
        }
    }

    #[test]
    fn avx2_draws_the_mask_of_the_portable_form() {
        if Level::detect() < Level::Avx2 {
            return eprintln!("skipped: this processor has no AVX2");
        }
        check(8, draw_eights);
    }

    #[test]
    fn avx512_draws_the_mask_of_the_portable_form() {
        if Level::detect() < Level::Avx512 {
            return eprintln!("skipped: this processor has no AVX-512");
        }
        check(16, draw_sixteens);
    }
}
