//! Cross-entropy. See `kernels/loss.cu`.

use std::ops::Range;

use eyas_backend::{Dtype, Result};

use crate::backend::CudaBackend;
use crate::kernels::{Grid, args};
use crate::scratch::Slot;
use crate::tensor::{check, is_vector};
use crate::{CudaBatch, CudaTensor};

impl CudaBackend {
    pub(crate) fn run_cross_entropy(
        &self,
        batch: &CudaBatch,
        targets: Range<usize>,
        logits: &mut CudaTensor,
        loss: &mut CudaTensor,
        gradient: Option<f32>,
    ) -> Result<()> {
        let (op, vocab, rows) = ("cross_entropy", logits.cols(), targets.len());
        check(op, "logits", logits, rows, vocab, self.dtype)?;
        check(op, "loss", loss, 1, 1, Dtype::F32)?;
        batch.check_range(op, &targets)?;
        if rows == 0 {
            return Ok(());
        }
        batch.check_targets(op, vocab)?;
        let mut scratch = self.scratch.lock();
        let losses = scratch.get(Slot::Rows, rows * 4)?;
        self.kernels.launch(
            op,
            self.dtype,
            Grid::new(rows, 1024),
            args![
                logits.ptr(),
                batch.rows_with_target(targets.start),
                batch.target_ids(),
                losses,
                vocab as i32,
                gradient.unwrap_or(0.0),
                i32::from(gradient.is_some()),
                i32::from(is_vector(logits.ptr(), vocab))
            ],
        )?;
        self.kernels.launch(
            "sum_losses",
            self.dtype,
            Grid::new(1, 1024),
            args![losses, rows as i32, loss.ptr()],
        )
    }
}
