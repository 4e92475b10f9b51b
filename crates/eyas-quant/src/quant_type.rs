//! The two 4-bit types: their levels, where they decide, and the settings of a quantisation.

use crate::error::{Error, Result};

/// The block sizes that bitsandbytes accepts.
pub const BLOCK_SIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// A 4-bit type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum QuantType {
    /// Quantiles of the standard normal distribution, scaled to -1 .. 1 ("4-bit NormalFloat", QLoRA).
    #[default]
    Nf4,
    /// One sign bit, two exponent bits, one fraction bit, divided by 12.
    Fp4,
}

const NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const FP4_LEVELS: [f32; 16] = {
    // By bit pattern, the sign aside: 0, 1/16, 8, 12, 4, 6, 2, 3. Code 8 is a negative zero.
    let magnitudes = [0.0f32, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut levels = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        levels[i] = magnitudes[i] / 12.0;
        levels[i + 8] = -(magnitudes[i] / 12.0);
        i += 1;
    }
    levels
};

/// How a 4-bit type decides: the code of a scaled value is `codes[number of thresholds below it]`.
#[derive(Debug)]
pub(crate) struct Decision {
    /// Midpoints between neighbouring levels, ascending. A value equal to a midpoint stays below it.
    pub thresholds: [f32; 15],
    /// The codes by ascending level.
    pub codes: [u8; 16],
}

impl Decision {
    const fn new(levels: &[f32; 16], codes: [u8; 16]) -> Self {
        let mut thresholds = [0.0; 15];
        let mut i = 0;
        while i < 15 {
            thresholds[i] = (levels[codes[i] as usize] + levels[codes[i + 1] as usize]) / 2.0;
            i += 1;
        }
        Self { thresholds, codes }
    }
}

static NF4_DECISION: Decision =
    Decision::new(&NF4_LEVELS, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

// The two zeros are neighbours, so a value in (0, 1/384] gets code 8 and one in (-1/384, 0] code 0. That is what
// bitsandbytes writes on a CPU; its CUDA tree takes the sign instead. Both codes read as zero.
static FP4_DECISION: Decision =
    Decision::new(&FP4_LEVELS, [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3]);

impl QuantType {
    /// The value of each code, for an absmax of 1.
    pub const fn levels(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4_LEVELS,
            Self::Fp4 => &FP4_LEVELS,
        }
    }

    /// The name that bitsandbytes uses: `nf4` or `fp4`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// The type with this name.
    ///
    /// # Errors
    /// [`Error::Config`] for any other name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "nf4" => Ok(Self::Nf4),
            "fp4" => Ok(Self::Fp4),
            _ => Err(Error::Config { key: "quant_type", value: format!("`{name}`"), allowed: "nf4 or fp4" }),
        }
    }

    pub(crate) fn decision(self) -> &'static Decision {
        match self {
            Self::Nf4 => &NF4_DECISION,
            Self::Fp4 => &FP4_DECISION,
        }
    }
}

/// How to quantise a matrix. The default is QLoRA's: NF4, blocks of 64, double quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuantConfig {
    /// The 4-bit type.
    pub quant_type: QuantType,
    /// Values that share a scale; one of [`BLOCK_SIZES`].
    pub block_size: usize,
    /// Whether the scales are quantised too, to 8 bits.
    pub double_quant: bool,
}

impl Default for QuantConfig {
    fn default() -> Self {
        Self { quant_type: QuantType::Nf4, block_size: 64, double_quant: true }
    }
}

impl QuantConfig {
    /// Bytes that `len` values take: codes and scales.
    pub fn stored_bytes(&self, len: u64) -> u64 {
        let scales = len.div_ceil(self.block_size.max(1) as u64);
        let scales = if self.double_quant {
            scales + 4 * (scales.div_ceil(crate::NESTED_BLOCK_SIZE as u64) + 256 + 1)
        } else {
            4 * scales
        };
        len.div_ceil(2) + scales
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] where the block size is not one of [`BLOCK_SIZES`].
    pub fn validate(&self) -> Result<()> {
        validate_block_size(self.block_size)
    }
}

pub(crate) fn validate_block_size(block_size: usize) -> Result<()> {
    if BLOCK_SIZES.contains(&block_size) {
        return Ok(());
    }
    Err(Error::Config {
        key: "block_size",
        value: block_size.to_string(),
        allowed: "a power of two from 32 to 4096",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_ascend() {
        for quant_type in [QuantType::Nf4, QuantType::Fp4] {
            assert!(quant_type.decision().thresholds.is_sorted());
        }
    }

    #[test]
    fn every_code_appears_once() {
        for quant_type in [QuantType::Nf4, QuantType::Fp4] {
            let mut codes = quant_type.decision().codes;
            codes.sort_unstable();
            assert_eq!(codes, std::array::from_fn(|i| i as u8));
        }
    }

    #[test]
    fn block_sizes_outside_the_format_are_refused() {
        for block_size in [0, 1, 16, 48, 63, 8192, usize::MAX] {
            let config = QuantConfig { block_size, ..QuantConfig::default() };
            assert!(matches!(config.validate(), Err(Error::Config { key: "block_size", .. })));
        }
    }

    #[test]
    fn an_unknown_type_is_named_in_the_error() {
        assert_eq!(
            QuantType::from_name("int4").unwrap_err().to_string(),
            "quant_type = `int4` is not supported: use nf4 or fp4"
        );
    }
}
