//! What a tensor on disk is: its name, shape and element type.

use std::fmt;

/// Element type of a stored tensor. The block types are ggml's: 32 values share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum TensorDtype {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 8-bit integer; also packed 4-bit weights and JSON kept as a tensor.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// Block of 32: f16 scale `d`, 32 x i8; value = `d * q`. 34 bytes.
    Q8_0,
    /// Block of 32: f16 scale `d`, 16 bytes of nibbles; value = `d * (q - 8)`. 18 bytes.
    Q4_0,
    /// Block of 32: f16 scale `d`, f16 minimum `m`, 16 bytes of nibbles; value = `d * q + m`. 20 bytes.
    Q4_1,
}

impl TensorDtype {
    /// Elements that are stored together: 32 for the block types, 1 for all others.
    pub const fn block_len(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => 32,
            _ => 1,
        }
    }

    /// Bytes of one block of [`block_len`](Self::block_len) elements.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
        }
    }

    /// Whether the values are real numbers, so that [`read_f32`](crate::Checkpoint::read_f32) can decode them.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::Q8_0 | Self::Q4_0 | Self::Q4_1)
    }

    /// Bytes that `elements` elements take, or `None` where they are not whole blocks or do not fit in memory.
    pub const fn byte_len(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for TensorDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A tensor on disk, without its values. An open checkpoint has checked that the element count and the byte length of
/// every one of its tensors fit in `usize`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the file, unchanged.
    pub name: String,
    /// Extents in PyTorch's order, outermost first (GGUF's are reversed). Empty for a scalar.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: TensorDtype,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Extent of the first axis; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements in one row: the product of all axes but the first.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Bytes that the tensor takes on disk.
    pub fn byte_len(&self) -> usize {
        self.elements() / self.dtype.block_len() * self.dtype.block_bytes()
    }
}

/// Bytes of a tensor, or `None` where they are not whole blocks or where a product of extents, empty ones left out,
/// does not fit in `usize`. A shape that passes never overflows in [`TensorInfo`]'s own products.
pub(crate) fn checked_byte_len(shape: &[usize], dtype: TensorDtype) -> Option<usize> {
    let product = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent.max(1)));
    product(shape)?.checked_mul(dtype.block_bytes())?;
    dtype.byte_len(shape.iter().product())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_axis_does_not_hide_an_overflow() {
        assert_eq!(checked_byte_len(&[0, usize::MAX, 2], TensorDtype::F32), None);
        assert_eq!(checked_byte_len(&[usize::MAX, 2, 0], TensorDtype::F32), None);
        assert_eq!(checked_byte_len(&[0, 7], TensorDtype::F32), Some(0));
        assert_eq!(checked_byte_len(&[usize::MAX / 4 + 1], TensorDtype::F32), None);
    }

    #[test]
    fn blocks_are_counted_whole() {
        assert_eq!(checked_byte_len(&[2, 64], TensorDtype::Q4_0), Some(4 * 18));
        assert_eq!(checked_byte_len(&[2, 33], TensorDtype::Q4_0), None);
        assert_eq!(checked_byte_len(&[], TensorDtype::F16), Some(2));
    }
}
