//! Activations. See `kernels/activation.cu`.

use eyas_backend::{Activation, Result};

use crate::CudaTensor;
use crate::backend::CudaBackend;
use crate::device::Ptr;
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
        self.activate("activation", tokens, kind, x, ("y", y), [x.ptr(), y.ptr()])
    }

    pub(crate) fn run_activation_backward(
        &self,
        tokens: usize,
        kind: Activation,
        dy: &CudaTensor,
        x: &mut CudaTensor,
    ) -> Result<()> {
        self.activate("activation_backward", tokens, kind, x, ("dy", dy), [dy.ptr(), x.ptr()])
    }

    /// Both kernels: from the first to the second of two addresses, those of `x` and of what is as wide as its activation.
    fn activate(
        &self,
        op: &'static str,
        tokens: usize,
        kind: Activation,
        x: &CudaTensor,
        (name, y): (&str, &CudaTensor),
        [from, to]: [Ptr; 2],
    ) -> Result<()> {
        let f = y.cols();
        check(op, "x", x, tokens, f * kind.fan_in(), self.dtype)?;
        check(op, name, y, tokens, f, self.dtype)?;
        let chunks = tokens * f.div_ceil(8);
        let vector = i32::from(is_vector(x.ptr(), f));
        self.kernels.launch(
            op,
            self.dtype,
            Grid::over(chunks),
            args![from, to, chunks as u64, f as i32, number(kind), vector],
        )
    }
}
