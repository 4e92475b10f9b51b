//! Rotary positions. See `kernels/rope.cu`.

use eyas_backend::{DeviceTensor, Dtype, Error, QkvLayout, Result, Rope};

use crate::backend::CudaBackend;
use crate::kernels::{Grid, args};
use crate::norm::{LayoutArg, check_layout};
use crate::tensor::check;
use crate::{CudaBatch, CudaTensor};

impl CudaBackend {
    /// Checks the operands; the pairs of a head, and whether eight may be read at once.
    fn check_rope(
        &self,
        op: &'static str,
        batch: &CudaBatch,
        layout: &QkvLayout,
        rope: &Rope<Self>,
        qkv: &CudaTensor,
    ) -> Result<(usize, bool)> {
        check_layout(op, layout)?;
        let (positions, half) = rope.cos.shape();
        if rope.dim != half * 2 || rope.dim > layout.head_dim {
            let (dim, head) = (rope.dim, layout.head_dim);
            return Err(Error::Shape {
                op,
                reason: format!("{dim} elements of a head of {head}, a table of {half} pairs"),
            });
        }
        check(op, "qkv", qkv, batch.tokens(), layout.width(), self.dtype)?;
        check(op, "cos", &rope.cos, positions, half, Dtype::F32)?;
        check(op, "sin", &rope.sin, positions, half, Dtype::F32)?;
        batch.check_positions(op, positions)?;
        let columns = [
            half,
            layout.width(),
            layout.head_dim,
            layout.query_group_stride,
            layout.key_offset,
            layout.value_offset,
            layout.kv_stride,
        ];
        Ok((half, columns.iter().all(|column| column.is_multiple_of(8))))
    }

    pub(crate) fn run_rope(
        &self,
        batch: &CudaBatch,
        layout: &QkvLayout,
        rope: &Rope<Self>,
        qkv: &mut CudaTensor,
        inverse: bool,
    ) -> Result<()> {
        let (op, tokens) = ("rope", batch.tokens());
        let (half, vector) = self.check_rope(op, batch, layout, rope, qkv)?;
        self.kernels.launch(
            op,
            self.dtype,
            Grid::over(tokens * (layout.heads + layout.kv_heads) * half.div_ceil(8)),
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

    pub(crate) fn run_rope_cached(
        &self,
        batch: &CudaBatch,
        layout: &QkvLayout,
        rope: &Rope<Self>,
        positions: usize,
        qkv: &mut CudaTensor,
        keys: &mut CudaTensor,
        values: &mut CudaTensor,
    ) -> Result<()> {
        let (op, tokens) = ("rope_cached", batch.tokens());
        let (half, vector) = self.check_rope(op, batch, layout, rope, qkv)?;
        self.check_cache(op, batch, layout, positions, qkv, keys, values)?;
        self.kernels.launch(
            op,
            self.dtype,
            Grid::over(tokens * (layout.heads + 2 * layout.kv_heads) * half.div_ceil(8)),
            args![
                qkv.ptr(),
                batch.positions(),
                rope.cos.ptr(),
                rope.sin.ptr(),
                LayoutArg::from(layout),
                tokens as i32,
                half as i32,
                i32::from(vector),
                batch.sequence(),
                batch.slots(),
                positions as i32,
                keys.ptr(),
                values.ptr()
            ],
        )
    }
}
