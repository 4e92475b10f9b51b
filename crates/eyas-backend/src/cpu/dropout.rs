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
        debug_assert!(first_col.is_multiple_of(COLUMNS));
        assert_eq!(x.len(), out.len());
        let (token, block) = (token as u32, (first_col / COLUMNS) as u32);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2; the lengths are equal.
            return unsafe { avx2::apply::<ADD>(self, token, block, x, out) };
        }
        self.apply_portable::<ADD>(token, block, x, out);
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

    /// Columns of eight counters.
    const STEP: usize = 64;

    /// See [`Mask::apply`].
    ///
    /// # Safety
    /// The processor has AVX2; `x` and `out` are of one length.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn apply<const ADD: bool>(
        mask: &Mask,
        token: u32,
        block: u32,
        x: &[f32],
        out: &mut [f32],
    ) {
        let steps = x.len() / STEP;
        for step in 0..steps {
            // SAFETY: 64 elements from `step * 64` lie inside both slices.
            unsafe {
                let (x, out) = (x.as_ptr().add(step * STEP), out.as_mut_ptr().add(step * STEP));
                apply_step::<ADD>(mask, token, block + (step * 8) as u32, x, out);
            }
        }
        let rest = x.len() - steps * STEP;
        if rest > 0 {
            let (mut x_pad, mut out_pad) = ([0.0; STEP], [0.0; STEP]);
            x_pad[..rest].copy_from_slice(&x[steps * STEP..]);
            out_pad[..rest].copy_from_slice(&out[steps * STEP..]);
            // SAFETY: both arrays hold 64 elements.
            unsafe {
                apply_step::<ADD>(
                    mask,
                    token,
                    block + (steps * 8) as u32,
                    x_pad.as_ptr(),
                    out_pad.as_mut_ptr(),
                );
            }
            out[steps * STEP..].copy_from_slice(&out_pad[..rest]);
        }
    }

    /// # Safety
    /// The processor has AVX2; 64 elements can be read at `x` and written at `out`.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn apply_step<const ADD: bool>(mask: &Mask, token: u32, block: u32, x: *const f32, out: *mut f32) {
        let words = philox(mask, token, block);
        // From one word of eight counters a register to the four words of a counter side by side.
        let low = [_mm256_unpacklo_epi32(words[0], words[1]), _mm256_unpacklo_epi32(words[2], words[3])];
        let high = [_mm256_unpackhi_epi32(words[0], words[1]), _mm256_unpackhi_epi32(words[2], words[3])];
        let counters = [
            _mm256_unpacklo_epi64(low[0], low[1]),
            _mm256_unpackhi_epi64(low[0], low[1]),
            _mm256_unpacklo_epi64(high[0], high[1]),
            _mm256_unpackhi_epi64(high[0], high[1]),
        ];
        let below = _mm256_set1_epi32(mask.threshold as i32 - 1);
        let scale = _mm256_set1_ps(mask.scale);
        for half in 0..2 {
            for (i, &counter) in counters.iter().enumerate() {
                let bits = if half == 0 {
                    _mm256_castsi256_si128(counter)
                } else {
                    _mm256_extracti128_si256::<1>(counter)
                };
                let keep = _mm256_cmpgt_epi32(_mm256_cvtepu16_epi32(bits), below);
                let at = 8 * (4 * half + i);
                // SAFETY: `at + 8 <= 64`.
                unsafe {
                    let x = _mm256_mul_ps(_mm256_loadu_ps(x.add(at)), scale);
                    let kept = _mm256_and_ps(x, _mm256_castsi256_ps(keep));
                    let kept = if ADD { _mm256_add_ps(_mm256_loadu_ps(out.add(at)), kept) } else { kept };
                    _mm256_storeu_ps(out.add(at), kept);
                }
            }
        }
    }

    /// Philox of the counters `block ..block + 8`: [`crate::philox::philox4x32`] in eight lanes.
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
    fn nothing_is_dropped_at_zero() {
        assert!(Mask::new(Some(Dropout { p: 0.0, seed: 1, micro_batch: 0 }), 0).is_none());
        assert!(Mask::new(None, 0).is_none());
    }
}
