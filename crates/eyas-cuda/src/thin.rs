//! Products with one thin side, the rank of a low-rank update: packing, launching, adding up. See `kernels/thin.cu`.

use eyas_backend::philox::dropout_threshold;
use eyas_backend::{Dropout, Dtype, Result};

use crate::backend::CudaBackend;
use crate::device::Ptr;
use crate::kernels::{Grid, KernelArg, args};
use crate::scratch::{ScratchGuard, Slot};
use crate::tensor::is_vector;

/// Tokens and columns of a tile, and the depth of a stage, as in thin.cu.
const DOWN_ROWS: usize = 128;
const GRAD_COLS: usize = 128;
const STEP: usize = 64;

/// `Dropout` of prelude.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct DropoutArg {
    threshold: u32,
    pub(crate) keep_scale: f32,
    projection: u32,
    micro_batch: u32,
    keys: [[u32; 2]; 10],
}
// SAFETY: the layout is that of `Dropout` in prelude.cuh.
unsafe impl KernelArg for DropoutArg {}

impl DropoutArg {
    /// Drops nothing.
    pub(crate) const NONE: Self =
        Self { threshold: 0, keep_scale: 1.0, projection: 0, micro_batch: 0, keys: [[0; 2]; 10] };

    pub(crate) fn new(dropout: Option<Dropout>, projection: u32) -> Self {
        match dropout {
            Some(d) if dropout_threshold(d.p) > 0 => Self {
                threshold: dropout_threshold(d.p).min(0xffff) << 16,
                keep_scale: 1.0 / (1.0 - d.p),
                projection,
                micro_batch: d.micro_batch,
                keys: std::array::from_fn(|round| {
                    let key =
                        |word: u64, step: u32| (word as u32).wrapping_add(step.wrapping_mul(round as u32));
                    [key(d.seed, 0x9E37_79B9), key(d.seed >> 32, 0xBB67_AE85)]
                }),
            },
            _ => Self::NONE,
        }
    }
}

/// A packed thin matrix `[rank_pad, ld]` in the activations' type, zero where padded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed {
    pub(crate) ptr: Ptr,
    pub(crate) rank: usize,
    pub(crate) ld: usize,
}

impl Packed {
    pub(crate) fn rank_pad(&self) -> usize {
        rank_pad(self.rank)
    }
}

pub(crate) fn rank_pad(rank: usize) -> usize {
    rank.next_multiple_of(16)
}

fn width_pad(width: usize) -> usize {
    width.next_multiple_of(128)
}

/// Rows of a wide matrix: `cols` from `ptr` on, `ld` elements apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) ptr: Ptr,
    pub(crate) ld: usize,
    pub(crate) cols: usize,
}

impl Rows {
    fn vector(&self) -> i32 {
        i32::from(is_vector(self.ptr, self.ld) && self.cols.is_multiple_of(8))
    }
}

/// Ranks that a block handles: 32, 64 or 96, and how many blocks side by side.
fn rank_tile(rank_pad: usize) -> (usize, usize) {
    let tile = if rank_pad <= 32 {
        32
    } else if rank_pad <= 64 {
        64
    } else {
        96
    };
    (tile, rank_pad.div_ceil(tile))
}

