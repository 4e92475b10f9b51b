//! Floats to 4-bit codes: a whole matrix at once, or piece by piece as it is read.

use rayon::prelude::*;

use crate::blockwise::{dynamic_map, quantize_blockwise_8bit};
use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::kernel::{Kernel, MIN_ABSMAX, absmax, encode_pairs};
use crate::quant_type::QuantConfig;
use crate::quantized::{Absmax, NESTED_BLOCK_SIZE, Quantized, element_count};

/// Values a task quantises: large enough to hide the cost of a task, small enough to share a matrix evenly.
const TASK_VALUES: usize = 1 << 16;

/// Values widened at a time; at least the largest block size.
const WIDEN_VALUES: usize = 4096;

/// Quantises a row-major matrix of `rows` x `cols` values on all threads of the current rayon pool.
///
/// The nibbles and scales are those that bitsandbytes 0.50 writes on a CPU. With double quantisation the nested codes
/// are the nearest ones, as its CUDA path chooses them; its CPU path rounds to one of 65536 steps first.
///
/// # Errors
/// [`Error::Config`] for a wrong block size, [`Error::Shape`] where `values` is not `rows * cols` long,
/// [`Error::NonFinite`] where a value is NaN or infinite.
pub fn quantize<T: Element>(
    values: &[T],
    rows: usize,
    cols: usize,
    config: &QuantConfig,
) -> Result<Quantized> {
    let mut quantizer = Quantizer::new(rows, cols, config)?;
    quantizer.push(values)?;
    quantizer.finish()
}

/// Quantises a row-major matrix that arrives in pieces of any length, so that it is never whole in memory.
///
/// Each piece is quantised on all threads of the current rayon pool. The result does not depend on how the matrix is
/// cut.
///
/// ```
/// use eyas_quant::{QuantConfig, Quantizer, quantize};
///
/// let weight: Vec<f32> = (0..30 * 50).map(|i| (i as f32).cos()).collect();
/// let config = QuantConfig::default();
/// let mut quantizer = Quantizer::new(30, 50, &config)?;
/// for row in weight.chunks(50) {
///     quantizer.push(row)?;
/// }
/// assert_eq!(quantizer.finish()?, quantize(&weight, 30, 50, &config)?);
/// # Ok::<(), eyas_quant::Error>(())
/// ```
#[derive(Debug)]
pub struct Quantizer<T> {
    rows: usize,
    cols: usize,
    config: QuantConfig,
    packed: Vec<u8>,
    absmax: Vec<f32>,
    /// Values that do not fill a block yet.
    pending: Vec<T>,
    kernel: Kernel,
}

impl<T: Element> Quantizer<T> {
    /// Starts a matrix of `rows` x `cols` values.
    ///
    /// # Errors
    /// [`Error::Config`] for a wrong block size, [`Error::Shape`] where the result does not fit into memory.
    pub fn new(rows: usize, cols: usize, config: &QuantConfig) -> Result<Self> {
        config.validate()?;
        let len = element_count(rows, cols)?;
        let (mut packed, mut absmax) = (Vec::new(), Vec::new());
        packed
            .try_reserve_exact(len.div_ceil(2))
            .and_then(|()| absmax.try_reserve_exact(len.div_ceil(config.block_size)))
            .map_err(|_| Error::Shape(format!("{rows} x {cols} values do not fit into memory in 4 bits")))?;
        Ok(Self {
            rows,
            cols,
            config: *config,
            packed,
            absmax,
            pending: Vec::new(),
            kernel: Kernel::detect(),
        })
    }

    /// Values taken so far.
    fn taken(&self) -> usize {
        self.absmax.len() * self.config.block_size + self.pending.len()
    }

    /// Takes the next values of the matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] where there are more than the shape holds, [`Error::NonFinite`] where a value is NaN or
    /// infinite. The quantiser cannot be used after an error.
    pub fn push(&mut self, mut values: &[T]) -> Result<()> {
        let len = self.rows * self.cols;
        if values.len() > len - self.taken() {
            return Err(Error::Shape(format!(
                "{} x {} values are {len}, not {} or more",
                self.rows,
                self.cols,
                self.taken() + values.len()
            )));
        }
        let block_size = self.config.block_size;
        if !self.pending.is_empty() {
            let (head, rest) = values.split_at(values.len().min(block_size - self.pending.len()));
            self.pending.extend_from_slice(head);
            values = rest;
            if self.pending.len() < block_size {
                return Ok(());
            }
            let mut block = std::mem::take(&mut self.pending);
            self.push_blocks(&block)?;
            block.clear();
            self.pending = block;
        }
        let whole = values.len() - values.len() % block_size;
        self.push_blocks(&values[..whole])?;
        self.pending.extend_from_slice(&values[whole..]);
        Ok(())
    }

