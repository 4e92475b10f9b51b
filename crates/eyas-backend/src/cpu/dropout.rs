//! Dropout on the input of the low-rank updates.
//!
//! A mask is drawn as bits, one a column, and applied from them.

use rayon::prelude::*;

use super::scratch::{Buffer, Scratch};
#[cfg(target_arch = "x86_64")]
use super::simd::Level;
use super::simd::vectorised;
use super::tasks::rows_a_task;
use crate::philox::{dropout_bits, dropout_threshold};
use crate::spec::Dropout;

/// Columns that one counter of the generator covers: a byte of bits.
const COLUMNS: usize = 8;

/// The mask of one projection's input in one micro-batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mask {
    seed: u64,
    micro_batch: u32,
    projection: u32,
    threshold: u32,
    scale: f32,
}

impl Mask {
    /// `None` where nothing is dropped.
    pub fn new(dropout: Option<Dropout>, projection: u32) -> Option<Self> {
        let dropout = dropout?;
        let threshold = dropout_threshold(dropout.p);
        (threshold > 0).then(|| Self {
            seed: dropout.seed,
            micro_batch: dropout.micro_batch,
            projection,
            threshold,
            scale: 1.0 / (1.0 - dropout.p),
        })
    }

    /// `out = mask * x / (1 - p)` for the columns of a token.
    pub fn apply(&self, token: usize, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        const PIECE: usize = 1024;
        let mut bits = [0; PIECE / COLUMNS];
        for (piece, (x, out)) in x.chunks(PIECE).zip(out.chunks_mut(PIECE)).enumerate() {
            let bits = &mut bits[..x.len().div_ceil(COLUMNS)];
            self.draw_bits(token as u32, (piece * PIECE / COLUMNS) as u32, bits);
            set_kept(bits, self.scale, x, out);
        }
    }

    /// Draws the mask of `cols` columns of the first `tokens` tokens, to be read more than once.
    pub fn draw<'a>(&self, scratch: &'a Scratch, tokens: usize, cols: usize) -> Kept<'a> {
        let row_bytes = cols.div_ceil(COLUMNS);
        let mut bits = scratch.take::<u8>(tokens * row_bytes);
        let rows = rows_a_task(cols);
        bits.par_chunks_mut((rows * row_bytes).max(1)).enumerate().for_each(|(task, bits)| {
            for (row, bits) in bits.chunks_exact_mut(row_bytes).enumerate() {
                self.draw_bits((task * rows + row) as u32, 0, bits);
            }
        });
        Kept { bits, row_bytes, scale: self.scale }
    }

    /// The mask of a token from column `8 * block` on: bit `j` of byte `i` is set where column `8 i + j` is kept.
    fn draw_bits(&self, token: u32, block: u32, bits: &mut [u8]) {
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if Level::Avx512 <= Level::detect() {
            done = bits.len() / avx512::DRAWN * avx512::DRAWN;
            // SAFETY: the processor has AVX-512.
            unsafe { avx512::draw(self, token, block, &mut bits[..done]) };
        }
        #[cfg(target_arch = "x86_64")]
        if Level::Avx2 <= Level::detect() {
            let len = (bits.len() - done) / avx2::DRAWN * avx2::DRAWN;
            // SAFETY: the processor has AVX2.
            unsafe { avx2::draw(self, token, block + done as u32, &mut bits[done..][..len]) };
            done += len;
        }
        self.draw_portable(token, block + done as u32, &mut bits[done..]);
    }

    fn draw_portable(&self, token: u32, block: u32, bits: &mut [u8]) {
        for (block, bits) in (block..).zip(bits) {
            let drawn = dropout_bits(self.seed, self.micro_batch, self.projection, token, block);
            *bits = (0..COLUMNS).map(|i| u8::from(u32::from(drawn[i]) >= self.threshold) << i).sum();
        }
    }
}

