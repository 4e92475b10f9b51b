//! The float types that a matrix can have before it is quantised and after it is read back.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

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
        src.convert_to_f32_slice(dst);
    }

    fn narrow(src: &[f32], dst: &mut [Self]) {
        dst.convert_from_f32_slice(src);
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
