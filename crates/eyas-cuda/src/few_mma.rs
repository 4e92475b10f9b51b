//! Projections of at most 64 tokens whose weights are in 4 bits: read once, decoded in registers, multiplied on the tensor
//! cores. See `kernels/few_mma.cu`.

use eyas_backend::{Dtype, Projection, Result};

use crate::CudaTensor;
use crate::backend::CudaBackend;
use crate::device::Ptr;
use crate::few_rows::{FEW_ROWS, FewRows};
use crate::kernels::{Grid, KernelArg, args};
use crate::scratch::{ScratchGuard, Slot};
use crate::tensor::is_vector;
use crate::weight::{Kind, QuantizedArg};

/// Tokens up to which decoding in registers beats a product over dequantised weights.
pub(crate) const SOME_ROWS: usize = 64;
/// Columns that share a scale, those that are read together, and rows of a block: as in few_mma.cu.
const UNIT: usize = 64;
const QUAD: usize = 4 * UNIT;
const BLOCK_ROWS: usize = 128;
/// Parts of a projection, at most.
const PARTS: usize = 4;
/// Bytes of `Table`, and of a token's columns of a quad in shared memory.
const TABLE_BYTES: usize = 256 * 32 * 4 + 256 * 4;
const TOKEN_BYTES: usize = QUAD * 2 + 16;
/// Blocks of a multiprocessor, which the rows of a weight are split for.
const RESIDENT: usize = 2;

/// `Part` of few_mma.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct PartArg {
    weight: QuantizedArg,
    bias: Ptr,
    b: Ptr,
    rows: i32,
    column: i32,
    r: i32,
    rank: i32,
    scaling: f32,
    tile: i32,
}

/// `Parts` of few_mma.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct PartsArg {
    parts: [PartArg; PARTS],
    count: i32,
}
// SAFETY: the layout is that of `Parts` in few_mma.cu.
unsafe impl KernelArg for PartsArg {}

/// Blocks that share out the columns of a row, and the quads of each, two at least: so that the blocks of all `tiles` fill
/// the card evenly. A split costs a partial sum to write and read, about a fiftieth of the whole.
fn splits(tiles: usize, k: usize, multiprocessors: usize) -> (usize, usize) {
    let (quads, slots) = (k.div_ceil(QUAD), RESIDENT * multiprocessors);
    let mut best = (f64::NEG_INFINITY, 1, quads);
    for wanted in 1..=(quads / 2).max(1) {
        let step = quads.div_ceil(wanted);
        let splits = quads.div_ceil(step);
        let blocks = tiles * splits;
        let gain = blocks as f64 / (blocks.div_ceil(slots) * slots) as f64 - 0.02 * splits as f64;
        if gain > best.0 {
            best = (gain, splits, step);
        }
    }
    (best.1, best.2)
}

/// Bytes of the sums in pieces, at most, on any card of so many multiprocessors.
pub(crate) fn piece_bytes(
    cards: std::ops::RangeInclusive<usize>,
    tokens: usize,
    out_features: usize,
    k: usize,
) -> usize {
    let tiles = out_features.div_ceil(BLOCK_ROWS);
    // Each part may have a tile that is not full.
    let most = cards.flat_map(|card| (tiles..tiles + PARTS).map(move |tiles| splits(tiles, k, card).0)).max();
    tokens.min(SOME_ROWS) * most.unwrap_or(1) * out_features * 4
}

impl CudaBackend {
    /// Whether the tokens are few, and every part is in 4 bits and of a shape that the kernels take.
    pub(crate) fn is_few_mma(&self, tokens: usize, projection: &Projection<Self>, x: &CudaTensor) -> bool {
        let k = projection.in_features;
        // Turing has shared memory for sixteen tokens.
        tokens <= if self.device.limits.sm.0 >= 8 { SOME_ROWS } else { SOME_ROWS / 4 }
            && self.dtype != Dtype::F32
            && k.is_multiple_of(UNIT)
            && is_vector(x.ptr(), k)
            && (1..=PARTS).contains(&projection.parts.len())
            && projection.parts.iter().all(|part| match part.weight.kind {
                Kind::Dense(_) => false,
                Kind::Quantised(arg) => {
                    1usize << arg.block_shift >= UNIT && arg.nested_block_size.count_ones() == 1
                }
            })
    }

    /// See [`eyas_backend::Backend::project`].
    pub(crate) fn few_mma(
        &self,
        scratch: &mut ScratchGuard<'_>,
        few: &FewRows<'_>,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let &FewRows { tokens, parts, params, rank, x, add, .. } = few;
        let (k, n) = (x.cols(), y.cols());
        let h = self.few_hidden(scratch, few)?;
        let rows_of_tile = if tokens <= FEW_ROWS { 16 } else { BLOCK_ROWS };
        let mut tiles = 0;
        let mut list = Vec::with_capacity(PARTS);
        for part in parts {
            let Kind::Quantised(weight) = part.linear.weight.kind else { continue };
            let (b, r, scaling) = part.update(params);
            list.push(PartArg {
                weight,
                bias: part.bias(),
                b,
                rows: part.linear.out_features as i32,
                column: part.column as i32,
                r,
                rank: part.rank as i32,
                scaling,
                tile: tiles as i32,
            });
            tiles += part.linear.out_features.div_ceil(rows_of_tile);
        }
        let Some(&first) = list.first() else { return Ok(()) };
        let mut arg = PartsArg { parts: [first; PARTS], count: list.len() as i32 };
        arg.parts[..list.len()].copy_from_slice(&list);
        let (count, columns, add) = (tokens as i32, k as i32, i32::from(add));
        if tokens <= FEW_ROWS {
            return self.kernels.launch(
                "few_mma",
                self.dtype,
                Grid::new(tiles, 256),
                args![arg, x.ptr(), count, columns, h, rank as i32, y.ptr(), n as u64, add],
            );
        }
        let (splits, step) = splits(tiles, k, self.device.limits.multiprocessors as usize);
        let pieces = scratch.get(Slot::Partial, splits * tokens * n * 4)?;
        let (kernel, groups) = match tokens.div_ceil(8) {
            0..=2 => ("some_mma_2", 2),
            3..=4 => ("some_mma_4", 4),
            _ => ("some_mma_8", 8),
        };
        let shared = TABLE_BYTES + 2 * groups * 8 * TOKEN_BYTES;
        self.kernels.launch(
            kernel,
            self.dtype,
            Grid { shared: shared as u32, ..Grid::plane(tiles, splits, 256) },
            args![arg, x.ptr(), count, columns, h, rank as i32, pieces, n as i32, step as i32],
        )?;
        self.kernels.launch(
            "some_mma_finish",
            self.dtype,
            Grid::plane(n.div_ceil(256), tokens, 256),
            args![arg, pieces, splits as i32, count, n as i32, y.ptr(), n as u64, add],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_cover_the_columns_and_fill_the_card() {
        for (tiles, k) in [(37, 4544), (142, 4544), (36, 18_176), (48, 4096), (5, 576), (1, 64)] {
            let (splits, step) = splits(tiles, k, 132);
            let quads = k.div_ceil(QUAD);
            assert!(splits * step >= quads && (splits - 1) * step < quads, "{tiles} {k}: {splits} x {step}");
            assert!(splits == 1 || step >= 2);
        }
        // Eight splits would take two rounds.
        assert_eq!(splits(36, 18_176, 132), (7, 11));
        assert_eq!(splits(1, 64, 132), (1, 1));
    }
}
