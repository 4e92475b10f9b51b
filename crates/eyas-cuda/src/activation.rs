//! Activations. See `kernels/activation.cu`.

use eyas_backend::{Activation, Result};

use crate::CudaTensor;
use crate::backend::CudaBackend;
use crate::kernels::{Grid, args};
use crate::tensor::{check, is_vector};

/// How activation.cu numbers them.
fn number(kind: Activation) -> i32 {
    match kind {
        Activation::Gelu => 0,
        Activation::GeluTanh => 1,
        Activation::SwiGlu => 2,
    }
}

impl CudaBackend {
    pub(crate) fn run_activation(
        &self,
        tokens: usize,
        kind: Activation,
        x: &CudaTensor,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let (op, f) = ("activation", y.cols());
        check(op, "x", x, tokens, f * kind.fan_in(), self.dtype)?;
        check(op, "y", y, tokens, f, self.dtype)?;
        let chunks = tokens * f.div_ceil(8);
        let vector = i32::from(is_vector(x.ptr(), f));
        self.kernels.launch(
            op,
            self.dtype,
            Grid::over(chunks),
            args![x.ptr(), y.ptr(), chunks as u64, f as i32, number(kind), vector],
        )
    }

    pub(crate) fn run_activation_backward(
        &self,
        tokens: usize,
        kind: Activation,
        dy: &CudaTensor,
        x: &mut CudaTensor,
    ) -> Result<()> {
        let (op, f) = ("activation_backward", dy.cols());
        check(op, "x", x, tokens, f * kind.fan_in(), self.dtype)?;
        check(op, "dy", dy, tokens, f, self.dtype)?;
        let chunks = tokens * f.div_ceil(8);
        let vector = i32::from(is_vector(x.ptr(), f));
        self.kernels.launch(
            op,
            self.dtype,
            Grid::over(chunks),
            args![dy.ptr(), x.ptr(), chunks as u64, f as i32, number(kind), vector],
        )
    }
}
