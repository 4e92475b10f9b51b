//! 4-bit codes back to floats: a whole matrix, or any range of rows.

use std::ops::Range;

use rayon::prelude::*;

use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::quantized::Quantized;

/// Values a task reads; a multiple of the largest block size.
const TASK_VALUES: usize = 1 << 16;

/// Scales decoded at a time.
const SCALES: usize = 64;

impl Quantized {
    /// Reads the whole matrix, row by row, on all threads of the current rayon pool.
    ///
    /// A value is `level * scale` in `f32`, then rounded to `T`. In the matrix's own [`Quantized::dtype`] that is what
    /// bitsandbytes reads, bit for bit.
    ///
    /// # Errors
    /// [`Error::Shape`] where `out` is not rows x columns long.
    pub fn dequantize_into<T: Element>(&self, out: &mut [T]) -> Result<()> {
        self.dequantize_rows_into(0..self.rows(), out)
    }

    /// Reads the rows in `rows`; see [`Quantized::dequantize_into`]. Blocks may straddle rows.
    ///
    /// # Errors
    /// [`Error::Shape`] where the matrix has no such rows or `out` is not as long as they are.
    pub fn dequantize_rows_into<T: Element>(&self, rows: Range<usize>, out: &mut [T]) -> Result<()> {
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(Error::Shape(format!("rows {rows:?} of a matrix with {} rows", self.rows())));
        }
        let first = rows.start * self.cols();
        if out.len() != rows.len() * self.cols() {
            return Err(Error::Shape(format!(
                "{} rows of {} values need a buffer of {} values, not {}",
                rows.len(),
                self.cols(),
                rows.len() * self.cols(),
                out.len()
            )));
        }
        let kernel = Kernel::detect();
        // Tasks after the first start at a multiple of the task size, and so at a block.
        let (head, rest) = out.split_at_mut(out.len().min(first.next_multiple_of(TASK_VALUES) - first));
        self.read(kernel, first, head);
        let first = first + head.len();
        rest.par_chunks_mut(TASK_VALUES)
            .enumerate()
            .for_each(|(i, out)| self.read(kernel, first + i * TASK_VALUES, out));
        Ok(())
    }

    /// Reads the values from flat index `first` on.
    fn read<T: Element>(&self, kernel: Kernel, first: usize, out: &mut [T]) {
        if T::DTYPE == Dtype::F32 {
            return self.read_f32(kernel, first, bytemuck::cast_slice_mut(out));
        }
        let mut scratch = [0.0; 4096];
        for (i, out) in out.chunks_mut(scratch.len()).enumerate() {
            let scratch = &mut scratch[..out.len()];
            self.read_f32(kernel, first + i * 4096, scratch);
            T::narrow(scratch, out);
        }
    }

    fn read_f32(&self, kernel: Kernel, first: usize, out: &mut [f32]) {
        let block_size = self.block_size();
        let (mut index, mut out) = (first, out);
        let mut scales = [0.0; SCALES];
        while !out.is_empty() {
            let block = index / block_size;
            let blocks = (index + out.len()).div_ceil(block_size) - block;
            let scales = &mut scales[..blocks.min(SCALES)];
            self.absmax().scales_into(block, scales);
            for scale in scales {
                let len = out.len().min(block_size - index % block_size);
                let (piece, rest) = out.split_at_mut(len);
                self.read_piece(kernel, index, *scale, piece);
                index += len;
                out = rest;
            }
        }
    }

    /// Reads values of one block.
    fn read_piece(&self, kernel: Kernel, first: usize, scale: f32, out: &mut [f32]) {
        let levels = self.levels().map(|level| level * scale);
        let packed = &self.packed()[first / 2..];
        if first.is_multiple_of(2) {
            kernel.decode(packed, &levels, out);
        } else if let [low, rest @ ..] = out {
            *low = levels[usize::from(packed[0] & 15)];
            kernel.decode(&packed[1..], &levels, rest);
        }
    }
}
