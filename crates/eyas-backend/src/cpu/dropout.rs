//! Dropout on the input of the low-rank updates.

use rayon::prelude::*;

use super::scratch::{Buffer, Scratch};
#[cfg(target_arch = "x86_64")]
use super::simd::Level;
use super::simd::vectorised;
use super::tasks::rows_a_task;
use crate::philox::{dropout_bits, dropout_threshold};
use crate::spec::Dropout;

/// Columns that one counter of the generator covers.
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

    /// `out = mask * x / (1 - p)`, or adds it, for columns `first_col ..` of a token.
    ///
    /// `first_col` is a multiple of 8.
    pub fn apply<const ADD: bool>(&self, token: usize, first_col: usize, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        let width = x.len();
        self.apply_rows::<ADD>(token, first_col, x, width, out, width, width);
    }

    /// [`Mask::apply`] for consecutive tokens: the first `width` columns of rows `x_stride` and `out_stride` apart,
    /// as many as `out` has.
    pub fn apply_rows<const ADD: bool>(
        &self,
        token: usize,
        first_col: usize,
        x: &[f32],
        x_stride: usize,
        out: &mut [f32],
        out_stride: usize,
        width: usize,
    ) {
        if width == 0 || out.len() < width {
            return;
        }
        let rows = (out.len() - width) / out_stride + 1;
        assert!(width <= out_stride && (rows - 1) * x_stride + width <= x.len());
        assert!(first_col.is_multiple_of(COLUMNS));
        let block = (first_col / COLUMNS) as u32;
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if Level::Avx2 <= Level::detect() {
            done = width / avx2::CHUNK * avx2::CHUNK;
            // SAFETY: the processor has AVX2; the rows lie inside the slices, as checked above.
            unsafe {
                let (x, out) = (x.as_ptr(), out.as_mut_ptr());
                avx2::apply::<ADD>(self, token as u32, block, rows, done, (x, x_stride), (out, out_stride));
            }
        }
        if done < width {
            for row in 0..rows {
                let x = &x[row * x_stride..][done..width];
                let out = &mut out[row * out_stride..][done..width];
                self.apply_portable::<ADD>((token + row) as u32, block + (done / COLUMNS) as u32, x, out);
            }
        }
    }

    /// Draws the mask of `cols` columns of the first `tokens` tokens, to be read more than once.
    pub fn draw<'a>(&self, scratch: &'a Scratch, tokens: usize, cols: usize) -> Kept<'a> {
        let row_bytes = cols.div_ceil(COLUMNS);
        let mut bits = scratch.take::<u8>(tokens * row_bytes);
        let rows = rows_a_task(cols);
        bits.par_chunks_mut((rows * row_bytes).max(1)).enumerate().for_each(|(task, bits)| {
            for (row, bits) in bits.chunks_exact_mut(row_bytes).enumerate() {
                self.draw_row((task * rows + row) as u32, bits);
            }
        });
        Kept { bits, row_bytes, scale: self.scale }
    }

    /// The mask of a token: bit `j` of byte `i` is set where column `8 i + j` is kept.
    fn draw_row(&self, token: u32, bits: &mut [u8]) {
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if Level::Avx2 <= Level::detect() {
            done = bits.len() / avx2::DRAWN * avx2::DRAWN;
            // SAFETY: the processor has AVX2.
            unsafe { avx2::draw(self, token, &mut bits[..done]) };
        }
        for (block, bits) in bits.iter_mut().enumerate().skip(done) {
            let drawn = dropout_bits(self.seed, self.micro_batch, self.projection, token, block as u32);
            *bits = (0..COLUMNS).map(|i| u8::from(u32::from(drawn[i]) >= self.threshold) << i).sum();
        }
    }

    fn apply_portable<const ADD: bool>(&self, token: u32, block: u32, x: &[f32], out: &mut [f32]) {
        for (i, (x, out)) in x.chunks(COLUMNS).zip(out.chunks_mut(COLUMNS)).enumerate() {
            let bits = dropout_bits(self.seed, self.micro_batch, self.projection, token, block + i as u32);
            for ((x, out), bits) in x.iter().zip(out).zip(bits) {
                let kept = if u32::from(bits) < self.threshold { 0.0 } else { x * self.scale };
                *out = if ADD { *out + kept } else { kept };
            }
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
    /// What [`Mask::apply`] does.
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

vectorised! {
    fn set_kept(bits: &[u8], scale: f32, x: &[f32], out: &mut [f32]) {
        let (x, rest_x) = x.as_chunks::<COLUMNS>();
        let (out, rest_out) = out.as_chunks_mut::<COLUMNS>();
        for ((out, x), &bits) in out.iter_mut().zip(x).zip(bits) {
            for i in 0..COLUMNS {
                out[i] = kept(bits, i, scale, x[i]);
            }
        }
        for (i, (out, &x)) in rest_out.iter_mut().zip(rest_x).enumerate() {
            *out = kept(bits[bits.len() - 1], i, scale, x);
        }
    }
}

vectorised! {
    fn add_kept(bits: &[u8], scale: f32, x: &[f32], out: &mut [f32]) {
        let (x, rest_x) = x.as_chunks::<COLUMNS>();
        let (out, rest_out) = out.as_chunks_mut::<COLUMNS>();
        for ((out, x), &bits) in out.iter_mut().zip(x).zip(bits) {
            for i in 0..COLUMNS {
                out[i] += kept(bits, i, scale, x[i]);
            }
        }
        for (i, (out, &x)) in rest_out.iter_mut().zip(rest_x).enumerate() {
            *out += kept(bits[bits.len() - 1], i, scale, x);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::Mask;
    use crate::philox::{MULTIPLIERS, WEYL};

    /// Columns of four counters, half of what the lanes hold.
    pub(super) const CHUNK: usize = 32;

    /// Bytes of a mask that are drawn at a time: eight counters.
    pub(super) const DRAWN: usize = 8;

    /// See [`Mask::draw_row`]; `bits` are a whole number of [`DRAWN`].
    #[target_feature(enable = "avx2")]
    pub(super) fn draw(mask: &Mask, token: u32, bits: &mut [u8]) {
        // All are dropped where the threshold is past 16 bits.
        let all = if mask.threshold > 0xFFFF { 0 } else { u32::MAX };
        let threshold = _mm256_set1_epi16(mask.threshold as i16);
        for (i, bits) in bits.chunks_exact_mut(DRAWN).enumerate() {
            let first = (i * DRAWN) as u32;
            let counters = by_counter(philox(mask, [token; 2], [first, first + 4]));
            let mut keep = [_mm256_setzero_si256(); 4];
            for i in 0..4 {
                keep[i] = _mm256_cmpeq_epi16(_mm256_max_epu16(counters[i], threshold), counters[i]);
            }
            // Bits of counters 0 and 1 of each half, then of 2 and 3.
            let m01 = _mm256_movemask_epi8(_mm256_packs_epi16(keep[0], keep[1])) as u32 & all;
            let m23 = _mm256_movemask_epi8(_mm256_packs_epi16(keep[2], keep[3])) as u32 & all;
            bits[..4].copy_from_slice(&(m01 & 0xFFFF | m23 << 16).to_le_bytes());
            bits[4..].copy_from_slice(&(m01 >> 16 | m23 & 0xFFFF_0000).to_le_bytes());
        }
    }

    /// From one word of eight counters a register to the four words of a counter side by side: counter `i` of each half
    /// in the halves of register `i`.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn by_counter(words: [__m256i; 4]) -> [__m256i; 4] {
        let low = [_mm256_unpacklo_epi32(words[0], words[1]), _mm256_unpacklo_epi32(words[2], words[3])];
        let high = [_mm256_unpackhi_epi32(words[0], words[1]), _mm256_unpackhi_epi32(words[2], words[3])];
        [
            _mm256_unpacklo_epi64(low[0], low[1]),
            _mm256_unpackhi_epi64(low[0], low[1]),
            _mm256_unpacklo_epi64(high[0], high[1]),
            _mm256_unpackhi_epi64(high[0], high[1]),
        ]
    }

    /// See [`Mask::apply_rows`]. Two chunks at a time, of one row or of neighbours, fill the lanes.
    ///
    /// # Safety
    /// The processor has AVX2; `x` and `out` have `rows` rows of `width` elements, a whole number of chunks.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn apply<const ADD: bool>(
        mask: &Mask,
        token: u32,
        block: u32,
        rows: usize,
        width: usize,
        (x, x_stride): (*const f32, usize),
        (out, out_stride): (*mut f32, usize),
    ) {
        let chunks = width / CHUNK;
        let total = rows * chunks;
        let (mut row, mut chunk) = (0, 0);
        for pair in 0..total.div_ceil(2) {
            let mut at = [(0, 0); 2];
            let count = (total - 2 * pair).min(2);
            for at in at.iter_mut().take(count) {
                *at = (row, chunk);
                chunk += 1;
                if chunk == chunks {
                    (row, chunk) = (row + 1, 0);
                }
            }
            let blocks = [block + (at[0].1 * CHUNK / 8) as u32, block + (at[1].1 * CHUNK / 8) as u32];
            let tokens = [token + at[0].0 as u32, token + at[1].0 as u32];
            let counters = by_counter(philox(mask, tokens, blocks));
            for (half, &(row, chunk)) in at.iter().enumerate().take(count) {
                // SAFETY: the chunk lies inside row `row` of both.
                unsafe {
                    let x = x.add(row * x_stride + chunk * CHUNK);
                    let out = out.add(row * out_stride + chunk * CHUNK);
                    apply_chunk::<ADD>(mask, &counters, half, x, out);
                }
            }
        }
    }

    /// # Safety
    /// The processor has AVX2; 32 elements can be read at `x` and written at `out`.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn apply_chunk<const ADD: bool>(
        mask: &Mask,
        counters: &[__m256i; 4],
        half: usize,
        x: *const f32,
        out: *mut f32,
    ) {
        let below = _mm256_set1_epi32(mask.threshold as i32 - 1);
        let scale = _mm256_set1_ps(mask.scale);
        for (i, &counter) in counters.iter().enumerate() {
            let bits = match half {
                0 => _mm256_castsi256_si128(counter),
                _ => _mm256_extracti128_si256::<1>(counter),
            };
            let keep = _mm256_cmpgt_epi32(_mm256_cvtepu16_epi32(bits), below);
            // SAFETY: `8 * i + 8 <= 32`.
            unsafe {
                let x = _mm256_mul_ps(_mm256_loadu_ps(x.add(8 * i)), scale);
                let kept = _mm256_and_ps(x, _mm256_castsi256_ps(keep));
                let kept = if ADD { _mm256_add_ps(_mm256_loadu_ps(out.add(8 * i)), kept) } else { kept };
                _mm256_storeu_ps(out.add(8 * i), kept);
            }
        }
    }

    /// Philox of eight counters, [`crate::philox::philox4x32`] in each lane: `blocks[h] .. blocks[h] + 4` of
    /// `tokens[h]` in each half.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn philox(mask: &Mask, tokens: [u32; 2], blocks: [u32; 2]) -> [__m256i; 4] {
        let splat = |word: u32| _mm256_set1_epi32(word as i32);
        let halves = |[low, high]: [u32; 2]| {
            _mm256_blend_epi32::<0b1111_0000>(_mm256_set1_epi32(low as i32), _mm256_set1_epi32(high as i32))
        };
        let mut c = [
            _mm256_add_epi32(halves(blocks), _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3)),
            halves(tokens),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vector_form_draws_the_same_mask() {
        for (p, columns) in [(0.05, 64), (0.5, 200), (0.9999, 8), (0.1, 3), (0.3, 1547)] {
            let dropout = Dropout { p, seed: 0x1234_5678_9abc_def0, micro_batch: 7 };
            let mask = Mask::new(Some(dropout), 11).unwrap();
            let x: Vec<f32> = (0..columns).map(|i| i as f32 + 0.5).collect();
            let (mut got, mut expected) = (vec![f32::NAN; columns], vec![f32::NAN; columns]);
            mask.apply::<false>(1000, 16, &x, &mut got);
            mask.apply_portable::<false>(1000, 2, &x, &mut expected);
            assert_eq!(got, expected);
            mask.apply::<true>(1001, 64, &x, &mut got);
            mask.apply_portable::<true>(1001, 8, &x, &mut expected);
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn rows_of_a_block_are_masked_as_they_are_alone() {
        let mask = Mask::new(Some(Dropout { p: 0.4, seed: 5, micro_batch: 1 }), 3).unwrap();
        let x: Vec<f32> = (0..900).map(|i| i as f32 + 0.5).collect();
        for (rows, width) in [(1, 32), (2, 96), (3, 96), (5, 33), (4, 160), (7, 5)] {
            let (x_stride, out_stride) = (width + 1, width + 2);
            let before: Vec<f32> = (0..rows * out_stride).map(|i| i as f32).collect();
            let (mut got, mut expected) = (before.clone(), before);
            mask.apply_rows::<true>(20, 8, &x, x_stride, &mut got, out_stride, width);
            for row in 0..rows {
                let x = &x[row * x_stride..][..width];
                mask.apply_portable::<true>(
                    20 + row as u32,
                    1,
                    x,
                    &mut expected[row * out_stride..][..width],
                );
            }
            assert_eq!(got, expected, "{rows} x {width}");
        }
    }

    #[test]
    fn a_mask_drawn_is_the_mask() {
        for (p, columns) in [(0.05, 64), (0.5, 203), (1.0, 72), (0.9999, 8), (0.1, 3), (0.3, 1547)] {
            let mask =
                Mask::new(Some(Dropout { p, seed: 0x1234_5678_9abc_def0, micro_batch: 7 }), 11).unwrap();
            let mask = Mask { scale: 1.5, ..mask };
            let scratch = Scratch::default();
            let kept = mask.draw(&scratch, 5, columns);
            let x: Vec<f32> = (0..columns).map(|i| i as f32 + 0.5).collect();
            for first in [0, 8] {
                let x = &x[..columns.saturating_sub(first)];
                let (mut got, mut expected) = (vec![2.0; x.len()], vec![2.0; x.len()]);
                kept.apply::<true>(4, first, x, &mut got);
                mask.apply_portable::<true>(4, first as u32 / 8, x, &mut expected);
                assert_eq!(got, expected, "{p} {columns}");
                kept.apply::<false>(3, first, x, &mut got);
                mask.apply_portable::<false>(3, first as u32 / 8, x, &mut expected);
                assert_eq!(got, expected, "{p} {columns}");
            }
        }
    }

    #[test]
    fn nothing_is_dropped_at_zero() {
        assert!(Mask::new(Some(Dropout { p: 0.0, seed: 1, micro_batch: 0 }), 0).is_none());
        assert!(Mask::new(None, 0).is_none());
    }
}
