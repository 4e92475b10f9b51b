//! How an optimiser keeps its moments, and their copy in host memory.

use eyas_quant::{dequantize_blockwise_8bit, dynamic_map, quantize_blockwise_8bit};

use crate::{Error, Result};

/// Values that share a scale in [`MomentFormat::Blockwise8`], as in bitsandbytes.
pub const MOMENT_BLOCK: usize = 256;

/// The type of an optimiser's moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MomentFormat {
    /// IEEE single precision.
    #[default]
    F32,
    /// A byte a value on the 8-bit dynamic map, signed for the first moment and unsigned for the second, and a scale
    /// for each [`MOMENT_BLOCK`] values (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022).
    Blockwise8,
}

/// How an optimiser keeps its moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MomentStorage {
    /// Their type.
    pub format: MomentFormat,
    /// Whether they live in pinned host memory, from where the update streams them through the device. The bits are
    /// the same. On the CPU there is no difference.
    pub paged: bool,
}

impl MomentStorage {
    /// Bytes that both moments of a vector take, wherever they are.
    pub const fn bytes(self, parameters: usize) -> u64 {
        let each = match self.format {
            MomentFormat::F32 => parameters * 4,
            MomentFormat::Blockwise8 => parameters + parameters.div_ceil(MOMENT_BLOCK) * 4,
        };
        2 * each as u64
    }
}

/// A vector in blocks of [`MOMENT_BLOCK`] bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Blockwise8 {
    /// A level of the map for each value.
    pub codes: Vec<u8>,
    /// The largest magnitude of each block.
    pub absmax: Vec<f32>,
}

/// An optimiser's moments in host memory, bit for bit as the device keeps them.
#[derive(Clone, Debug, PartialEq)]
pub enum HostMoments {
    /// Running means of the gradient and of its square.
    F32([Vec<f32>; 2]),
    /// The same in 8 bits.
    Blockwise8([Blockwise8; 2]),
}

impl HostMoments {
    /// Moments of zero.
    pub fn zeros(parameters: usize, format: MomentFormat) -> Self {
        match format {
            MomentFormat::F32 => Self::F32([vec![0.0; parameters], vec![0.0; parameters]]),
            // The levels of zero: 127 of the signed map, 0 of the unsigned.
            MomentFormat::Blockwise8 => Self::Blockwise8([true, false].map(|signed| Blockwise8 {
                codes: vec![zero_code(signed); parameters],
                absmax: vec![0.0; parameters.div_ceil(MOMENT_BLOCK)],
            })),
        }
    }

    /// Their type.
    pub fn format(&self) -> MomentFormat {
        match self {
            Self::F32(_) => MomentFormat::F32,
            Self::Blockwise8(_) => MomentFormat::Blockwise8,
        }
    }

    /// Values of each moment.
    pub fn len(&self) -> usize {
        match self {
            Self::F32([first, _]) => first.len(),
            Self::Blockwise8([first, _]) => first.codes.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Both moments as values.
    pub fn values(&self) -> [Vec<f32>; 2] {
        match self {
            Self::F32(moments) => moments.clone(),
            Self::Blockwise8(moments) => [0, 1].map(|i| {
                let Blockwise8 { codes, absmax } = &moments[i];
                let mut values = vec![0.0; codes.len()];
                // The lengths fit: `check` and `zeros` see to it; a mismatch leaves zeros.
                let _ = dequantize_blockwise_8bit(codes, absmax, moment_map(i), MOMENT_BLOCK, &mut values);
                values
            }),
        }
    }

    /// The moments in another type. Nothing changes where they have it already.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn into_format(self, format: MomentFormat) -> Result<Self> {
        match (self, format) {
            (Self::F32(values), MomentFormat::Blockwise8) => {
                let mut quantised = [Blockwise8::default(), Blockwise8::default()];
                for (i, (values, to)) in values.iter().zip(&mut quantised).enumerate() {
                    to.codes.resize(values.len(), 0);
                    to.absmax.resize(values.len().div_ceil(MOMENT_BLOCK), 0.0);
                    quantize_blockwise_8bit(
                        values,
                        moment_map(i),
                        MOMENT_BLOCK,
                        &mut to.codes,
                        &mut to.absmax,
                    )?;
                }
                Ok(Self::Blockwise8(quantised))
            }
            (moments @ Self::Blockwise8(_), MomentFormat::F32) => Ok(Self::F32(moments.values())),
            (same, _) => Ok(same),
        }
    }

    /// Checks that both moments have `parameters` values of type `format`, and blocks their scale.
    ///
    /// # Errors
    /// Says what is there instead.
    pub fn check(&self, op: &'static str, parameters: usize, format: MomentFormat) -> Result<()> {
        let blocks = parameters.div_ceil(MOMENT_BLOCK);
        let fits = match self {
            Self::F32(moments) => moments.iter().all(|values| values.len() == parameters),
            Self::Blockwise8(moments) => moments
                .iter()
                .all(|Blockwise8 { codes, absmax }| codes.len() == parameters && absmax.len() == blocks),
        };
        if fits && self.format() == format {
            return Ok(());
        }
        Err(Error::Shape {
            op,
            reason: format!(
                "moments of {} values in {:?}; {parameters} in {format:?} are needed",
                self.len(),
                self.format()
            ),
        })
    }
}

/// The levels of a moment's bytes: the first is signed, the second is not.
pub fn moment_map(moment: usize) -> &'static [f32; 256] {
    dynamic_map(moment == 0)
}

/// The byte of a value of zero.
pub fn zero_code(signed: bool) -> u8 {
    dynamic_map(signed).partition_point(|level| *level < 0.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_zero_read_back_as_zero() {
        for format in [MomentFormat::F32, MomentFormat::Blockwise8] {
            let moments = HostMoments::zeros(700, format);
            assert_eq!(moments.values(), [vec![0.0; 700], vec![0.0; 700]]);
            assert!(moments.check("adamw", 700, format).is_ok());
        }
        assert_eq!([zero_code(true), zero_code(false)], [127, 0]);
    }

    #[test]
    fn eight_bits_take_a_quarter_and_a_scale_a_block() {
        let bytes = |format| MomentStorage { format, paged: false }.bytes(1000);
        assert_eq!((bytes(MomentFormat::F32), bytes(MomentFormat::Blockwise8)), (8000, 2 * (1000 + 16)));
    }

    #[test]
    fn another_type_keeps_the_values_to_its_precision() {
        let values: Vec<f32> = (0..513).map(|i| (i as f32 * 0.37).sin()).collect();
        let squares: Vec<f32> = values.iter().map(|x| x * x).collect();
        let moments = HostMoments::F32([values.clone(), squares.clone()]);
        let quantised = moments.into_format(MomentFormat::Blockwise8).unwrap();
        let back = quantised.clone().into_format(MomentFormat::F32).unwrap().values();
        for (got, want) in back.iter().zip([&values, &squares]) {
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 0.02));
        }
        assert_eq!(quantised.clone().into_format(MomentFormat::Blockwise8).unwrap(), quantised);
    }

    #[test]
    fn lengths_and_types_that_do_not_fit_are_refused() {
        let moments = HostMoments::zeros(300, MomentFormat::Blockwise8);
        assert!(moments.check("adamw", 299, MomentFormat::Blockwise8).is_err());
        let error = moments.check("adamw", 300, MomentFormat::F32).unwrap_err().to_string();
        assert!(error.contains("300 values in Blockwise8"), "{error}");
    }
}