/// A mask drawn: a bit for each column of each token.
#[derive(Debug)]
pub(super) struct Kept<'a> {
    bits: Buffer<'a, u8>,
    row_bytes: usize,
    scale: f32,
}

impl Kept<'_> {
    /// `out = mask * x / (1 - p)`, or adds it, for columns `first_col ..` of a token.
    ///
    /// `first_col` is a multiple of 8.
    pub fn apply<const ADD: bool>(&self, token: usize, first_col: usize, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        assert!(first_col.is_multiple_of(COLUMNS));
        let first = token * self.row_bytes + first_col / COLUMNS;
        let bits = &self.bits[first..][..x.len().div_ceil(COLUMNS)];
        if ADD { add_kept(bits, self.scale, x, out) } else { set_kept(bits, self.scale, x, out) }
    }
}

/// `scale * x` where the bit is set, zero elsewhere.
#[inline(always)]
fn kept(bits: u8, column: usize, scale: f32, x: f32) -> f32 {
    let all = 0u32.wrapping_sub(u32::from(bits) >> column & 1);
    f32::from_bits((x * scale).to_bits() & all)
}

/// Calls `write` with what is kept of each element.
#[inline(always)]
fn each_kept(bits: &[u8], scale: f32, x: &[f32], out: &mut [f32], write: impl Fn(&mut f32, f32)) {
    let (x, rest_x) = x.as_chunks::<COLUMNS>();
    let (out, rest_out) = out.as_chunks_mut::<COLUMNS>();
    for ((out, x), &bits) in out.iter_mut().zip(x).zip(bits) {
        for i in 0..COLUMNS {
            write(&mut out[i], kept(bits, i, scale, x[i]));
        }
    }
    for (i, (out, &x)) in rest_out.iter_mut().zip(rest_x).enumerate() {
        write(out, kept(bits[bits.len() - 1], i, scale, x));
    }
}

vectorised! {
    fn set_kept(bits: &[u8], scale: f32, x: &[f32], out: &mut [f32]) {
        each_kept(bits, scale, x, out, |out, kept| *out = kept);
    }
}

