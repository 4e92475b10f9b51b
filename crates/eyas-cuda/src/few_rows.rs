//! Projections of at most eight tokens: bound by reading the weights, which are read once in the form they are kept in.

use eyas_backend::{Projection, Result};

use crate::CudaTensor;
use crate::backend::CudaBackend;
use crate::device::Ptr;
use crate::kernels::{Grid, KernelArg, args};
use crate::project::Part;
use crate::scratch::{ScratchGuard, Slot};
use crate::tensor::is_vector;
use crate::weight::Kind;

/// Tokens up to which reading a weight once in 4 bits beats a product.
pub(crate) const FEW_ROWS: usize = 8;

/// `LowRank` of few_rows.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct LowRank {
    h: Ptr,
    b: Ptr,
    ld_h: i32,
    r: i32,
    scaling: f32,
}
// SAFETY: the layout is that of `LowRank` in few_rows.cu.
unsafe impl KernelArg for LowRank {}

impl CudaBackend {
    /// Whether every part can be read sixteen bytes at a time.
    pub(crate) fn is_few_rows(&self, projection: &Projection<Self>, x: &CudaTensor) -> bool {
        let k = projection.in_features;
        is_vector(x.ptr(), k)
            && projection.parts.iter().all(|part| match part.weight.kind {
                Kind::Dense(dtype) => dtype == self.dtype,
                Kind::Quantised(_) => k.is_multiple_of(32),
            })
    }

    /// See [`eyas_backend::Backend::project`]; without dropout.
    pub(crate) fn few_rows(
        &self,
        scratch: &mut ScratchGuard<'_>,
        tokens: usize,
        parts: &[Part<'_>],
        params: Option<&CudaTensor>,
        rank: usize,
        x: &CudaTensor,
        y: &mut CudaTensor,
        saved: Option<Ptr>,
        add: bool,
    ) -> Result<()> {
        let (k, n, count) = (x.cols() as i32, y.cols() as u64, tokens as i32);
        let h = if rank > 0 { scratch.get(Slot::Hidden, tokens * rank * 4)? } else { Ptr::NULL };
        for part in parts {
            let mut low = LowRank { h: Ptr::NULL, b: Ptr::NULL, ld_h: rank as i32, r: 0, scaling: 0.0 };
            if let (Some(lora), Some(params)) = (part.lora, params) {
                let to = h.add(part.rank * 4);
                let saved = saved.map_or(Ptr::NULL, |saved| saved.add(part.rank * self.dtype.size()));
                let a = params.at(lora.a);
                self.kernels.launch(
                    "few_rows_hidden",
                    self.dtype,
                    Grid::new((tokens * lora.r).div_ceil(4), 128),
                    args![
                        x.ptr(),
                        count,
                        k,
                        a,
                        lora.r as i32,
                        to,
                        rank as i32,
                        saved,
                        rank as i32,
                        i32::from(a.is_aligned())
                    ],
                )?;
                low = LowRank {
                    h: to,
                    b: params.at(lora.b),
                    ld_h: rank as i32,
                    r: lora.r as i32,
                    scaling: lora.scaling,
                };
            }
            let rows = part.linear.out_features;
            let bias = part.linear.bias.as_ref().map_or(Ptr::NULL, CudaTensor::ptr);
            let to = y.at(part.column);
            // Four warps a block, two rows a warp.
            let grid = Grid::new(rows.div_ceil(8), 128);
            let add = i32::from(add);
            match part.linear.weight.kind {
                Kind::Quantised(arg) => self.kernels.launch(
                    "few_rows_quantized",
                    self.dtype,
                    grid,
                    args![arg, x.ptr(), count, rows as i32, k, low, bias, to, n, add],
                )?,
                Kind::Dense(_) => self.kernels.launch(
                    "few_rows_dense",
                    self.dtype,
                    grid,
                    args![part.linear.weight.ptr(), x.ptr(), count, rows as i32, k, low, bias, to, n, add],
                )?,
            }
        }
        Ok(())
    }
}