fn pick(names: [&'static str; 3], tile: usize) -> &'static str {
    names[tile / 32 - 1]
}

/// The shortest piece of an axis that is worth a block of its own.
const SHORTEST_PIECE: usize = 256;
/// Blocks that are resident on a multiprocessor: shared memory holds three.
const RESIDENT: usize = 3;

/// The most pieces that [`CudaBackend::thin_down`] cuts columns into, on any card of so many multiprocessors.
pub(crate) fn down_pieces(
    cards: std::ops::RangeInclusive<usize>,
    rows: usize,
    columns: usize,
    rank_pad: usize,
) -> usize {
    let tiles = rows.div_ceil(DOWN_ROWS) * rank_tile(rank_pad).1;
    cards.map(|card| pieces(card, tiles, columns).0).max().unwrap_or(1)
}

/// The most pieces that [`CudaBackend::thin_grad`] cuts tokens into.
pub(crate) fn grad_pieces(
    cards: std::ops::RangeInclusive<usize>,
    rows: usize,
    columns: usize,
    rank_pad: usize,
) -> usize {
    let tiles = columns.div_ceil(GRAD_COLS) * rank_tile(rank_pad).1;
    cards.map(|card| pieces(card, tiles, rows).0).max().unwrap_or(1)
}

/// The most pieces that an axis is cut into.
fn most_pieces(len: usize) -> usize {
    len.div_ceil(SHORTEST_PIECE).clamp(1, 32)
}

/// See [`CudaBackend::pieces`]. A piece costs a partial sum to write and read, about a hundredth of the whole.
fn pieces(multiprocessors: usize, tiles: usize, len: usize) -> (usize, usize) {
    let slots = multiprocessors * RESIDENT;
    let mut best = (f64::NEG_INFINITY, 1, len.next_multiple_of(STEP).max(STEP));
    for wanted in 1..=most_pieces(len) {
        let step = len.div_ceil(wanted).next_multiple_of(STEP).max(STEP);
        let pieces = len.div_ceil(step).max(1);
        let rounds = (tiles * pieces).div_ceil(slots);
        let gain = (tiles * pieces) as f64 / (rounds.max(1) * slots) as f64 - 0.01 * pieces as f64;
        if gain > best.0 {
            best = (gain, pieces, step);
        }
    }
    (best.1, best.2)
}

impl CudaBackend {
    fn stages(&self) -> usize {
        if self.device.limits.sm.0 >= 8 { 3 } else { 2 }
    }

    /// Pieces to cut an axis into so that `tiles` blocks for each fill the card evenly, and the length of a piece.
    fn pieces(&self, tiles: usize, len: usize) -> (usize, usize) {
        pieces(self.device.limits.multiprocessors as usize, tiles, len)
    }

    /// Packs the `A` of each part, one below the other.
    pub(crate) fn pack_a(
        &self,
        scratch: &mut ScratchGuard<'_>,
        params: &crate::CudaTensor,
        parts: &[(usize, usize)],
        in_features: usize,
    ) -> Result<Packed> {
        let rank: usize = parts.iter().map(|(_, r)| r).sum();
        let (rows, ld) = (rank_pad(rank), width_pad(in_features));
        let size = self.dtype.size();
        let ptr = scratch.get(Slot::PackedA, rows * ld * size)?;
        let mut start = 0;
        for (i, (offset, r)) in parts.iter().enumerate() {
            // The last part's launch clears the padding below it.
            let filled = if i + 1 == parts.len() { rows - start } else { *r };
            let to = ptr.add(start * ld * size);
            self.kernels.launch(
                "pack_a",
                self.dtype,
                Grid::over(filled * ld),
                args![params.at(*offset), *r as i32, in_features as i32, to, filled as i32, ld as u32],
            )?;
            start += r;
        }
        Ok(Packed { ptr, rank, ld })
    }

    /// Packs `scaling * B^T` of one part, `B` `[out, r]` at `offset`.
    pub(crate) fn pack_b(
        &self,
        scratch: &mut ScratchGuard<'_>,
        params: &crate::CudaTensor,
        offset: usize,
        r: usize,
        out_features: usize,
        scaling: f32,
    ) -> Result<Packed> {
        let (rows, ld) = (rank_pad(r), width_pad(out_features));
        let ptr = scratch.get(Slot::PackedB, rows * ld * self.dtype.size())?;
        let grid = Grid { blocks: [(ld / 32) as u32, rows.div_ceil(32) as u32, 1], threads: 256, shared: 0 };
        self.kernels.launch(
            "pack_b",
            self.dtype,
            grid,
            args![params.at(offset), out_features as i32, r as i32, scaling, ptr, rows as i32, ld as u32],
        )?;
        Ok(Packed { ptr, rank: r, ld })
    }

    /// `h [tokens, rank] = mask(x) packed^T`, to rows of `ld_h`; with `wide` also `[x | h]`, `spare` columns of it for `h`.
    pub(crate) fn thin_down(
        &self,
        scratch: &mut ScratchGuard<'_>,
        tokens: usize,
        x: Rows,
        packed: Packed,
        h: Ptr,
        ld_h: usize,
        wide: Option<(Ptr, usize, usize)>,
        dropout: DropoutArg,
    ) -> Result<()> {
        let rank_pad = packed.rank_pad();
        let (tile, tiles) = rank_tile(rank_pad);
        let row_tiles = tokens.div_ceil(DOWN_ROWS);
        let (pieces, step) = self.pieces(row_tiles * tiles, x.cols);
        let partial = scratch.get(Slot::Partial, pieces * tokens * rank_pad * 4)?;
        let shared =
            if self.dtype == Dtype::F32 { 0 } else { self.stages() * (DOWN_ROWS + tile) * (STEP + 8) * 2 };
        let (wide_ptr, ld_wide, spare) = wide.unwrap_or((Ptr::NULL, 0, 0));
        let grid = Grid {
            blocks: [row_tiles as u32, pieces as u32, tiles as u32],
            threads: 256,
            shared: shared as u32,
        };
        // The copy beside h keeps the alignment of its own rows.
        let vector =
            if wide.is_some() { x.vector() * i32::from(is_vector(wide_ptr, ld_wide)) } else { x.vector() };
        self.kernels.launch(
            pick(["thin_down_32", "thin_down_64", "thin_down_96"], tile),
            self.dtype,
            grid,
            args![
                x.ptr,
                x.ld as u64,
                vector,
                tokens as i32,
                x.cols as i32,
                packed.ptr,
                packed.ld as u64,
                rank_pad as i32,
                wide_ptr,
                ld_wide as u64,
                partial,
                step as i32,
                dropout
            ],
        )?;
        let beside = if wide.is_some() { wide_ptr.add(x.cols * self.dtype.size()) } else { Ptr::NULL };
        self.kernels.launch(
            "thin_down_finish",
            self.dtype,
            Grid::over(tokens * rank_pad.max(spare)),
            args![
                partial,
                pieces as i32,
                tokens as i32,
                rank_pad as i32,
                packed.rank as i32,
                dropout.keep_scale,
                h,
                ld_h as u64,
                beside,
                ld_wide as u64,
                spare as i32
            ],
        )
    }

    /// `y (+)= mask(h packed)`, `h` `[tokens, rank]` in rows of `ld_h`.
    pub(crate) fn thin_up(
        &self,
        tokens: usize,
        h: Ptr,
        ld_h: usize,
        packed: Packed,
        y: Rows,
        add: bool,
        dropout: DropoutArg,
    ) -> Result<()> {
        let grid = Grid {
            blocks: [y.cols.div_ceil(128) as u32, tokens.div_ceil(64) as u32, 1],
            threads: 256,
            shared: 0,
        };
        let h_vector = i32::from(is_vector(h, ld_h) && packed.rank.is_multiple_of(8));
        self.kernels.launch(
            "thin_up",
            self.dtype,
            grid,
            args![
                h,
                ld_h as u64,
                h_vector,
                packed.rank as i32,
                packed.ptr,
                packed.ld as u64,
                y.ptr,
                y.ld as u64,
                y.vector(),
                tokens as i32,
                y.cols as i32,
                i32::from(add),
                dropout
            ],
        )
    }

    /// `h^T mask(x)` summed over tokens, as pieces that [`CudaBackend::add_grad`] adds up.
    pub(crate) fn thin_grad(
        &self,
        scratch: &mut ScratchGuard<'_>,
        tokens: usize,
        h: Ptr,
        ld_h: usize,
        rank: usize,
        x: Rows,
        dropout: DropoutArg,
    ) -> Result<GradPieces> {
        let rank_pad = rank_pad(rank);
        let (tile, tiles) = rank_tile(rank_pad);
        let (col_tiles, ld) = (x.cols.div_ceil(GRAD_COLS), width_pad(x.cols));
        let (pieces, step) = self.pieces(col_tiles * tiles, tokens);
        let partial = scratch.get(Slot::Partial, pieces * rank_pad * ld * 4)?;
        let shared =
            if self.dtype == Dtype::F32 { 0 } else { self.stages() * STEP * (GRAD_COLS + 8 + tile + 8) * 2 };
        let grid = Grid {
            blocks: [col_tiles as u32, pieces as u32, tiles as u32],
            threads: 256,
            shared: shared as u32,
        };
        let h_vector = i32::from(is_vector(h, ld_h) && rank.is_multiple_of(8));
        self.kernels.launch(
            pick(["thin_grad_32", "thin_grad_64", "thin_grad_96"], tile),
            self.dtype,
            grid,
            args![
                h,
                ld_h as u64,
                h_vector,
                rank as i32,
                x.ptr,
                x.ld as u64,
                x.vector(),
                x.cols as i32,
                tokens as i32,
                partial,
                rank_pad as i32,
                ld as u64,
                step as i32,
                dropout
            ],
        )?;
        Ok(GradPieces { partial, pieces, rank_pad, ld, cols: x.cols })
    }

    /// Adds `scale` times the sum of the pieces' ranks `start .. start + rank` to f32 gradients, `[rank, cols]` or
    /// transposed.
    pub(crate) fn add_grad(
        &self,
        from: &GradPieces,
        start: usize,
        rank: usize,
        scale: f32,
        transposed: bool,
        grads: Ptr,
    ) -> Result<()> {
        self.kernels.launch(
            "thin_grad_finish",
            self.dtype,
            Grid::over(rank * from.cols),
            args![
                from.partial,
                from.pieces as i32,
                from.rank_pad as i32,
                from.ld as u64,
                start as i32,
                rank as i32,
                from.cols as i32,
                scale,
                i32::from(transposed),
                grads
            ],
        )
    }
}

/// Sums over pieces of the token axis, `[pieces, rank_pad, ld]`.
#[derive(Debug)]
pub(crate) struct GradPieces {
    partial: Ptr,
    pieces: usize,
    rank_pad: usize,
    ld: usize,
    cols: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_axis_and_fill_the_card() {
        for (tiles, len) in [(128, 4544), (36, 16_384), (142, 16_384), (1, 7), (4, 512), (600, 4096)] {
            let (pieces, step) = pieces(132, tiles, len);
            assert!(pieces * step >= len && (pieces - 1) * step < len, "{tiles} {len}: {pieces} x {step}");
            assert_eq!(step % STEP, 0);
            let blocks = tiles * pieces;
            let full = blocks as f64 / (blocks.div_ceil(396) * 396) as f64;
            assert!(len < 4000 || full > 0.7, "{tiles} {len}: {full}");
        }
    }

    /// The keys of the first rounds follow from the seed as in [`eyas_backend::philox`].
    #[test]
    fn round_keys_add_up_weyl_constants() {
        let dropout = Dropout { p: 0.5, seed: 0x0000_0002_0000_0001, micro_batch: 0 };
        let keys = DropoutArg::new(Some(dropout), 0).keys;
        assert_eq!(keys[0], [1, 2]);
        assert_eq!(keys[1], [0x9E37_79BA, 0xBB67_AE87]);
    }
}