vectorised! {
    fn add_kept(bits: &[u8], scale: f32, x: &[f32], out: &mut [f32]) {
        each_kept(bits, scale, x, out, |out, kept| *out += kept);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::Mask;
    use crate::philox::{MULTIPLIERS, WEYL};

    /// Bytes of a mask that are drawn at a time: eight counters.
    pub(super) const DRAWN: usize = 8;

    /// See [`Mask::draw_bits`]; `bits` are a whole number of [`DRAWN`].
    #[target_feature(enable = "avx2")]
    pub(super) fn draw(mask: &Mask, token: u32, block: u32, bits: &mut [u8]) {
        // All are dropped where the threshold is past 16 bits.
        let all = if mask.threshold > 0xFFFF { 0 } else { u32::MAX };
        let threshold = _mm256_set1_epi16(mask.threshold as i16);
        for (i, bits) in bits.chunks_exact_mut(DRAWN).enumerate() {
            let words = philox(mask, token, block + (i * DRAWN) as u32);
            // From one word of eight counters a register to the four words of a counter side by side: counters `i` and
            // `i + 4` in register `i`.
            let low = [_mm256_unpacklo_epi32(words[0], words[1]), _mm256_unpacklo_epi32(words[2], words[3])];
            let high = [_mm256_unpackhi_epi32(words[0], words[1]), _mm256_unpackhi_epi32(words[2], words[3])];
            let counters = [
                _mm256_unpacklo_epi64(low[0], low[1]),
                _mm256_unpackhi_epi64(low[0], low[1]),
                _mm256_unpacklo_epi64(high[0], high[1]),
                _mm256_unpackhi_epi64(high[0], high[1]),
            ];
            let mut keep = [_mm256_setzero_si256(); 4];
            for i in 0..4 {
                keep[i] = _mm256_cmpeq_epi16(_mm256_max_epu16(counters[i], threshold), counters[i]);
            }
            // Bits of counters 0, 1, 4 and 5, then of 2, 3, 6 and 7.
            let m01 = _mm256_movemask_epi8(_mm256_packs_epi16(keep[0], keep[1])) as u32 & all;
            let m23 = _mm256_movemask_epi8(_mm256_packs_epi16(keep[2], keep[3])) as u32 & all;
            bits[..4].copy_from_slice(&(m01 & 0xFFFF | m23 << 16).to_le_bytes());
            bits[4..].copy_from_slice(&(m01 >> 16 | m23 & 0xFFFF_0000).to_le_bytes());
        }
    }

    /// Philox of eight counters from `block` on, [`crate::philox::philox4x32`] in each lane.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn philox(mask: &Mask, token: u32, block: u32) -> [__m256i; 4] {
        let splat = |word: u32| _mm256_set1_epi32(word as i32);
        let mut c = [
            _mm256_add_epi32(splat(block), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
            splat(token),
            splat(mask.projection),
            splat(mask.micro_batch),
        ];
        let (m0, m1) = (splat(MULTIPLIERS[0]), splat(MULTIPLIERS[1]));
        let mut key = [mask.seed as u32, (mask.seed >> 32) as u32];
        for _ in 0..10 {
            let (a_low, a_high) = multiply(c[0], m0);
            let (b_low, b_high) = multiply(c[2], m1);
            c = [
                _mm256_xor_si256(_mm256_xor_si256(b_high, c[1]), splat(key[0])),
                b_low,
                _mm256_xor_si256(_mm256_xor_si256(a_high, c[3]), splat(key[1])),
                a_low,
            ];
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        c
    }

    /// Low and high halves of the products.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn multiply(a: __m256i, b: __m256i) -> (__m256i, __m256i) {
        let even = _mm256_mul_epu32(a, b);
        let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), b);
        let low = _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd));
        let high = _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(even), odd);
        (low, high)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::Mask;
    use crate::philox::{MULTIPLIERS, WEYL};

    /// Bytes of a mask that are drawn at a time: sixteen counters.
    pub(super) const DRAWN: usize = 16;

    /// See [`Mask::draw_bits`]; `bits` are a whole number of [`DRAWN`].
    #[target_feature(enable = "avx512f,avx512bw,avx2")]
    pub(super) fn draw(mask: &Mask, token: u32, block: u32, bits: &mut [u8]) {
        // All are dropped where the threshold is past 16 bits.
        let all = if mask.threshold > 0xFFFF { 0 } else { u32::MAX };
        let threshold = _mm512_set1_epi16(mask.threshold as i16);
        let in_order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        for (i, bits) in bits.chunks_exact_mut(DRAWN).enumerate() {
            let words = philox(mask, token, block + (i * DRAWN) as u32);
            // As with AVX2: counters `i`, `i + 4`, `i + 8` and `i + 12` in register `i`.
            let low = [_mm512_unpacklo_epi32(words[0], words[1]), _mm512_unpacklo_epi32(words[2], words[3])];
            let high = [_mm512_unpackhi_epi32(words[0], words[1]), _mm512_unpackhi_epi32(words[2], words[3])];
            let counters = [
                _mm512_unpacklo_epi64(low[0], low[1]),
                _mm512_unpackhi_epi64(low[0], low[1]),
                _mm512_unpacklo_epi64(high[0], high[1]),
                _mm512_unpackhi_epi64(high[0], high[1]),
            ];
            let mut keep = [0; 4];
            for i in 0..4 {
                keep[i] = (_mm512_cmpge_epu16_mask(counters[i], threshold) & all) as i32;
            }
            let keep = _mm_setr_epi32(keep[0], keep[1], keep[2], keep[3]);
            // SAFETY: the chunk is 16 bytes.
            unsafe { _mm_storeu_si128(bits.as_mut_ptr().cast(), _mm_shuffle_epi8(keep, in_order)) };
        }
    }

    /// Philox of sixteen counters from `block` on, [`crate::philox::philox4x32`] in each lane.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn philox(mask: &Mask, token: u32, block: u32) -> [__m512i; 4] {
        let splat = |word: u32| _mm512_set1_epi32(word as i32);
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let mut c = [
            _mm512_add_epi32(splat(block), lanes),
            splat(token),
            splat(mask.projection),
            splat(mask.micro_batch),
        ];
        let (m0, m1) = (splat(MULTIPLIERS[0]), splat(MULTIPLIERS[1]));
        let mut key = [mask.seed as u32, (mask.seed >> 32) as u32];
        for _ in 0..10 {
            let (a_low, a_high) = multiply(c[0], m0);
            let (b_low, b_high) = multiply(c[2], m1);
            c = [
                _mm512_xor_si512(_mm512_xor_si512(b_high, c[1]), splat(key[0])),
                b_low,
                _mm512_xor_si512(_mm512_xor_si512(a_high, c[3]), splat(key[1])),
                a_low,
            ];
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        c
    }

    /// Low and high halves of the products.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn multiply(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
        const ODD: u16 = 0b1010_1010_1010_1010;
        let even = _mm512_mul_epu32(a, b);
        let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), b);
        let low = _mm512_mask_blend_epi32(ODD, even, _mm512_slli_epi64::<32>(odd));
        let high = _mm512_mask_blend_epi32(ODD, _mm512_srli_epi64::<32>(even), odd);
        (low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vector_forms_draw_the_same_mask() {
        for (p, bytes) in [(0.05, 8), (0.5, 25), (1.0, 9), (0.9999, 1), (0.1, 40), (0.3, 193)] {
            let dropout = Dropout { p, seed: 0x1234_5678_9abc_def0, micro_batch: 7 };
            let mask = Mask::new(Some(dropout), 11).unwrap();
            let (mut got, mut expected) = (vec![0xA5; bytes], vec![0x5A; bytes]);
            mask.draw_bits(1000, 2, &mut got);
            mask.draw_portable(1000, 2, &mut expected);
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_mask_is_applied_by_its_definition() {
        for columns in [1, 8, 13, 64, 1547] {
            let mask = Mask::new(Some(Dropout { p: 0.4, seed: 5 << 40, micro_batch: 1 }), 3).unwrap();
            let scratch = Scratch::default();
            let drawn = mask.draw(&scratch, 50, columns);
            let x: Vec<f32> = (0..columns).map(|i| i as f32 + 0.5).collect();
            for token in [0, 20, 49] {
                let expected: Vec<f32> = (0..columns)
                    .map(|i| {
                        let bits = dropout_bits(5 << 40, 1, 3, token as u32, (i / 8) as u32)[i % 8];
                        if u32::from(bits) < dropout_threshold(0.4) { 0.0 } else { x[i] * (1.0 / 0.6) }
                    })
                    .collect();
                let mut out = vec![f32::NAN; columns];
                mask.apply(token, &x, &mut out);
                assert_eq!(out, expected);
                for first in [0, 8, 64] {
                    let first = if first < columns { first } else { 0 };
                    let (x, expected) = (&x[first..], &expected[first..]);
                    let mut out = vec![f32::NAN; x.len()];
                    drawn.apply::<false>(token, first, x, &mut out);
                    assert_eq!(out, expected);
                    out.fill(2.0);
                    drawn.apply::<true>(token, first, x, &mut out);
                    assert!(out.iter().zip(expected).all(|(out, kept)| *out == 2.0 + kept));
                }
            }
        }
    }

    #[test]
    fn nothing_is_dropped_at_zero() {
        assert!(Mask::new(Some(Dropout { p: 0.0, seed: 1, micro_batch: 0 }), 0).is_none());
        assert!(Mask::new(None, 0).is_none());
    }
}
