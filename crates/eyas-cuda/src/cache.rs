//! The key/value cache, and attention over it. See `kernels/cache.cu`.

use eyas_backend::{AttentionSpec, DeviceTensor, QkvLayout, Result, Rope};

use crate::attention::{Bias, check_spec};
use crate::backend::CudaBackend;
use crate::kernels::{Grid, args};
use crate::norm::{LayoutArg, check_layout};
use crate::tensor::check;
use crate::{CudaBatch, CudaTensor};

impl CudaBackend {
    pub(crate) fn check_cache(
        &self,
        op: &'static str,
        batch: &CudaBatch,
        layout: &QkvLayout,
        positions: usize,
        qkv: &CudaTensor,
        keys: &CudaTensor,
        values: &CudaTensor,
    ) -> Result<()> {
        check_layout(op, layout)?;
        let (n, rows) = (layout.kv_heads * layout.head_dim, keys.shape().0);
        check(op, "qkv", qkv, batch.tokens(), layout.width(), self.dtype)?;
        check(op, "keys", keys, rows, n, self.dtype)?;
        check(op, "values", values, rows, n, self.dtype)?;
        batch.check_positions(op, positions)?;
        batch.check_slots(op, rows.checked_div(positions).unwrap_or(0))
    }

    /// See [`eyas_backend::Backend::cache_write`]; one kernel, whether it rotates or not.
    pub(crate) fn run_cache_write(
        &self,
        batch: &CudaBatch,
        layout: &QkvLayout,
        rope: Option<&Rope<Self>>,
        positions: usize,
        qkv: &mut CudaTensor,
        keys: &mut CudaTensor,
        values: &mut CudaTensor,
    ) -> Result<()> {
        let op = "cache_write";
        self.check_cache(op, batch, layout, positions, qkv, keys, values)?;
        if let Some(rope) = rope {
            return self.rope_cached(batch, layout, rope, positions, qkv, keys, values);
        }
        self.kernels.launch(
            op,
            self.dtype,
            Grid::new(batch.tokens(), 128),
            args![
                LayoutArg::from(layout),
                qkv.ptr(),
                batch.sequence(),
                batch.slots(),
                batch.positions(),
                positions as i32,
                keys.ptr(),
                values.ptr()
            ],
        )
    }

    pub(crate) fn run_attention_cached(
        &self,
        batch: &CudaBatch,
        spec: &AttentionSpec<Self>,
        positions: usize,
        qkv: &CudaTensor,
        keys: &CudaTensor,
        values: &CudaTensor,
        out: &mut CudaTensor,
    ) -> Result<()> {
        let (op, l) = ("attention_cached", &spec.layout);
        let Bias { window, alibi, alibi_positions } = check_spec(op, spec, batch.max_position() + 1)?;
        self.check_cache(op, batch, l, positions, qkv, keys, values)?;
        check(op, "out", out, batch.tokens(), l.heads * l.head_dim, self.dtype)?;
        if self.has_flash(l) {
            return self.flash_cached(batch, spec, positions, qkv, keys, values, out);
        }
        self.kernels.launch(
            op,
            self.dtype,
            Grid::new(batch.tokens() * l.heads, 256),
            args![
                LayoutArg::from(l),
                spec.scale,
                window,
                alibi,
                alibi_positions,
                qkv.ptr(),
                keys.ptr(),
                values.ptr(),
                batch.sequence(),
                batch.slots(),
                batch.positions(),
                positions as i32,
                out.ptr()
            ],
        )
    }
}
