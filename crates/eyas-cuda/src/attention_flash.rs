//! Launches of the flash attention kernels. See `kernels/flash_forward.cu`, `flash_backward.cu`, `flash_decode.cu`.

use eyas_backend::{AttentionSpec, QkvLayout, Result, reach};

use crate::attention::{AttentionArg, attention_arg};
use crate::attention_shapes::{Generation, Kernel, Shape, shape};
use crate::backend::CudaBackend;
use crate::device::Ptr;
use crate::kernels::{Grid, KernelArg, args};
use crate::norm::LayoutArg;
use crate::scratch::Slot;
use crate::{CudaBatch, CudaTensor};

/// Columns of dk and dv that a block of the key kernel computes at most.
const KEY_COLUMNS: usize = 128;
/// New tokens of a sequence from which the forward kernel beats the decode kernel, which is made for rows of few tokens.
const PREFILL_TOKENS: usize = 16;
/// The most blocks that share out the keys of one row.
const MAX_SPLITS: usize = 64;

/// `Keys` of flash_forward.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct KeysArg {
    keys: Ptr,
    values: Ptr,
    row_stride: i32,
    head_stride: i32,
    capacity: i32,
    slots: Ptr,
    positions: Ptr,
}
// SAFETY: the layout is that of `Keys` in flash_forward.cu.
unsafe impl KernelArg for KeysArg {}

/// `Cache` of flash_decode.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct CacheArg {
    keys: Ptr,
    values: Ptr,
    capacity: i32,
    slots: Ptr,
    positions: Ptr,
}
// SAFETY: the layout is that of `Cache` in flash_decode.cu.
unsafe impl KernelArg for CacheArg {}

/// The kernels for heads of one size.
struct Names {
    forward: &'static str,
    query: &'static str,
    key: &'static str,
    sum: &'static str,
    decode: &'static str,
    combine: &'static str,
}

macro_rules! names {
    ($head:literal) => {
        Names {
            forward: concat!("flash_forward_", $head),
            query: concat!("flash_backward_query_", $head),
            key: concat!("flash_backward_key_", $head),
            sum: concat!("flash_backward_sum_", $head),
            decode: concat!("flash_decode_", $head),
            combine: concat!("flash_decode_combine_", $head),
        }
    };
}

fn names(s: &Shape) -> Names {
    match s.dim {
        64 => names!(64),
        96 => names!(96),
        128 => names!(128),
        _ => names!(256),
    }
}

/// The most memory that sums of chunks take.
pub(crate) const CHUNK_BYTES: usize = 96 << 20;

/// Chunks into which the query heads of a group are split, so that the key kernel fills the card where few keys meet
/// many query heads. Their sums, of `bytes` each, take memory and time, so as few as do.
fn chunks(blocks: usize, group: usize, multiprocessors: usize, bytes: usize) -> usize {
    if blocks >= 3 * multiprocessors {
        return 1;
    }
    (6 * multiprocessors).div_ceil(blocks.max(1)).min(group).min(CHUNK_BYTES / bytes.max(1)).max(1)
}

/// Blocks that share out the keys of a row of the decode kernel: two a multiprocessor, if each warp has two tiles then.
fn splits(blocks: usize, keys: usize, s: &Shape, multiprocessors: usize) -> usize {
    let most = keys.div_ceil(2 * s.tile * s.warps);
    (2 * multiprocessors).div_ceil(blocks.max(1)).min(most).clamp(1, MAX_SPLITS)
}

/// The most rows of pieces, of all splits together, that the decode kernel leaves to be put together: a block has sixteen
/// rows, and keys are split only while blocks are fewer than two a multiprocessor.
pub(crate) fn most_piece_rows(multiprocessors: usize) -> usize {
    16 * 4 * multiprocessors
}

