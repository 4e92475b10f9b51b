//! A matrix in 4 bits, and what makes one well formed.

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::quant_type::{QuantType, validate_block_size};

/// Scales that share a scale of their own, where a matrix is quantised twice. bitsandbytes knows no other number.
pub const NESTED_BLOCK_SIZE: usize = 256;

/// The scales of a quantised matrix, one a block.
#[derive(Debug, Clone, PartialEq)]
pub enum Absmax {
    /// The largest magnitude of each block.
    Plain(Vec<f32>),
    /// Double quantisation: scale `b` is `map[codes[b]] * nested_absmax[b / nested_block_size] + offset`.
    Nested {
        /// A code on `map`, one a block.
        codes: Vec<u8>,
        /// The largest magnitude of each `nested_block_size` scales, the offset taken off.
        nested_absmax: Vec<f32>,
        /// Scales that share one `nested_absmax`.
        nested_block_size: usize,
        /// The mean of all scales.
        offset: f32,
        /// The 8-bit type; see [`crate::dynamic_map`].
        map: Box<[f32; 256]>,
    },
}

impl Absmax {
    /// Blocks that have a scale.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(absmax) => absmax.len(),
            Self::Nested { codes, .. } => codes.len(),
        }
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Plain(absmax) => size_of_val(absmax.as_slice()),
            Self::Nested { codes, nested_absmax, map, .. } => {
                codes.len() + size_of_val(nested_absmax.as_slice()) + size_of_val(&**map) + size_of::<f32>()
            }
        }
    }

    /// Writes the scales of the blocks from `first` on. The caller keeps within the blocks there are.
    pub(crate) fn scales_into(&self, first: usize, out: &mut [f32]) {
        match self {
            Self::Plain(absmax) => out.copy_from_slice(&absmax[first..first + out.len()]),
            Self::Nested { codes, nested_absmax, nested_block_size, offset, map } => {
                for (i, (out, code)) in out.iter_mut().zip(&codes[first..]).enumerate() {
                    // A product and a sum, each rounded: no fused multiply-add.
                    *out = map[usize::from(*code)] * nested_absmax[(first + i) / nested_block_size] + offset;
                }
            }
        }
    }

    fn validate(&self, blocks: usize) -> Result<()> {
        if self.len() != blocks {
            return Err(Error::Malformed {
                part: "absmax",
                reason: format!("{blocks} blocks need {blocks} scales, not {}", self.len()),
            });
        }
        match self {
            Self::Plain(absmax) => all_finite("absmax", absmax),
            Self::Nested { codes, nested_absmax, nested_block_size, offset, map } => {
                if *nested_block_size == 0 {
                    return Err(Error::Malformed { part: "nested_block_size", reason: "is 0".into() });
                }
                let nested = codes.len().div_ceil(*nested_block_size);
                if nested_absmax.len() != nested {
                    return Err(Error::Malformed {
                        part: "nested_absmax",
                        reason: format!(
                            "{} scales in blocks of {nested_block_size} need {nested} values, not {}",
                            codes.len(),
                            nested_absmax.len()
                        ),
                    });
                }
                all_finite("nested_absmax", nested_absmax)?;
                all_finite("offset", &[*offset])?;
                all_finite("nested_quant_map", &**map)
            }
        }
    }
}

fn all_finite(part: &'static str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => {
            Err(Error::Malformed { part, reason: format!("value {i} is {}, not a finite number", values[i]) })
        }
        None => Ok(()),
    }
}

/// A matrix in 4-bit codes, two a byte, row by row, with a scale for each block of consecutive values.
///
/// Blocks ignore rows: block `b` is the values `b * block_size ..` of the flat matrix, the last one may be short.
/// Every value of this type is well formed: the lengths fit the shape and all scales are finite.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    rows: usize,
    cols: usize,
    quant_type: QuantType,
    block_size: usize,
    dtype: Dtype,
    packed: Vec<u8>,
    absmax: Absmax,
}

impl Quantized {
    /// Puts a matrix together from parts read elsewhere.
    ///
    /// `packed` holds `ceil(rows * cols / 2)` bytes, the first code in the high nibble; `absmax` a scale for each
    /// `block_size` values; `dtype` is the type before quantisation.
    ///
    /// # Errors
    /// [`Error::Config`] for a block size that is not one of [`crate::BLOCK_SIZES`], [`Error::Shape`] where the shape
    /// overflows or is not that of `packed`, [`Error::Malformed`] where the scales do not fit or are not finite.
    pub fn from_parts(
        rows: usize,
        cols: usize,
        quant_type: QuantType,
        block_size: usize,
        dtype: Dtype,
        packed: Vec<u8>,
        absmax: Absmax,
    ) -> Result<Self> {
        validate_block_size(block_size)?;
        let len = element_count(rows, cols)?;
        if packed.len() != len.div_ceil(2) {
            return Err(Error::Shape(format!(
                "{rows} x {cols} values need {} packed bytes, not {}",
                len.div_ceil(2),
                packed.len()
            )));
        }
        absmax.validate(len.div_ceil(block_size))?;
        Ok(Self { rows, cols, quant_type, block_size, dtype, packed, absmax })
    }

    /// Rows: a linear layer's outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: a linear layer's inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values: rows x columns.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether the matrix has no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The 4-bit type.
    pub fn quant_type(&self) -> QuantType {
        self.quant_type
    }

    /// The value of each code, for a scale of 1.
    pub fn levels(&self) -> &'static [f32; 16] {
        self.quant_type.levels()
    }

    /// Values that share a scale.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The type before quantisation.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The same matrix, said to come from another type: the one that bitsandbytes will read it in.
    pub fn with_dtype(self, dtype: Dtype) -> Self {
        Self { dtype, ..self }
    }

    /// The codes, two a byte, the first in the high nibble; an odd count is filled up with the code of zero.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// The scales as they are stored.
    pub fn absmax(&self) -> &Absmax {
        &self.absmax
    }

    /// The scales decoded, one a block.
    pub fn scales(&self) -> Vec<f32> {
        let mut scales = vec![0.0; self.absmax.len()];
        self.absmax.scales_into(0, &mut scales);
        scales
    }

    /// Bytes that the codes and scales take in memory.
    pub fn bytes(&self) -> usize {
        self.packed.len() + self.absmax.bytes()
    }

    /// The codes and the scales as they are stored.
    pub fn into_parts(self) -> (Vec<u8>, Absmax) {
        (self.packed, self.absmax)
    }
}

/// The values of a matrix, where the count fits.
pub(crate) fn element_count(rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols)
        .filter(|len| *len <= isize::MAX as usize)
        .ok_or_else(|| Error::Shape(format!("{rows} x {cols} values are more than memory can address")))
}
