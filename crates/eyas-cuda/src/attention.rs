//! Causal attention on the flat token axis.
//!
//! Heads of a multiple of eight 16-bit elements go through the flash kernels (`attention_flash.rs`); full single
//! precision and odd heads through a plain one, `kernels/attention.cu`.

use eyas_backend::{AttentionSpec, DeviceTensor, Dtype, Error, QkvLayout, Result};

use crate::backend::CudaBackend;
use crate::device::Ptr;
use crate::kernels::{Grid, KernelArg, args};
use crate::norm::{LayoutArg, check_layout};
use crate::scratch::Slot;
use crate::tensor::check;
use crate::{CudaBatch, CudaTensor};

/// The largest head.
const MAX_HEAD_DIM: usize = 256;

/// `Attention` of attention.cu and flash.cuh.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct AttentionArg {
    layout: LayoutArg,
    scale: f32,
    window: i32,
    alibi_positions: i32,
    alibi: Ptr,
}
// SAFETY: the layout is that of `Attention` in attention.cu and flash.cuh.
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
        // A window over all positions hides nothing.
        window: spec.window.filter(|w| *w < positions).map_or(0, |w| w.max(1) as i32),
        alibi: spec.alibi.as_ref().map_or(Ptr::NULL, CudaTensor::ptr),
        alibi_positions: columns as i32,
    })
}

/// The argument of kernels for what [`check_spec`] found right.
pub(crate) fn attention_arg(
    op: &'static str,
    spec: &AttentionSpec<CudaBackend>,
    positions: usize,
) -> Result<AttentionArg> {
    let Bias { window, alibi, alibi_positions } = check_spec(op, spec, positions)?;
    Ok(AttentionArg {
        layout: LayoutArg::from(&spec.layout),
        scale: spec.scale,
        window,
        alibi_positions,
        alibi,
    })
}

impl CudaBackend {
    /// Whether the flash kernels do this layout: they read and write 16 bytes at a time.
    pub(crate) fn has_flash(&self, layout: &QkvLayout) -> bool {
        let columns = [
            layout.head_dim,
            layout.query_group_stride,
            layout.key_offset,
            layout.value_offset,
            layout.kv_stride,
        ];
        self.dtype != Dtype::F32 && columns.iter().all(|column| column.is_multiple_of(8))
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
        let arg = attention_arg(op, spec, batch.max_seqlen())?;
        check(op, "qkv", qkv, tokens, l.width(), self.dtype)?;
        check(op, "out", out, tokens, l.heads * l.head_dim, self.dtype)?;
        check(op, "lse", lse, tokens, l.heads, Dtype::F32)?;
        if self.has_flash(l) {
            return self.flash_forward(batch, l, arg, qkv, out, lse);
        }
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
        let arg = attention_arg(op, spec, batch.max_seqlen())?;
        check(op, "qkv", qkv, tokens, l.width(), self.dtype)?;
        check(op, "dqkv", dqkv, tokens, l.width(), self.dtype)?;
        check(op, "out", out, tokens, l.heads * l.head_dim, self.dtype)?;
        check(op, "dout", dout, tokens, l.heads * l.head_dim, self.dtype)?;
        check(op, "lse", lse, tokens, l.heads, Dtype::F32)?;
        if self.has_flash(l) {
            return self.flash_backward(batch, l, arg, qkv, out, lse, dout, dqkv);
        }
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
