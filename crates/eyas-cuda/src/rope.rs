//! Rotary positions. See `kernels/rope.cu`.

use eyas_backend::{DeviceTensor, Dtype, Error, QkvLayout, Result, Rope};

use crate::backend::CudaBackend;
use crate::kernels::{Grid, args};
use crate::norm::{LayoutArg, check_layout};
use crate::tensor::check;
use crate::{CudaBatch, CudaTensor};

impl CudaBackend {
    pub(crate) fn run_rope(
        &self,
        batch: &CudaBatch,
        layout: &QkvLayout,
        rope: &Rope<Self>,
        qkv: &mut CudaTensor,
        inverse: bool,
    ) -> Result<()> {
        let (op, tokens) = ("rope", batch.tokens());
        check_layout(op, layout)?;
        let (positions, half) = rope.cos.shape();
        if rope.dim != half * 2 || rope.dim > layout.head_dim {
            let (dim, head) = (rope.dim, layout.head_dim);
            return Err(Error::Shape {
                op,
                reason: format!("{dim} elements of a head of {head}, a table of {half} pairs"),
            });
        }
        check(op, "qkv", qkv, tokens, layout.width(), self.dtype)?;
        check(op, "cos", &rope.cos, positions, half, Dtype::F32)?;
        check(op, "sin", &rope.sin, positions, half, Dtype::F32)?;
        batch.check_positions(op, positions)?;
        let columns = [
            half,
            layout.width(),
            layout.head_dim,
            layout.query_group_stride,
            layout.key_offset,
            layout.kv_stride,
        ];
        let vector = columns.iter().all(|column| column.is_multiple_of(8));
        let items = tokens * (layout.heads + layout.kv_heads) * half.div_ceil(8);
        self.kernels.launch(
            op,
            self.dtype,
            Grid::over(items),
            args![
                qkv.ptr(),
                batch.positions(),
                rope.cos.ptr(),
                rope.sin.ptr(),
                LayoutArg::from(layout),
                tokens as i32,
                half as i32,
                if inverse { -1.0f32 } else { 1.0 },
                i32::from(vector)
            ],
        )
    }
}
