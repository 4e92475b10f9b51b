//! Embedding, sums, copies, gathers and scatters of rows. See `kernels/elementwise.cu`.

use std::ops::Range;

use eyas_backend::spec::check_copy_rows;
use eyas_backend::{DeviceTensor, Result};

use crate::backend::CudaBackend;
use crate::device::Ptr;
use crate::kernels::{Grid, args};
use crate::tensor::{check, is_vector};
use crate::weight::{Kind, type_number};
use crate::{CudaBatch, CudaTensor, CudaWeight};

/// A block a row of `n`, eight columns a thread.
fn row_grid(rows: usize, n: usize) -> Grid {
    Grid::new(rows, n.div_ceil(8).next_multiple_of(32).clamp(32, 256) as u32)
}

impl CudaBackend {
    pub(crate) fn run_embed(&self, batch: &CudaBatch, table: &CudaWeight, x: &mut CudaTensor) -> Result<()> {
        let (op, n, tokens) = ("embed", table.cols, batch.tokens());
        check(op, "x", x, tokens, n, self.dtype)?;
        batch.check_ids(op, table.rows)?;
        match table.kind {
            Kind::Dense(dtype) => {
                let vector = i32::from(is_vector(table.ptr(), n));
                self.kernels.launch(
                    "embed_dense",
                    self.dtype,
                    row_grid(tokens, n),
                    args![batch.ids(), table.ptr(), type_number(dtype), x.ptr(), n as i32, vector],
                )
            }
            Kind::Quantised(arg) => self.kernels.launch(
                "embed_quantized",
                self.dtype,
                Grid::new(tokens, 256),
                args![batch.ids(), arg, x.ptr(), n as i32],
            ),
        }
    }

    pub(crate) fn run_add(&self, tokens: usize, x: &CudaTensor, y: &mut CudaTensor) -> Result<()> {
        self.rows_op("add", "add_rows", tokens, x, y)
    }

    pub(crate) fn run_copy(&self, tokens: usize, x: &CudaTensor, y: &mut CudaTensor) -> Result<()> {
        self.rows_op("copy", "copy_rows", tokens, x, y)
    }

    pub(crate) fn run_copy_rows(&self, tensor: &mut CudaTensor, from: Range<usize>, to: usize) -> Result<()> {
        let cols = check_copy_rows(tensor, &from, to)?;
        if from.is_empty() {
            return Ok(());
        }
        let bytes = from.len() * cols * tensor.dtype().size();
        // SAFETY: both ranges are of one live buffer, and were checked not to overlap.
        unsafe { self.device.copy_on(tensor.at(to * cols), tensor.at(from.start * cols), bytes) }
    }

    /// Checks so many rows of `x` and of `y`, which are equally wide, and returns the width.
    fn width_of(
        &self,
        op: &'static str,
        x: &CudaTensor,
        from: usize,
        y: &CudaTensor,
        to: usize,
    ) -> Result<usize> {
        check(op, "x", x, from, x.cols(), self.dtype)?;
        check(op, "y", y, to, x.cols(), self.dtype)?;
        Ok(x.cols())
    }

    fn rows_op(
        &self,
        op: &'static str,
        kernel: &'static str,
        tokens: usize,
        x: &CudaTensor,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let len = tokens * self.width_of(op, x, tokens, y, tokens)?;
        let grid = Grid::over(len.div_ceil(8));
        self.kernels.launch(kernel, self.dtype, grid, args![x.ptr(), y.ptr(), len as u64, 1i32])
    }

    pub(crate) fn run_gather_targets(
        &self,
        batch: &CudaBatch,
        targets: Range<usize>,
        x: &CudaTensor,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let (op, count) = ("gather_targets", targets.len());
        let n = self.width_of(op, x, batch.tokens(), y, count)?;
        batch.check_range(op, &targets)?;
        self.gather(count, n, batch.rows_with_target(targets.start), x, y, 0)
    }

    pub(crate) fn run_gather_last(
        &self,
        batch: &CudaBatch,
        x: &CudaTensor,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let count = batch.sequences();
        let n = self.width_of("gather_last", x, batch.tokens(), y, count)?;
        self.gather(count, n, batch.starts(), x, y, 1)
    }

    fn gather(
        &self,
        count: usize,
        n: usize,
        rows: Ptr,
        x: &CudaTensor,
        y: &mut CudaTensor,
        last: i32,
    ) -> Result<()> {
        let vector = i32::from(is_vector(x.ptr(), n));
        self.kernels.launch(
            "gather_rows",
            self.dtype,
            row_grid(count, n),
            args![x.ptr(), rows, y.ptr(), n as i32, last, vector],
        )
    }

    pub(crate) fn run_scatter_targets(
        &self,
        batch: &CudaBatch,
        targets: Range<usize>,
        x: &CudaTensor,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let (op, count) = ("scatter_targets", targets.len());
        let n = self.width_of(op, x, count, y, batch.tokens())?;
        batch.check_range(op, &targets)?;
        let (rows, vector) = (batch.rows_with_target(targets.start), i32::from(is_vector(x.ptr(), n)));
        self.kernels.launch(
            "scatter_rows",
            self.dtype,
            row_grid(count, n),
            args![x.ptr(), rows, y.ptr(), n as i32, vector],
        )
    }
}
