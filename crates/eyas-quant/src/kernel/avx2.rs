//! The AVX2 form of the inner loops.

use std::arch::x86_64::*;

use half::bf16;

use super::{encode_each, scalar_decode};
use crate::quant_type::Decision;

/// Values a step handles: 16 bytes of codes.
const STEP: usize = 32;

/// The thresholds as the binary search needs them, one register a level of the tree.
struct Search {
    first: __m256,
    second: [__m256; 2],
    third: __m256,
    fourth: __m256,
    codes: __m256i,
}

impl Search {
    #[target_feature(enable = "avx2")]
    fn new(decision: &Decision) -> Self {
        let t = &decision.thresholds;
        let c = decision.codes.map(|code| code as i8);
        Self {
            first: _mm256_set1_ps(t[7]),
            second: [_mm256_set1_ps(t[3]), _mm256_set1_ps(t[11])],
            third: _mm256_setr_ps(t[1], t[5], t[9], t[13], t[1], t[5], t[9], t[13]),
            fourth: _mm256_setr_ps(t[0], t[2], t[4], t[6], t[8], t[10], t[12], t[14]),
            codes: _mm256_broadcastsi128_si256(_mm_setr_epi8(
                c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9], c[10], c[11], c[12], c[13],
                c[14], c[15],
            )),
        }
    }

    /// How many thresholds lie below each value.
    #[target_feature(enable = "avx2")]
    fn rank(&self, x: __m256) -> __m256i {
        // A comparison gives -1 where it holds, so subtracting it appends the bit to the rank doubled.
        let above = |threshold| _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(x, threshold));
        let append = |rank, bit| _mm256_sub_epi32(_mm256_add_epi32(rank, rank), bit);
        let bit = above(self.first);
        let second = _mm256_blendv_ps(self.second[0], self.second[1], _mm256_castsi256_ps(bit));
        let rank = append(_mm256_sub_epi32(_mm256_setzero_si256(), bit), above(second));
        let rank = append(rank, above(_mm256_permutevar8x32_ps(self.third, rank)));
        append(rank, above(_mm256_permutevar8x32_ps(self.fourth, rank)))
    }
}

/// [`super::absmax`] of whole steps.
#[target_feature(enable = "avx2")]
fn absmax(values: &[f32]) -> f32 {
    let magnitude = _mm256_set1_epi32(i32::MAX);
    let mut max = [_mm256_setzero_si256(); 4];
    for step in values.chunks_exact(STEP) {
        for (i, max) in max.iter_mut().enumerate() {
            // SAFETY: a step holds 32 values; lane group i ends at 8 i + 8 <= 32.
            let bits = unsafe { _mm256_loadu_si256(step.as_ptr().add(8 * i).cast()) };
            *max = _mm256_max_epi32(*max, _mm256_and_si256(bits, magnitude));
        }
    }
    let max = _mm256_max_epi32(_mm256_max_epi32(max[0], max[1]), _mm256_max_epi32(max[2], max[3]));
    let max = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256::<1>(max));
    let max = _mm_max_epi32(max, _mm_shuffle_epi32::<0b01_00_11_10>(max));
    let max = _mm_max_epi32(max, _mm_shuffle_epi32::<0b10_11_00_01>(max));
    f32::from_bits(_mm_cvtsi128_si32(max) as u32)
}

/// See [`super::Kernel::encode_blocks`].
///
/// # Safety
/// The processor has AVX2; `block_size` is a multiple of 32; `values` holds `absmaxes.len()` blocks and `packed` half
/// as many bytes as `values` values.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn encode_blocks(
    values: &[f32],
    block_size: usize,
    decision: &Decision,
    packed: &mut [u8],
    absmaxes: &mut [f32],
) -> bool {
    let search = Search::new(decision);
    let in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    // Multiplies the even bytes by 16 and the odd ones by 1.
    let pair = _mm256_set1_epi16(0x0110);
    encode_each(
        values,
        block_size,
        packed,
        absmaxes,
        |block| absmax(block),
        |block, inverse, packed| {
            let inverse = _mm256_set1_ps(inverse);
            for (step, packed) in block.chunks_exact(STEP).zip(packed.chunks_exact_mut(STEP / 2)) {
                let rank = |i: usize| {
                    // SAFETY: a step holds 32 values and i < 4.
                    let x = unsafe { _mm256_loadu_ps(step.as_ptr().add(8 * i)) };
                    search.rank(_mm256_mul_ps(x, inverse))
                };
                let ranks = _mm256_packus_epi16(
                    _mm256_packs_epi32(rank(0), rank(1)),
                    _mm256_packs_epi32(rank(2), rank(3)),
                );
                // The packs interleave the 128-bit lanes; four bytes of each rank vector stay together.
                let ranks = _mm256_permutevar8x32_epi32(ranks, in_order);
                let codes = _mm256_shuffle_epi8(search.codes, ranks);
                let pairs = _mm256_maddubs_epi16(codes, pair);
                let bytes = _mm256_permute4x64_epi64::<0b10_00>(_mm256_packus_epi16(pairs, pairs));
                // SAFETY: `packed` is a chunk of exactly 16 bytes.
                unsafe { _mm_storeu_si128(packed.as_mut_ptr().cast(), _mm256_castsi256_si128(bytes)) };
            }
        },
    )
}

/// See [`super::Kernel::decode`].
///
/// # Safety
/// The processor has AVX2; `packed` holds at least `out.len()` codes.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn decode(packed: &[u8], levels: &[f32; 16], out: &mut [f32]) {
    // SAFETY: `levels` holds 16 values.
    let (low, high) = unsafe { (_mm256_loadu_ps(levels.as_ptr()), _mm256_loadu_ps(levels.as_ptr().add(8))) };
    let nibble = _mm_set1_epi8(15);
    let steps = out.len() / STEP;
    let (whole, rest) = out.split_at_mut(steps * STEP);
    for (out, packed) in whole.chunks_exact_mut(STEP).zip(packed.chunks_exact(STEP / 2)) {
        // SAFETY: `packed` is a chunk of exactly 16 bytes.
        let bytes = unsafe { _mm_loadu_si128(packed.as_ptr().cast()) };
        let first = _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble);
        let second = _mm_and_si128(bytes, nibble);
        let halves = [_mm_unpacklo_epi8(first, second), _mm_unpackhi_epi8(first, second)];
        let groups = [halves[0], _mm_srli_si128::<8>(halves[0]), halves[1], _mm_srli_si128::<8>(halves[1])];
        for (i, group) in groups.into_iter().enumerate() {
            let code = _mm256_cvtepu8_epi32(group);
            // Bit 3 of the code, moved to the sign, picks the half of the table; the permutes read bits 0..2.
            let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(code));
            let value = _mm256_blendv_ps(
                _mm256_permutevar8x32_ps(low, code),
                _mm256_permutevar8x32_ps(high, code),
                upper,
            );
            // SAFETY: a chunk of `out` holds 32 values and i < 4.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * i), value) };
        }
    }
    if !rest.is_empty() {
        scalar_decode(&packed[steps * STEP / 2..], levels, rest);
    }
}

/// The scalar loop, compiled for AVX2.
#[target_feature(enable = "avx2")]
pub(super) fn widen_bf16(src: &[bf16], dst: &mut [f32]) {
    super::widen_bf16(src, dst);
}

/// The scalar loop, compiled for AVX2.
#[target_feature(enable = "avx2")]
pub(super) fn narrow_bf16(src: &[f32], dst: &mut [bf16]) {
    super::narrow_bf16(src, dst);
}
