//! The float types that a matrix can have before it is quantised and after it is read back.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::kernel::Kernel;

/// The type that a tensor had before quantisation. bitsandbytes reads the tensor back in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl Dtype {
    /// The name that PyTorch uses, as in `torch.bfloat16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// The type with this PyTorch name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16].into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A float type that can be quantised and read back: `f32`, [`half::f16`] or [`half::bf16`].
///
/// All arithmetic is done in `f32`: a half is widened (exact) before it is quantised, and a result is rounded to the
/// nearest half, ties to even, as the last step.
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed {
    /// The type's name at run time.
    const DTYPE: Dtype;

    /// Widens `src` into `dst`, which must be as long.
    fn widen(src: &[Self], dst: &mut [f32]);

    /// Rounds `src` into `dst`, which must be as long.
    fn narrow(src: &[f32], dst: &mut [Self]);
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;

    fn widen(src: &[Self], dst: &mut [f32]) {
        dst.copy_from_slice(src);
    }

    fn narrow(src: &[f32], dst: &mut [Self]) {
        dst.copy_from_slice(src);
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;

    fn widen(src: &[Self], dst: &mut [f32]) {
        src.convert_to_f32_slice(dst);
    }

    fn narrow(src: &[f32], dst: &mut [Self]) {
        dst.convert_from_f32_slice(src);
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;

    fn widen(src: &[Self], dst: &mut [f32]) {
        assert_eq!(src.len(), dst.len());
        Kernel::detect().widen_bf16(src, dst);
    }

    fn narrow(src: &[f32], dst: &mut [Self]) {
        assert_eq!(src.len(), dst.len());
        Kernel::detect().narrow_bf16(src, dst);
    }
}

/// Rounds each value to `dtype` and back, as bitsandbytes does when it reads a matrix in its original type.
pub fn round_to_dtype(values: &mut [f32], dtype: Dtype) {
    fn through<T: Element>(values: &mut [f32]) {
        let mut scratch = [T::zeroed(); 512];
        for chunk in values.chunks_mut(scratch.len()) {
            let scratch = &mut scratch[..chunk.len()];
            T::narrow(chunk, scratch);
            T::widen(scratch, chunk);
        }
    }
    match dtype {
        Dtype::F32 => {}
        Dtype::F16 => through::<f16>(values),
        Dtype::Bf16 => through::<bf16>(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bf16, its neighbours in f32 and the ties between two of them.
    #[test]
    fn bf16_is_widened_and_rounded_as_half_does() {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let mut wide = vec![0.0; all.len()];
        bf16::widen(&all, &mut wide);
        for (narrow, wide) in all.iter().zip(&wide) {
            assert!(narrow.to_f32().to_bits() == wide.to_bits() || (narrow.is_nan() && wide.is_nan()));
        }
        for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let values: Vec<f32> = wide.iter().map(|v| f32::from_bits(v.to_bits() | low)).collect();
            let mut rounded = vec![bf16::ZERO; values.len()];
            bf16::narrow(&values, &mut rounded);
            for (value, rounded) in values.iter().zip(rounded) {
                assert_eq!(rounded.to_bits(), bf16::from_f32(*value).to_bits(), "{value:e}");
            }
        }
    }
}