impl CudaBackend {
    fn shape(&self, kernel: Kernel, layout: &QkvLayout) -> (Shape, Names, u32) {
        let (s, shared) = shape(kernel, Generation::of(self.device.limits.sm), layout.head_dim);
        let names = names(&s);
        (s, names, shared)
    }

    /// [`CudaBackend::run_attention`] by the flash kernel.
    pub(crate) fn flash_forward(
        &self,
        batch: &CudaBatch,
        layout: &QkvLayout,
        arg: AttentionArg,
        qkv: &CudaTensor,
        out: &mut CudaTensor,
        lse: &mut CudaTensor,
    ) -> Result<()> {
        let keys = KeysArg {
            keys: qkv.at(layout.key_offset),
            values: qkv.at(layout.value_offset),
            row_stride: layout.width() as i32,
            head_stride: layout.kv_stride as i32,
            capacity: 0,
            slots: Ptr::NULL,
            positions: Ptr::NULL,
        };
        self.launch_forward(batch, layout, arg, keys, qkv, out, lse.ptr())
    }

    fn launch_forward(
        &self,
        batch: &CudaBatch,
        layout: &QkvLayout,
        arg: AttentionArg,
        keys: KeysArg,
        qkv: &CudaTensor,
        out: &mut CudaTensor,
        lse: Ptr,
    ) -> Result<()> {
        let (s, names, shared) = self.shape(Kernel::Forward, layout);
        let tiles = batch.max_seqlen().div_ceil(s.rows()) as u32;
        let grid = Grid {
            blocks: [(batch.sequences() * layout.heads) as u32, tiles, 1],
            threads: s.threads(),
            shared,
        };
        self.kernels.launch(
            names.forward,
            self.dtype,
            grid,
            args![arg, keys, qkv.ptr(), batch.starts(), out.ptr(), lse],
        )
    }

    /// [`CudaBackend::run_attention_backward`] by the flash kernels.
    pub(crate) fn flash_backward(
        &self,
        batch: &CudaBatch,
        layout: &QkvLayout,
        arg: AttentionArg,
        qkv: &CudaTensor,
        out: &CudaTensor,
        lse: &CudaTensor,
        dout: &CudaTensor,
        dqkv: &mut CudaTensor,
    ) -> Result<()> {
        let (tokens, sequences) = (batch.tokens(), batch.sequences());
        let (s, names, shared) = self.shape(Kernel::Query, layout);
        let mut scratch = self.scratch.lock();
        let rows = scratch.get(Slot::Rows, tokens * layout.heads * 8)?;
        let tiles = batch.max_seqlen().div_ceil(s.rows()) as u32;
        self.kernels.launch(
            names.query,
            self.dtype,
            Grid { blocks: [(sequences * layout.heads) as u32, tiles, 1], threads: s.threads(), shared },
            args![
                arg,
                qkv.ptr(),
                batch.starts(),
                tokens as i32,
                out.ptr(),
                lse.ptr(),
                dout.ptr(),
                rows,
                dqkv.ptr()
            ],
        )?;

        let (s, names, shared) = self.shape(Kernel::Key, layout);
        let tiles = batch.cu_seqlens().windows(2).map(|w| ((w[1] - w[0]) as usize).div_ceil(s.rows()));
        let row = layout.kv_heads * 2 * layout.head_dim;
        let chunks = chunks(
            tiles.sum::<usize>() * layout.kv_heads,
            layout.group(),
            self.device.limits.multiprocessors as usize,
            tokens * row * 4,
        );
        let partial =
            if chunks > 1 { scratch.get(Slot::Partial, chunks * tokens * row * 4)? } else { Ptr::NULL };
        let blocks = batch.max_seqlen().div_ceil(s.rows()) * sequences * layout.kv_heads * chunks;
        let parts = layout.head_dim.div_ceil(KEY_COLUMNS) as u32;
        self.kernels.launch(
            names.key,
            self.dtype,
            Grid { blocks: [blocks as u32, parts, 1], threads: s.threads(), shared },
            args![
                arg,
                qkv.ptr(),
                batch.starts(),
                tokens as i32,
                sequences as i32,
                chunks as i32,
                dout.ptr(),
                rows,
                partial,
                dqkv.ptr()
            ],
        )?;
        if chunks == 1 {
            return Ok(());
        }
        self.kernels.launch(
            names.sum,
            self.dtype,
            Grid::new((tokens * row / 8).div_ceil(256), 256),
            args![LayoutArg::from(layout), tokens as i32, chunks as i32, partial, dqkv.ptr()],
        )
    }

