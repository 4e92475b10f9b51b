//! Dropout on the input of the low-rank updates.

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
        if is_x86_feature_detected!("avx2") {
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

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::Mask;
    use crate::philox::{MULTIPLIERS, WEYL};

    /// Columns of four counters, half of what the lanes hold.
    pub(super) const CHUNK: usize = 32;

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
            let words = philox(mask, tokens, blocks);
            // From one word of eight counters a register to the four words of a counter side by side.
            let low = [_mm256_unpacklo_epi32(words[0], words[1]), _mm256_unpacklo_epi32(words[2], words[3])];
            let high = [_mm256_unpackhi_epi32(words[0], words[1]), _mm256_unpackhi_epi32(words[2], words[3])];
            let counters = [
                _mm256_unpacklo_epi64(low[0], low[1]),
                _mm256_unpackhi_epi64(low[0], low[1]),
                _mm256_unpacklo_epi64(high[0], high[1]),
                _mm256_unpackhi_epi64(high[0], high[1]),
            ];
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
    fn nothing_is_dropped_at_zero() {
        assert!(Mask::new(Some(Dropout { p: 0.0, seed: 1, micro_batch: 0 }), 0).is_none());
        assert!(Mask::new(None, 0).is_none());
    }
}
