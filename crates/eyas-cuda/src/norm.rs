//! Layer and RMS norms, of rows and of heads. See `kernels/norm.cu`.

use eyas_backend::{Dtype, Error, NormKind, NormSpec, QkvLayout, Result, Write};

use crate::CudaTensor;
use crate::backend::CudaBackend;
use crate::device::Ptr;
use crate::kernels::{Grid, KernelArg, args};
use crate::tensor::{check, is_vector};

/// Columns that a thread holds in registers: `CHUNKS` of norm.cu times eight.
const THREAD_COLS: usize = 16;
const MAX_THREADS: usize = 1024;

/// `QkvLayout` of prelude.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct LayoutArg {
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    query_group_stride: i32,
    key_offset: i32,
    kv_stride: i32,
    value_offset: i32,
    width: i32,
}
// SAFETY: the layout is that of `QkvLayout` in prelude.cuh.
unsafe impl KernelArg for LayoutArg {}

impl From<&QkvLayout> for LayoutArg {
    fn from(l: &QkvLayout) -> Self {
        Self {
            heads: l.heads as i32,
            kv_heads: l.kv_heads as i32,
            head_dim: l.head_dim as i32,
            query_group_stride: l.query_group_stride as i32,
            key_offset: l.key_offset as i32,
            kv_stride: l.kv_stride as i32,
            value_offset: l.value_offset as i32,
            width: l.width() as i32,
        }
    }
}

/// Checks that heads are those of a model.
pub(crate) fn check_layout(op: &'static str, l: &QkvLayout) -> Result<()> {
    if l.heads > 0 && l.kv_heads > 0 && l.heads.is_multiple_of(l.kv_heads) && l.head_dim > 0 {
        return Ok(());
    }
    let (heads, kv, dim) = (l.heads, l.kv_heads, l.head_dim);
    Err(Error::Shape {
        op,
        reason: format!("{heads} query heads, {kv} key heads of {dim} elements do not fit together"),
    })
}

fn row_grid(op: &'static str, tokens: usize, n: usize) -> Result<Grid> {
    let threads = n.div_ceil(THREAD_COLS).next_multiple_of(32);
    if n == 0 || threads > MAX_THREADS {
        return Err(Error::Shape {
            op,
            reason: format!("rows of {n}; 1 to {} are supported", MAX_THREADS * THREAD_COLS),
        });
    }
    Ok(Grid::new(tokens, threads as u32))
}

impl CudaBackend {
    pub(crate) fn run_norm(
        &self,
        tokens: usize,
        spec: NormSpec,
        x: &CudaTensor,
        weight: &CudaTensor,
        bias: Option<&CudaTensor>,
        y: &mut CudaTensor,
        stats: &mut CudaTensor,
    ) -> Result<()> {
        let (op, n) = ("norm", x.cols());
        check(op, "x", x, tokens, n, self.dtype)?;
        check(op, "y", y, tokens, n, self.dtype)?;
        check(op, "weight", weight, 1, n, Dtype::F32)?;
        check(op, "stats", stats, tokens, 2, Dtype::F32)?;
        if let Some(bias) = bias {
            check(op, "bias", bias, 1, n, Dtype::F32)?;
        }
        let rms = i32::from(spec.kind == NormKind::RmsNorm);
        let vector = i32::from(is_vector(x.ptr(), n));
        let bias = bias.map_or(Ptr::NULL, CudaTensor::ptr);
        self.kernels.launch(
            "norm_forward",
            self.dtype,
            row_grid(op, tokens, n)?,
            args![x.ptr(), weight.ptr(), bias, y.ptr(), stats.ptr(), n as i32, spec.eps, rms, vector],
        )
    }

    pub(crate) fn run_norm_backward(
        &self,
        tokens: usize,
        spec: NormSpec,
        x: &CudaTensor,
        weight: &CudaTensor,
        stats: &CudaTensor,
        dy: &CudaTensor,
        dx: &mut CudaTensor,
        write: Write,
    ) -> Result<()> {
        let (op, n) = ("norm_backward", x.cols());
        check(op, "x", x, tokens, n, self.dtype)?;
        check(op, "dy", dy, tokens, n, self.dtype)?;
        check(op, "dx", dx, tokens, n, self.dtype)?;
        check(op, "weight", weight, 1, n, Dtype::F32)?;
        check(op, "stats", stats, tokens, 2, Dtype::F32)?;
        let rms = i32::from(spec.kind == NormKind::RmsNorm);
        let (vector, add) = (i32::from(is_vector(x.ptr(), n)), i32::from(write == Write::Add));
        self.kernels.launch(
            "norm_backward",
            self.dtype,
            row_grid(op, tokens, n)?,
            args![x.ptr(), weight.ptr(), stats.ptr(), dy.ptr(), dx.ptr(), n as i32, rms, add, vector],
        )
    }

    pub(crate) fn run_head_norm(
        &self,
        tokens: usize,
        layout: &QkvLayout,
        eps: f32,
        raw: &CudaTensor,
        q_weight: &CudaTensor,
        k_weight: &CudaTensor,
        qkv: &mut CudaTensor,
    ) -> Result<()> {
        // Values are copied.
        let heads = layout.heads + 2 * layout.kv_heads;
        self.norm_heads("head_norm", tokens, heads, layout, eps, raw, [q_weight, k_weight], qkv)
    }

    pub(crate) fn run_head_norm_backward(
        &self,
        tokens: usize,
        layout: &QkvLayout,
        eps: f32,
        raw: &CudaTensor,
        q_weight: &CudaTensor,
        k_weight: &CudaTensor,
        dqkv: &mut CudaTensor,
    ) -> Result<()> {
        let heads = layout.heads + layout.kv_heads;
        self.norm_heads("head_norm_backward", tokens, heads, layout, eps, raw, [q_weight, k_weight], dqkv)
    }

    /// Both kernels, a warp for each of so many heads of a token.
    fn norm_heads(
        &self,
        op: &'static str,
        tokens: usize,
        heads: usize,
        layout: &QkvLayout,
        eps: f32,
        raw: &CudaTensor,
        [q_weight, k_weight]: [&CudaTensor; 2],
        qkv: &mut CudaTensor,
    ) -> Result<()> {
        check_layout(op, layout)?;
        check(op, "raw", raw, tokens, layout.width(), self.dtype)?;
        check(op, "qkv", qkv, tokens, layout.width(), self.dtype)?;
        check(op, "q_weight", q_weight, 1, layout.head_dim, Dtype::F32)?;
        check(op, "k_weight", k_weight, 1, layout.head_dim, Dtype::F32)?;
        self.kernels.launch(
            op,
            self.dtype,
            Grid::new((tokens * heads).div_ceil(8), 256),
            args![
                raw.ptr(),
                q_weight.ptr(),
                k_weight.ptr(),
                qkv.ptr(),
                LayoutArg::from(layout),
                tokens as i32,
                eps
            ],
        )
    }
}
