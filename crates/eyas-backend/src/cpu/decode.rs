//! 4-bit codes and 16-bit floats to `f32`.

use half::bf16;

use super::simd::Level;

/// Codes that the vector forms take at a time: 16 bytes of them.
pub(super) const STEP: usize = 32;

/// What a level of one is as an integer: 8 products of it and itself fit 32 bits, with their sign.
pub(super) const LEVEL: f32 = 16383.0;

/// The 16 values of a 4-bit type, also cut into bytes: `planes[p][code]` is byte `p` of `levels[code]`, least
/// significant first, so that one byte shuffle looks up a plane of many codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Codebook {
    pub levels: [f32; 16],
    pub planes: [[u8; 16]; 4],
    /// The levels in [`LEVEL`]ths, as planes of 16-bit integers.
    pub integer_planes: [[u8; 16]; 2],
}

impl Codebook {
    pub fn new(levels: &[f32; 16]) -> Self {
        let planes = std::array::from_fn(|plane| levels.map(|level| level.to_le_bytes()[plane]));
        let integers = levels.map(|level| (level * LEVEL).round() as i16);
        let integer_planes = std::array::from_fn(|plane| integers.map(|level| level.to_le_bytes()[plane]));
        Self { levels: *levels, planes, integer_planes }
    }

    /// Decodes the `out.len()` codes from number `first` on of `packed`, whose first code is in the high nibble of
    /// its first byte: `level * scale`, rounded once.
    ///
    /// `scales[i]` belongs to the codes of block `(first >> shift) + i`; a block is `1 << shift` codes, at least 32.
    pub fn decode(&self, packed: &[u8], first: usize, shift: u32, scales: &[f32], out: &mut [f32]) {
        let block = first >> shift;
        let mut index = first;
        let mut done = 0;
        while done < out.len() {
            let scale = scales[(index >> shift) - block];
            let len = ((((index >> shift) + 1) << shift) - index).min(out.len() - done);
            self.decode_run(packed, index, scale, &mut out[done..done + len]);
            index += len;
            done += len;
        }
    }

    /// Decodes codes of one block.
    fn decode_run(&self, packed: &[u8], first: usize, scale: f32, out: &mut [f32]) {
        assert!(first + out.len() <= packed.len() * 2);
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if first.is_multiple_of(2) && out.len() >= STEP && Level::Avx2 <= Level::detect() {
            done = out.len() / STEP * STEP;
            let (packed, out) = (&packed[first / 2..], &mut out[..done]);
            // SAFETY: the processor has the instructions, and `packed` holds the codes, as checked above.
            unsafe {
                match Level::detect() {
                    Level::Avx512 => avx512::decode_run(self, packed, scale, out),
                    _ => avx2::decode_run(self, packed, scale, out),
                }
            }
        }
        for (i, out) in out.iter_mut().enumerate().skip(done) {
            let byte = packed[(first + i) / 2];
            let code = if (first + i).is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            *out = self.levels[usize::from(code)] * scale;
        }
    }
}