    /// [`CudaBackend::run_attention_cached`] by the flash kernels; the operands are checked.
    pub(crate) fn flash_cached(
        &self,
        batch: &CudaBatch,
        spec: &AttentionSpec<Self>,
        capacity: usize,
        qkv: &CudaTensor,
        keys: &CudaTensor,
        values: &CudaTensor,
        out: &mut CudaTensor,
    ) -> Result<()> {
        let (l, positions) = (&spec.layout, batch.max_position() + 1);
        let arg = attention_arg("attention_cached", spec, positions)?;
        if batch.max_seqlen() >= PREFILL_TOKENS {
            let keys = KeysArg {
                keys: keys.ptr(),
                values: values.ptr(),
                row_stride: (l.kv_heads * l.head_dim) as i32,
                head_stride: l.head_dim as i32,
                capacity: capacity as i32,
                slots: batch.slots(),
                positions: batch.positions(),
            };
            return self.launch_forward(batch, l, arg, keys, qkv, out, Ptr::NULL);
        }
        let (s, names, shared) = self.shape(Kernel::Decode, l);
        let columns = batch.sequences() * l.kv_heads;
        let tiles = (batch.max_seqlen() * l.group()).div_ceil(s.tile);
        let splits =
            splits(columns * tiles, reach(positions), &s, self.device.limits.multiprocessors as usize);
        let mut scratch = self.scratch.lock();
        let (mut pieces, mut stats) = (Ptr::NULL, Ptr::NULL);
        let rows = batch.tokens() * l.heads;
        if splits > 1 {
            pieces = scratch.get(Slot::Partial, rows * splits * l.head_dim * 4)?;
            stats = scratch.get(Slot::Rows, rows * splits * 8)?;
        }
        let cache = CacheArg {
            keys: keys.ptr(),
            values: values.ptr(),
            capacity: capacity as i32,
            slots: batch.slots(),
            positions: batch.positions(),
        };
        self.kernels.launch(
            names.decode,
            self.dtype,
            Grid { blocks: [columns as u32, tiles as u32, splits as u32], threads: s.threads(), shared },
            args![arg, cache, qkv.ptr(), batch.starts(), pieces, stats, out.ptr()],
        )?;
        if splits == 1 {
            return Ok(());
        }
        self.kernels.launch(
            names.combine,
            self.dtype,
            Grid::new(rows, 64),
            args![l.head_dim as i32, splits as i32, pieces, stats, out.ptr()],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_split_only_where_the_card_would_idle() {
        // Falcon-7B, 16 x 1024: 256 tiles of keys for 71 heads.
        assert_eq!(chunks(256, 71, 132, 1), 4);
        assert_eq!(chunks(8, 71, 132, 1), 71);
        // Llama-3-8B, 16 x 1024.
        assert_eq!(chunks(1024, 4, 132, 1), 1);
        assert_eq!(chunks(0, 1, 132, 1), 1);
    }

    #[test]
    fn keys_are_split_only_where_there_are_enough() {
        let (s, _) = shape(Kernel::Decode, Generation::Hopper, 64);
        assert_eq!(splits(5, 1, &s, 132), 1);
        assert_eq!(splits(5, 1024, &s, 132), 8);
        assert_eq!(splits(1000, 4096, &s, 132), 1);
        assert_eq!(splits(1, 1 << 20, &s, 132), MAX_SPLITS);
    }
}
