//! The inner loops: whole blocks of `f32` to packed codes and scales, and codes back to `f32`.
//!
//! Each loop has a scalar form, which says what the result is, and an AVX2 form with the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;

use half::bf16;

use crate::quant_type::Decision;

/// The smallest absmax a value is divided by, so that the reciprocal stays finite.
pub(crate) const MIN_ABSMAX: f32 = 1e-38;

/// Which form of the loops to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Kernel {
    /// The fastest form that this processor runs.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            return Self::Avx2;
        }
        Self::Scalar
    }

    /// Quantises whole blocks: `x * (1 / absmax)` through `decision`, two codes a byte, the first in the high nibble.
    ///
    /// `values` holds `absmax.len()` blocks, `packed` half as many bytes. False where a value is not finite; the
    /// output is then incomplete.
    pub fn encode_blocks(
        self,
        values: &[f32],
        block_size: usize,
        decision: &Decision,
        packed: &mut [u8],
        absmax: &mut [f32],
    ) -> bool {
        assert!(block_size.is_multiple_of(32));
        assert_eq!(values.len(), absmax.len() * block_size);
        assert_eq!(packed.len(), values.len() / 2);
        match self {
            Self::Scalar => {
                encode_each(values, block_size, packed, absmax, self::absmax, |block, inverse, packed| {
                    encode_pairs(block.iter().map(|v| v * inverse), decision, packed);
                })
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this form is built only where AVX2 was detected; the lengths are checked above.
            Self::Avx2 => unsafe { avx2::encode_blocks(values, block_size, decision, packed, absmax) },
        }
    }

    /// Widens bf16 to f32.
    pub fn widen_bf16(self, src: &[bf16], dst: &mut [f32]) {
        match self {
            Self::Scalar => widen_bf16(src, dst),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this form is built only where AVX2 was detected.
            Self::Avx2 => unsafe { avx2::widen_bf16(src, dst) },
        }
    }

    /// Rounds f32 to bf16.
    pub fn narrow_bf16(self, src: &[f32], dst: &mut [bf16]) {
        match self {
            Self::Scalar => narrow_bf16(src, dst),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this form is built only where AVX2 was detected.
            Self::Avx2 => unsafe { avx2::narrow_bf16(src, dst) },
        }
    }

    /// Reads the first `out.len()` codes of `packed` on levels that are multiplied by the scale already.
    pub fn decode(self, packed: &[u8], levels: &[f32; 16], out: &mut [f32]) {
        assert!(packed.len() >= out.len().div_ceil(2));
        match self {
            Self::Scalar => scalar_decode(packed, levels, out),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this form is built only where AVX2 was detected; the lengths are checked above.
            Self::Avx2 => unsafe { avx2::decode(packed, levels, out) },
        }
    }
}

/// Widens bf16: its bits are the upper half of the f32.
#[inline(always)]
fn widen_bf16(src: &[bf16], dst: &mut [f32]) {
    for (dst, src) in dst.iter_mut().zip(src) {
        *dst = f32::from_bits(u32::from(src.to_bits()) << 16);
    }
}

/// Rounds to bf16, to nearest and ties to even; a NaN stays one and becomes quiet.
#[inline(always)]
fn narrow_bf16(src: &[f32], dst: &mut [bf16]) {
    for (dst, src) in dst.iter_mut().zip(src) {
        let bits = src.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        *dst = bf16::from_bits(if src.is_nan() { quiet } else { rounded } as u16);
    }
}

/// The largest magnitude; an infinity or NaN where one is among the values.
///
/// Magnitudes are compared as integers, which orders finite floats the same way and puts every NaN on top.
pub(crate) fn absmax(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |max, v| max.max(v.abs().to_bits())))
}

/// The code of a scaled value: a binary search without branches.
pub(crate) fn encode_one(decision: &Decision, scaled: f32) -> u8 {
    let mut rank = 0;
    for step in [8, 4, 2, 1] {
        rank += usize::from(scaled > decision.thresholds[rank + step - 1]) * step;
    }
    decision.codes[rank]
}

