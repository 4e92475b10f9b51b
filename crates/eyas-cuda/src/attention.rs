//! Causal attention on the flat token axis. See `kernels/attention.cu`.

use eyas_backend::{AttentionSpec, DeviceTensor, Dtype, Error, Result};

use crate::backend::CudaBackend;
use crate::device::Ptr;
use crate::kernels::{Grid, KernelArg, args};
use crate::norm::{LayoutArg, check_layout};
use crate::scratch::Slot;
use crate::tensor::check;
use crate::{CudaBatch, CudaTensor};

/// The largest head.
const MAX_HEAD_DIM: usize = 256;

/// `Attention` of attention.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct AttentionArg {
    layout: LayoutArg,
    scale: f32,
    window: i32,
    alibi_positions: i32,
    alibi: Ptr,
}
// SAFETY: the layout is that of `Attention` in attention.cu.
unsafe impl KernelArg for AttentionArg {}

/// The window (0 for none), and the table of ALiBi with its columns.
pub(crate) struct Bias {
    pub(crate) window: i32,
    pub(crate) alibi: Ptr,
    pub(crate) alibi_positions: i32,
}

/// Checks what every attention is told; `positions` is how many positions keys have.
pub(crate) fn check_spec(
    op: &'static str,
    spec: &AttentionSpec<CudaBackend>,
    positions: usize,
) -> Result<Bias> {
    check_layout(op, &spec.layout)?;
    if spec.layout.head_dim > MAX_HEAD_DIM {
        let dim = spec.layout.head_dim;
        return Err(Error::Shape {
            op,
            reason: format!("heads of {dim}; at most {MAX_HEAD_DIM} are supported"),
        });
    }
    let columns = spec.alibi.as_ref().map_or(0, |table| table.shape().1);
    if let Some(table) = &spec.alibi {
        check(op, "alibi", table, spec.layout.heads, columns, Dtype::F32)?;
        if columns < positions {
            return Err(Error::Shape {
                op,
                reason: format!("alibi covers {columns} of {positions} positions"),
            });
        }
    }
    Ok(Bias {
        window: spec.window.map_or(0, |w| w.clamp(1, i32::MAX as usize) as i32),
        alibi: spec.alibi.as_ref().map_or(Ptr::NULL, CudaTensor::ptr),
        alibi_positions: columns as i32,
    })
}

impl CudaBackend {
    fn attention_arg(
        &self,
        op: &'static str,
        spec: &AttentionSpec<Self>,
        batch: &CudaBatch,
    ) -> Result<AttentionArg> {
        let Bias { window, alibi, alibi_positions } = check_spec(op, spec, batch.max_seqlen())?;
        let layout = LayoutArg::from(&spec.layout);
        Ok(AttentionArg { layout, scale: spec.scale, window, alibi_positions, alibi })
    }

    pub(crate) fn run_attention(
        &self,
        batch: &CudaBatch,
        spec: &AttentionSpec<Self>,
        qkv: &CudaTensor,
        out: &mut CudaTensor,
        lse: &mut CudaTensor,
    ) -> Result<()> {
        let (op, tokens, l) = ("attention", batch.tokens(), &spec.layout);
        let arg = self.attention_arg(op, spec, batch)?;
        check(op, "qkv", qkv, tokens, l.width(), self.dtype)?;
        check(op, "out", out, tokens, l.heads * l.head_dim, self.dtype)?;
        check(op, "lse", lse, tokens, l.heads, Dtype::F32)?;
        self.kernels.launch(
            op,
            self.dtype,
            Grid::new((tokens * l.heads).div_ceil(4), 128),
            args![arg, qkv.ptr(), batch.sequence(), batch.starts(), tokens as i32, out.ptr(), lse.ptr()],
        )
    }

    pub(crate) fn run_attention_backward(
        &self,
        batch: &CudaBatch,
        spec: &AttentionSpec<Self>,
        qkv: &CudaTensor,
        out: &CudaTensor,
        lse: &CudaTensor,
        dout: &CudaTensor,
        dqkv: &mut CudaTensor,
    ) -> Result<()> {
        let (op, tokens, l) = ("attention_backward", batch.tokens(), &spec.layout);
        let arg = self.attention_arg(op, spec, batch)?;
        check(op, "qkv", qkv, tokens, l.width(), self.dtype)?;
        check(op, "dqkv", dqkv, tokens, l.width(), self.dtype)?;
        check(op, "out", out, tokens, l.heads * l.head_dim, self.dtype)?;
        check(op, "dout", dout, tokens, l.heads * l.head_dim, self.dtype)?;
        check(op, "lse", lse, tokens, l.heads, Dtype::F32)?;
        let mut scratch = self.scratch.lock();
        let delta = scratch.get(Slot::Rows, tokens * l.heads * 4)?;
        let grid = Grid::new((tokens * l.heads).div_ceil(4), 128);
        let (count, sequence, starts) = (tokens as i32, batch.sequence(), batch.starts());
        self.kernels.launch(
            "attention_backward_delta",
            self.dtype,
            grid,
            args![arg, out.ptr(), dout.ptr(), count, delta],
        )?;
        self.kernels.launch(
            "attention_backward_query",
            self.dtype,
            grid,
            args![arg, qkv.ptr(), sequence, starts, count, lse.ptr(), delta, dout.ptr(), dqkv.ptr()],
        )?;
        self.kernels.launch(
            "attention_backward_key",
            self.dtype,
            Grid::new((tokens * l.kv_heads).div_ceil(4), 128),
            args![arg, qkv.ptr(), sequence, starts, count, lse.ptr(), delta, dout.ptr(), dqkv.ptr()],
        )
    }
}