    /// Takes whole blocks; none is pending.
    fn push_blocks(&mut self, values: &[T]) -> Result<()> {
        let block_size = self.config.block_size;
        let done = self.absmax.len();
        self.absmax.resize(done + values.len() / block_size, 0.0);
        self.packed.resize(self.absmax.len() * block_size / 2, 0);
        let (kernel, decision) = (self.kernel, self.config.quant_type.decision());
        let finite = values
            .par_chunks(TASK_VALUES)
            .zip(self.packed[done * block_size / 2..].par_chunks_mut(TASK_VALUES / 2))
            .zip(self.absmax[done..].par_chunks_mut(TASK_VALUES / block_size))
            .map(|((values, packed), absmax)| {
                if T::DTYPE == Dtype::F32 {
                    let values = bytemuck::cast_slice(values);
                    return kernel.encode_blocks(values, block_size, decision, packed, absmax);
                }
                let mut scratch = [0.0; WIDEN_VALUES];
                values
                    .chunks(WIDEN_VALUES)
                    .zip(packed.chunks_mut(WIDEN_VALUES / 2))
                    .zip(absmax.chunks_mut(WIDEN_VALUES / block_size))
                    .all(|((values, packed), absmax)| {
                        let scratch = &mut scratch[..values.len()];
                        T::widen(values, scratch);
                        kernel.encode_blocks(scratch, block_size, decision, packed, absmax)
                    })
            })
            .all(|finite| finite);
        if finite { Ok(()) } else { Err(self.non_finite(done * block_size, values)) }
    }

    /// Says where the first value is that is not finite, in `values` that start at flat index `first`.
    fn non_finite(&self, first: usize, values: &[T]) -> Error {
        let mut value = [0.0];
        let index = values
            .iter()
            .position(|narrow| {
                T::widen(std::slice::from_ref(narrow), &mut value);
                !value[0].is_finite()
            })
            .map_or(first, |i| first + i);
        Error::NonFinite { row: index / self.cols, col: index % self.cols, value: value[0] }
    }

    /// Ends the matrix: quantises a short last block and, with double quantisation, the scales.
    ///
    /// # Errors
    /// [`Error::Shape`] where values are missing, [`Error::NonFinite`] where one is NaN or infinite.
    pub fn finish(mut self) -> Result<Quantized> {
        let len = self.rows * self.cols;
        if self.taken() != len {
            return Err(Error::Shape(format!(
                "{} x {} values are {len}, not {}",
                self.rows,
                self.cols,
                self.taken()
            )));
        }
        if !self.pending.is_empty() {
            self.push_tail()?;
        }
        let absmax =
            if self.config.double_quant { quantize_scales(self.absmax)? } else { Absmax::Plain(self.absmax) };
        let QuantConfig { quant_type, block_size, .. } = self.config;
        Quantized::from_parts(self.rows, self.cols, quant_type, block_size, T::DTYPE, self.packed, absmax)
    }

    /// Quantises the short last block. bitsandbytes treats it apart: its scale is at least 1e-38, and it divides by the
    /// scale instead of multiplying by the reciprocal.
    fn push_tail(&mut self) -> Result<()> {
        let mut tail = vec![0.0; self.pending.len()];
        T::widen(&self.pending, &mut tail);
        let scale = absmax(&tail);
        if !scale.is_finite() {
            return Err(self.non_finite(self.absmax.len() * self.config.block_size, &self.pending));
        }
        let scale = scale.max(MIN_ABSMAX);
        let done = self.packed.len();
        self.packed.resize(done + tail.len().div_ceil(2), 0);
        encode_pairs(
            tail.iter().map(|v| v / scale),
            self.config.quant_type.decision(),
            &mut self.packed[done..],
        );
        self.absmax.push(scale);
        Ok(())
    }
}

/// Double quantisation: the scales less their mean, in 8 bits.
fn quantize_scales(mut scales: Vec<f32>) -> Result<Absmax> {
    // The sum is exact enough in f64 that the mean is the correctly rounded one, whatever the order.
    let sum: f64 = scales.iter().map(|scale| f64::from(*scale)).sum();
    let offset = if scales.is_empty() { 0.0 } else { (sum / scales.len() as f64) as f32 };
    for scale in &mut scales {
        *scale -= offset;
    }
    let map = dynamic_map(true);
    let mut codes = vec![0; scales.len()];
    let mut nested_absmax = vec![0.0; scales.len().div_ceil(NESTED_BLOCK_SIZE)];
    quantize_blockwise_8bit(&scales, map, NESTED_BLOCK_SIZE, &mut codes, &mut nested_absmax)?;
    Ok(Absmax::Nested {
        codes,
        nested_absmax,
        nested_block_size: NESTED_BLOCK_SIZE,
        offset,
        map: Box::new(*map),
    })
}
