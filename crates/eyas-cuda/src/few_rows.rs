//! Projections of at most eight tokens whose weights are dense or of a shape that [`crate::few_mma`] does not take: bound by
//! reading the weights, which are read once in the form they are kept in. And the low-rank activations of few tokens.

use eyas_backend::{Projection, Result};

use crate::CudaTensor;
use crate::backend::CudaBackend;
use crate::device::Ptr;
use crate::kernels::{Grid, KernelArg, args};
use crate::project::Part;
use crate::scratch::{ScratchGuard, Slot};
use crate::tensor::is_vector;
use crate::weight::Kind;

/// Tokens of a block, up to which reading a weight once beats a product.
pub(crate) const FEW_ROWS: usize = 8;

/// `LowRank` of few_rows.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct LowRank {
    h: Ptr,
    b: Ptr,
    ld_h: i32,
    r: i32,
    scaling: f32,
}
// SAFETY: the layout is that of `LowRank` in few_rows.cu.
unsafe impl KernelArg for LowRank {}

/// The most parts whose low-rank activations a launch computes.
const DOWNS: usize = 4;

/// `Down` of few_rows.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct Down {
    a: [Ptr; DOWNS],
    start: [i32; DOWNS + 1],
    count: i32,
}
// SAFETY: the layout is that of `Down` in few_rows.cu.
unsafe impl KernelArg for Down {}

/// A projection of few tokens and what it is given, dropout aside.
#[derive(Clone, Copy)]
pub(crate) struct FewRows<'a> {
    pub(crate) tokens: usize,
    pub(crate) parts: &'a [Part<'a>],
    /// The adapter's flat vector, and the ranks of all parts' updates.
    pub(crate) params: Option<&'a CudaTensor>,
    pub(crate) rank: usize,
    pub(crate) x: &'a CudaTensor,
    /// Where the low-rank activations go in the activations' type.
    pub(crate) saved: Option<Ptr>,
    /// Whether the result is added to what is there.
    pub(crate) add: bool,
}

impl CudaBackend {
    /// `x A^T` of every part that has an update, side by side in f32, and to `saved` in the activations' type.
    pub(crate) fn few_hidden(&self, scratch: &mut ScratchGuard<'_>, few: &FewRows<'_>) -> Result<Ptr> {
        let &FewRows { tokens, parts, params, rank, x, saved, .. } = few;
        let Some(params) = params.filter(|_| rank > 0) else { return Ok(Ptr::NULL) };
        let h = scratch.get(Slot::Hidden, tokens * rank * 4)?;
        let updates: Vec<_> =
            parts.iter().filter_map(|part| part.lora.map(|lora| (part.rank, lora))).collect();
        for updates in updates.chunks(DOWNS) {
            let first = updates[0].0;
            let mut down = Down { a: [Ptr::NULL; DOWNS], start: [0; DOWNS + 1], count: updates.len() as i32 };
            for (i, (rank, lora)) in updates.iter().enumerate() {
                down.a[i] = params.at(lora.a);
                down.start[i + 1] = (rank - first + lora.r) as i32;
            }
            let ranks = down.start[updates.len()] as usize;
            let aligned = down.a[..updates.len()].iter().all(|a| a.is_aligned());
            let vector = i32::from(aligned && is_vector(x.ptr(), x.cols()));
            // A block for each rank where there are few, so that all of the card reads.
            let (kernel, each, threads) =
                if tokens <= FEW_ROWS { ("few_rows_hidden", 1, 512) } else { ("some_rows_hidden", 4, 256) };
            self.kernels.launch(
                kernel,
                self.dtype,
                Grid::plane(ranks.div_ceil(each), tokens.div_ceil(FEW_ROWS), threads),
                args![
                    down,
                    x.ptr(),
                    tokens as i32,
                    x.cols() as i32,
                    h.add(first * 4),
                    rank as i32,
                    saved.map_or(Ptr::NULL, |saved| saved.add(first * self.dtype.size())),
                    rank as i32,
                    vector
                ],
            )?;
        }
        Ok(h)
    }

    /// Whether every part can be read sixteen bytes at a time.
    pub(crate) fn is_few_rows(&self, projection: &Projection<Self>, x: &CudaTensor) -> bool {
        let k = projection.in_features;
        is_vector(x.ptr(), k)
            && projection.parts.iter().all(|part| match part.weight.kind {
                Kind::Dense(dtype) => dtype == self.dtype,
                Kind::Quantised(_) => k.is_multiple_of(32),
            })
    }

    /// See [`eyas_backend::Backend::project`].
    pub(crate) fn few_rows(
        &self,
        scratch: &mut ScratchGuard<'_>,
        few: &FewRows<'_>,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let &FewRows { tokens, parts, params, rank, x, add, .. } = few;
        let (k, n, count) = (x.cols() as i32, y.cols() as u64, tokens as i32);
        let hidden = self.few_hidden(scratch, few)?;
        for part in parts {
            let (b, r, scaling) = part.update(params);
            let h = if r > 0 { hidden.add(part.rank * 4) } else { Ptr::NULL };
            let low = LowRank { h, b, ld_h: rank as i32, r, scaling };
            let (rows, bias, to) = (part.linear.out_features, part.bias(), y.at(part.column));
            // Four warps a block, two rows a warp.
            let grid = Grid::new(rows.div_ceil(8), 128);
            let add = i32::from(add);
            match part.linear.weight.kind {
                Kind::Quantised(arg) => self.kernels.launch(
                    "few_rows_quantized",
                    self.dtype,
                    grid,
                    args![arg, x.ptr(), count, rows as i32, k, low, bias, to, n, add],
                )?,
                Kind::Dense(_) => self.kernels.launch(
                    "few_rows_dense",
                    self.dtype,
                    grid,
                    args![part.linear.weight.ptr(), x.ptr(), count, rows as i32, k, low, bias, to, n, add],
                )?,
            }
        }
        Ok(())
    }
}