/// Widens `bf16` to `f32`.
pub(super) fn widen_bf16(source: &[bf16], out: &mut [f32]) {
    for (out, source) in out.iter_mut().zip(source) {
        *out = f32::from_bits(u32::from(source.to_bits()) << 16);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Codebook, STEP};

    /// # Safety
    /// The processor has AVX2; `out` is a whole number of steps and `packed` holds as many codes.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn decode_run(book: &Codebook, packed: &[u8], scale: f32, out: &mut [f32]) {
        // No closures here: one passed to a library function would be compiled without AVX2, and called.
        let mut planes = [_mm256_setzero_si256(); 4];
        for i in 0..4 {
            // SAFETY: a plane is 16 bytes.
            planes[i] =
                unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(book.planes[i].as_ptr().cast())) };
        }
        let scale = _mm256_set1_ps(scale);
        // Each byte twice, those of codes 0..4, 8..12, 16..20, 24..28 in the low lane and the others in the high
        // one: the widening unpacks below then yield eight codes in order.
        let twice = _mm256_setr_epi8(
            0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, 2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14,
            14, 15, 15,
        );
        for (out, packed) in out.chunks_exact_mut(STEP).zip(packed.chunks_exact(STEP / 2)) {
            // SAFETY: the chunk holds 16 bytes.
            let bytes = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(packed.as_ptr().cast())) };
            let bytes = _mm256_shuffle_epi8(bytes, twice);
            let codes = _mm256_or_si256(
                _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi16(0x000F)),
                _mm256_and_si256(bytes, _mm256_set1_epi16(0x0F00)),
            );
            let (p0, p1) = (_mm256_shuffle_epi8(planes[0], codes), _mm256_shuffle_epi8(planes[1], codes));
            let (p2, p3) = (_mm256_shuffle_epi8(planes[2], codes), _mm256_shuffle_epi8(planes[3], codes));
            let low = [_mm256_unpacklo_epi8(p0, p1), _mm256_unpacklo_epi8(p2, p3)];
            let high = [_mm256_unpackhi_epi8(p0, p1), _mm256_unpackhi_epi8(p2, p3)];
            let values = [
                _mm256_unpacklo_epi16(low[0], low[1]),
                _mm256_unpackhi_epi16(low[0], low[1]),
                _mm256_unpacklo_epi16(high[0], high[1]),
                _mm256_unpackhi_epi16(high[0], high[1]),
            ];
            for (i, value) in values.into_iter().enumerate() {
                // SAFETY: the chunk holds 32 values.
                unsafe {
                    _mm256_storeu_ps(
                        out.as_mut_ptr().add(8 * i),
                        _mm256_mul_ps(_mm256_castsi256_ps(value), scale),
                    );
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{Codebook, STEP};

    /// What brings the eight codes of a 32-bit word to the low bits, in order.
    pub(super) const SHIFTS: [i32; 16] = [4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24];

    /// # Safety
    /// The processor has AVX-512 F; `out` is a whole number of steps and `packed` holds as many codes.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn decode_run(book: &Codebook, packed: &[u8], scale: f32, out: &mut [f32]) {
        let scale = _mm512_set1_ps(scale);
        // SAFETY: both arrays are sixteen lanes.
        let (levels, shifts) =
            unsafe { (_mm512_loadu_ps(book.levels.as_ptr()), _mm512_loadu_si512(SHIFTS.as_ptr().cast())) };
        // Words 0 and 1, then words 2 and 3, eight lanes each.
        let words = [
            _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
            _mm512_setr_epi32(2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3),
        ];
        for (out, packed) in out.chunks_exact_mut(STEP).zip(packed.chunks_exact(STEP / 2)) {
            // SAFETY: the chunk holds 16 bytes.
            let packed = unsafe { _mm512_castsi128_si512(_mm_loadu_si128(packed.as_ptr().cast())) };
            for (i, words) in words.into_iter().enumerate() {
                // The look-up reads the low four bits of a lane.
                let codes = _mm512_srlv_epi32(_mm512_permutexvar_epi32(words, packed), shifts);
                let values = _mm512_mul_ps(_mm512_permutexvar_ps(codes, levels), scale);
                // SAFETY: the chunk holds 32 values.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(16 * i), values) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn shifts_bring_the_codes_in_order() {
        let bytes = [0x01u8, 0x23, 0x45, 0x67];
        for (i, shift) in super::avx512::SHIFTS.into_iter().enumerate() {
            assert_eq!(u32::from_le_bytes(bytes) >> shift & 15, i as u32 % 8);
        }
    }

    #[test]
    fn any_range_decodes_to_level_times_scale() {
        let levels: [f32; 16] = std::array::from_fn(|i| (i as f32 * 1.7).sin());
        let book = Codebook::new(&levels);
        let packed: Vec<u8> = (0..512u32).map(|i| (i * 167 + 13) as u8).collect();
        let scales: Vec<f32> = (0..32).map(|i| 0.1 + i as f32).collect();
        let code = |i: usize| if i.is_multiple_of(2) { packed[i / 2] >> 4 } else { packed[i / 2] & 15 };
        for shift in [5, 6, 8] {
            let block_size = 1 << shift;
            for first in [0, 1, 2, 31, 32, 62, 64, 65, 300] {
                for len in [0, 1, 5, 32, 63, 64, 96, 97, 500] {
                    let mut out = vec![0.0; len];
                    book.decode(&packed, first, shift, &scales[first / block_size..], &mut out);
                    for (i, out) in out.into_iter().enumerate() {
                        let scale = scales[(first + i) / block_size];
                        assert_eq!(out.to_bits(), (levels[usize::from(code(first + i))] * scale).to_bits());
                    }
                }
            }
        }
    }
}