/// Packs the codes of `scaled` values. An odd count is filled up with the code of zero.
pub(crate) fn encode_pairs(
    scaled: impl ExactSizeIterator<Item = f32>,
    decision: &Decision,
    packed: &mut [u8],
) {
    let mut codes = scaled.map(|value| encode_one(decision, value));
    for byte in packed {
        let high = codes.next().unwrap_or_else(|| encode_one(decision, 0.0));
        let low = codes.next().unwrap_or_else(|| encode_one(decision, 0.0));
        *byte = high << 4 | low;
    }
}

/// The frame of every form of [`Kernel::encode_blocks`]: `absmax` finds a block's scale, and `encode` packs the block
/// multiplied by a number.
#[inline(always)]
fn encode_each(
    values: &[f32],
    block_size: usize,
    packed: &mut [u8],
    absmaxes: &mut [f32],
    absmax: impl Fn(&[f32]) -> f32,
    encode: impl Fn(&[f32], f32, &mut [u8]),
) -> bool {
    let blocks = values.chunks_exact(block_size).zip(packed.chunks_exact_mut(block_size / 2));
    for ((block, packed), out) in blocks.zip(absmaxes) {
        *out = absmax(block);
        if !out.is_finite() {
            return false;
        }
        encode(block, 1.0 / out.max(MIN_ABSMAX), packed);
    }
    true
}

fn scalar_decode(packed: &[u8], levels: &[f32; 16], out: &mut [f32]) {
    for (pair, byte) in out.chunks_mut(2).zip(packed) {
        pair[0] = levels[usize::from(byte >> 4)];
        if let Some(second) = pair.get_mut(1) {
            *second = levels[usize::from(byte & 15)];
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::quant_type::QuantType;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    fn agree(values: &[f32], block_size: usize, quant_type: QuantType) {
        if Kernel::detect() == Kernel::Scalar {
            return;
        }
        let run = |kernel: Kernel| {
            let (mut packed, mut scales) = (vec![0; values.len() / 2], vec![0.0; values.len() / block_size]);
            let finite =
                kernel.encode_blocks(values, block_size, quant_type.decision(), &mut packed, &mut scales);
            (finite, packed, bits(&scales))
        };
        let (scalar, vector) = (run(Kernel::Scalar), run(Kernel::Avx2));
        assert_eq!(scalar.0, vector.0);
        if scalar.0 {
            assert_eq!(scalar, vector);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: RngSeed::Fixed(17),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn avx2_encodes_as_scalar_does(
            bits in prop::collection::vec(any::<u32>(), 128),
            nf4 in any::<bool>(),
        ) {
            let quant_type = if nf4 { QuantType::Nf4 } else { QuantType::Fp4 };
            let any_bits: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
            agree(&any_bits, 32, quant_type);
            let same_scale: Vec<f32> = bits.iter().map(|&b| b as i32 as f32 * 1e-9).collect();
            agree(&same_scale, 64, quant_type);
            let denormal: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b & 0x807f_ffff)).collect();
            agree(&denormal, 128, quant_type);
        }

        #[test]
        fn avx2_decodes_as_scalar_does(
            packed in prop::collection::vec(any::<u8>(), 1..200),
            odd in any::<bool>(),
            scale in any::<f32>(),
        ) {
            let levels = QuantType::Fp4.levels().map(|level| level * scale);
            let mut scalar = vec![0.0; packed.len() * 2 - usize::from(odd)];
            let mut vector = scalar.clone();
            Kernel::Scalar.decode(&packed, &levels, &mut scalar);
            Kernel::detect().decode(&packed, &levels, &mut vector);
            prop_assert_eq!(bits(&scalar), bits(&vector));
        }
    }

    #[test]
    fn thresholds_and_their_neighbours_agree() {
        for quant_type in [QuantType::Nf4, QuantType::Fp4] {
            let mut values = vec![1.0];
            for t in quant_type.decision().thresholds {
                values.extend([t.next_down(), t, t.next_up()]);
            }
            values.resize(64, -0.0);
            agree(&values, 64, quant_type);
        }
    }
}
