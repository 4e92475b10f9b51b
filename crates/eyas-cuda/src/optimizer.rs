//! The gradient's norm and AdamW. See `kernels/optimizer.cu`.

use eyas_backend::{AdamW, Dtype, Error, MomentFormat, Result};

use crate::backend::CudaBackend;
use crate::device::Ptr;
use crate::kernels::{Grid, KernelArg, args};
use crate::scratch::Slot;
use crate::tensor::check;
use crate::{CudaMoments, CudaTensor};

/// Blocks of the norm's first level: the same on every card, so that its order is.
const NORM_BLOCKS: usize = 1024;

/// `AdamW` of optimizer.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct AdamWArg {
    beta2: f32,
    eps: f32,
    take1: f32,
    take2: f32,
    decay: f32,
    step_size: f32,
    root_correction: f32,
    max_grad_norm: f32,
    loss_scale: f32,
}
// SAFETY: the layout is that of `AdamW` in optimizer.cu.
unsafe impl KernelArg for AdamWArg {}

/// `Blockwise` of optimizer.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct BlockwiseArg {
    codes: Ptr,
    absmax: Ptr,
}
// SAFETY: the layout is that of `Blockwise` in optimizer.cu.
unsafe impl KernelArg for BlockwiseArg {}

/// The decimal number that a person wrote for a constant: an `f32` 0.999 is off by 1.3e-8, which is 1.3e-5 of the
/// `1 - beta2` that matters.
fn as_written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

impl CudaBackend {
    pub(crate) fn run_grad_norm(&self, grads: &CudaTensor, norm: &mut CudaTensor) -> Result<()> {
        let op = "grad_norm";
        check(op, "grads", grads, 1, grads.cols(), Dtype::F32)?;
        check(op, "norm", norm, 1, 1, Dtype::F32)?;
        let mut scratch = self.scratch.lock();
        let partial = scratch.get(Slot::Rows, NORM_BLOCKS * 8)?;
        let len = grads.len() as u64;
        self.kernels.launch(
            "grad_norm_partial",
            Dtype::F32,
            Grid::new(NORM_BLOCKS, 256),
            args![grads.ptr(), len, partial],
        )?;
        self.kernels.launch(
            "grad_norm_finish",
            Dtype::F32,
            Grid::new(1, 256),
            args![partial, NORM_BLOCKS as i32, norm.ptr()],
        )
    }

    pub(crate) fn run_adamw(
        &self,
        spec: AdamW,
        grads: &CudaTensor,
        norm: &CudaTensor,
        params: &mut CudaTensor,
        moments: &mut CudaMoments,
    ) -> Result<()> {
        let (op, n) = ("adamw", grads.cols());
        check(op, "grads", grads, 1, n, Dtype::F32)?;
        check(op, "norm", norm, 1, 1, Dtype::F32)?;
        check(op, "params", params, 1, n, Dtype::F32)?;
        if moments.parameters() != n {
            let have = moments.parameters();
            return Err(Error::Shape { op, reason: format!("moments of {have} values; {n} are needed") });
        }
        if spec.step == 0 {
            return Err(Error::Shape { op, reason: "steps are counted from 1, and this one is 0".into() });
        }
        let (lr, beta1, beta2) = (as_written(spec.lr), as_written(spec.beta1), as_written(spec.beta2));
        let correction = |beta: f64| 1.0 - beta.powi(spec.step as i32);
        let arg = AdamWArg {
            beta2: spec.beta2,
            eps: spec.eps,
            take1: (1.0 - beta1) as f32,
            take2: (1.0 - beta2) as f32,
            decay: (1.0 - lr * as_written(spec.weight_decay)) as f32,
            step_size: (lr / correction(beta1)) as f32,
            root_correction: (1.0 / correction(beta2).sqrt()) as f32,
            max_grad_norm: spec.max_grad_norm.unwrap_or(f32::INFINITY),
            loss_scale: spec.loss_scale,
        };
        let (grads, norm, params, len) = (grads.ptr(), norm.ptr(), params.ptr(), n as u64);
        let [first, second] = moments.pointers();
        match moments.format() {
            MomentFormat::F32 => self.kernels.launch(
                op,
                Dtype::F32,
                Grid::over(n.div_ceil(4)),
                args![arg, grads, norm, params, first[0], second[0], len],
            ),
            MomentFormat::Blockwise8 => {
                let [first, second] = [first, second].map(|[codes, absmax]| BlockwiseArg { codes, absmax });
                let maps = moments.maps();
                self.kernels.launch(
                    "adamw_blockwise",
                    Dtype::F32,
                    Grid::over(n.div_ceil(8)),
                    args![arg, grads, norm, params, first, second, maps, len],
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::as_written;

    #[test]
    fn constants_are_the_decimals_that_were_written() {
        assert_eq!(as_written(0.999), 0.999);
        assert_eq!(as_written(2e-4), 2e-4);
        assert_eq!(as_written(0.0), 0.0);
    }
}
