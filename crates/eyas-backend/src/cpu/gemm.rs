//! Matrix products: the kernels, and the choice between them.

use std::fmt;

/// The kernel of the large matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatmulKernel {
    /// `f32` multiply-adds.
    F32,
    /// `bf16` operands, `f32` sums: AVX-512's `vdpbf16ps`.
    Bf16,
}

impl MatmulKernel {
    /// The fastest that this processor has.
    pub fn best() -> Self {
        if Self::Bf16.is_supported() { Self::Bf16 } else { Self::F32 }
    }

    /// Whether this processor has the instructions.
    pub fn is_supported(self) -> bool {
        match self {
            Self::F32 => true,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Bf16 => false,
        }
    }
}

impl fmt::Display for MatmulKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}
