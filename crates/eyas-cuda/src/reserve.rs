//! How much working memory a step needs, known before it runs: the sizes that operations ask of [`crate::scratch`].

use eyas_backend::{Dtype, ProjectionShape, Result, StepShape, Storage};

use crate::CudaWeight;
use crate::attention_flash::{CHUNK_BYTES, most_piece_rows};
use crate::backend::CudaBackend;
use crate::device::rounded;
use crate::few_mma::{SOME_ROWS, piece_bytes};
use crate::matmul::WORKSPACE;
use crate::scratch::{SLOTS, Slot};
use crate::staging::CHUNK;
use crate::thin::{down_pieces, grad_pieces, rank_pad};

/// Multiprocessors of the cards that a plan is right for: sums are cut into pieces that fill them.
const MULTIPROCESSORS: std::ops::RangeInclusive<usize> = 16..=192;

/// Bytes of every slot of the scratch memory for steps of this shape.
pub(crate) fn slot_bytes(shape: &StepShape) -> [u64; SLOTS] {
    let mut slots = [0u64; SLOTS];
    let mut need = |slot: Slot, bytes: usize| {
        let held = &mut slots[slot as usize];
        *held = (*held).max(rounded(bytes as u64));
    };
    let size = shape.dtype.size();
    for projection in &shape.projections {
        projection_bytes(shape, projection, size, &mut need);
    }
    need(Slot::Rows, shape.tokens * shape.heads * 8);
    if shape.trains {
        let row = shape.kv_heads * 2 * shape.head_dim * 4;
        let group = shape.heads / shape.kv_heads.max(1);
        need(Slot::Partial, (group * shape.tokens * row).min(CHUNK_BYTES.max(shape.tokens * row)));
    }
    if !shape.trains {
        // Attention over a cache, its keys in pieces.
        let rows = most_piece_rows(*MULTIPROCESSORS.end());
        need(Slot::Partial, rows * shape.head_dim * 4);
        need(Slot::Rows, rows * 8);
    }
    need(Slot::Load, CHUNK + 8);
    slots
}

fn projection_bytes(
    shape: &StepShape,
    projection: &ProjectionShape,
    size: usize,
    need: &mut impl FnMut(Slot, usize),
) {
    let &ProjectionShape { in_features, out_features, rank, rows, storage } = projection;
    let direct = matches!(storage, Storage::Dense(dtype) if stored_dtype(shape.dtype, dtype) == shape.dtype);
    let wide = (in_features + rank).next_multiple_of(64);
    if !direct {
        need(Slot::Weight, out_features * if rank > 0 { wide } else { in_features } * size);
    }
    if let Storage::Quantised(config) = storage
        && config.double_quant
    {
        need(Slot::Scales, (in_features * out_features).div_ceil(config.block_size) * 4);
    }
    if matches!(storage, Storage::Quantised(_)) {
        let pieces = piece_bytes(MULTIPROCESSORS, rows, out_features, in_features);
        need(Slot::Partial, pieces);
        need(Slot::Hidden, rows.min(SOME_ROWS) * rank * 4);
    }
    if rank == 0 {
        return;
    }
    let padded = rank_pad(rank);
    let longest = in_features.max(out_features).next_multiple_of(128);
    if in_features <= out_features {
        need(Slot::Wide, rows * wide * size);
    }
    need(Slot::Hidden, rows * padded * size);
    need(Slot::PackedA, padded * longest * size);
    need(Slot::PackedB, padded * longest * size);
    // Fewer rows are cut into more pieces, so the most memory need not be with the most rows.
    let fewer = |rows: usize| std::iter::successors(Some(rows), |&rows| (rows > 512).then_some(rows / 2));
    for columns in [in_features, out_features] {
        for rows in fewer(rows) {
            need(Slot::Partial, down_pieces(MULTIPROCESSORS, rows, columns, padded) * rows * padded * 4);
        }
        if shape.trains {
            let width = columns.next_multiple_of(128);
            need(Slot::Partial, grad_pieces(MULTIPROCESSORS, rows, columns, padded) * padded * width * 4);
        }
    }
}

/// The type in which a dense weight stored as `dtype` is kept beside activations of `activations`.
pub(crate) fn stored_dtype(activations: Dtype, dtype: Dtype) -> Dtype {
    // A card without bfloat16 keeps such weights in its own half type, so that no product converts them.
    if dtype == Dtype::Bf16 && activations == Dtype::F16 { Dtype::F16 } else { dtype }
}

impl CudaBackend {
    /// Bytes of a weight that is not loaded yet.
    pub(crate) fn planned_weight(dtype: Dtype, rows: usize, cols: usize, storage: Storage) -> u64 {
        match storage {
            Storage::OnHost(_) => 0,
            Storage::Dense(stored) => {
                rounded(rows as u64 * cols as u64 * stored_dtype(dtype, stored).size() as u64)
            }
            Storage::Quantised(config) => CudaWeight::quantised_bytes(rows, cols, config),
        }
    }

    /// Bytes of all working memory for steps of this shape.
    pub(crate) fn planned_scratch(shape: &StepShape) -> u64 {
        slot_bytes(shape).iter().sum::<u64>() + rounded(WORKSPACE as u64)
    }

    /// Takes all working memory for steps of this shape.
    pub(crate) fn reserve_scratch(&self, shape: &StepShape) -> Result<()> {
        let mut scratch = self.scratch.lock();
        for (slot, bytes) in Slot::ALL.into_iter().zip(slot_bytes(shape)) {
            if bytes > 0 {
                scratch.get(slot, bytes as usize)?;
            }
        }
        Ok(())
    }
}
