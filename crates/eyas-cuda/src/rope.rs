//! Rotary positions. See `kernels/rope.cu`.

use eyas_backend::{DeviceTensor, Dtype, Error, QkvLayout, Result, Rope};

use crate::backend::CudaBackend;
use crate::device::Ptr;
use crate::kernels::{Grid, args};
use crate::norm::{LayoutArg, check_layout};
use crate::tensor::check;
use crate::{CudaBatch, CudaTensor};

/// What both kernels take besides the batch's queries, keys and values.
struct Rotary {
    positions: Ptr,
    cosines: Ptr,
    sines: Ptr,
    layout: LayoutArg,
    tokens: i32,
    /// Pairs of a head.
    half: i32,
    /// Whether eight may be read at once.
    vector: i32,
}

impl CudaBackend {
    /// Checks the operands; what the kernels take, and threads for so many heads a token.
    fn rotary(
        &self,
        op: &'static str,
        batch: &CudaBatch,
        layout: &QkvLayout,
        rope: &Rope<Self>,
        qkv: &CudaTensor,
        heads: usize,
    ) -> Result<(Rotary, Grid)> {
        check_layout(op, layout)?;
        let (tokens, (positions, half)) = (batch.tokens(), rope.cos.shape());
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
            layout.value_offset,
            layout.kv_stride,
        ];
        let rotary = Rotary {
            positions: batch.positions(),
            cosines: rope.cos.ptr(),
            sines: rope.sin.ptr(),
            layout: LayoutArg::from(layout),
            tokens: tokens as i32,
            half: half as i32,
            vector: i32::from(columns.iter().all(|column| column.is_multiple_of(8))),
        };
        Ok((rotary, Grid::over(tokens * heads * half.div_ceil(8))))
    }

    pub(crate) fn run_rope(
        &self,
        batch: &CudaBatch,
        layout: &QkvLayout,
        rope: &Rope<Self>,
        qkv: &mut CudaTensor,
        inverse: bool,
    ) -> Result<()> {
        let (op, heads) = ("rope", layout.heads + layout.kv_heads);
        let (r, grid) = self.rotary(op, batch, layout, rope, qkv, heads)?;
        let turn = if inverse { -1.0f32 } else { 1.0 };
        self.kernels.launch(
            op,
            self.dtype,
            grid,
            args![qkv.ptr(), r.positions, r.cosines, r.sines, r.layout, r.tokens, r.half, turn, r.vector],
        )
    }

    /// Rotates, and writes keys and values to a cache that was checked.
    pub(crate) fn rope_cached(
        &self,
        batch: &CudaBatch,
        layout: &QkvLayout,
        rope: &Rope<Self>,
        positions: usize,
        qkv: &mut CudaTensor,
        keys: &mut CudaTensor,
        values: &mut CudaTensor,
    ) -> Result<()> {
        let (op, heads) = ("rope_cached", layout.heads + 2 * layout.kv_heads);
        let (r, grid) = self.rotary(op, batch, layout, rope, qkv, heads)?;
        self.kernels.launch(
            op,
            self.dtype,
            grid,
            args![
                qkv.ptr(),
                r.positions,
                r.cosines,
                r.sines,
                r.layout,
                r.tokens,
                r.half,
                r.vector,
                batch.sequence(),
                batch.slots(),
                positions as i32,
                keys.ptr(),
                values.ptr()
            ],
        )
    }
}
