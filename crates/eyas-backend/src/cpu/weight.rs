//! Frozen weights in host memory: dense or in 4-bit blocks.
//!
//! 4-bit weights stay as they are stored, their scales quantised as well where they came so (4.13 bits a weight at
//! blocks of 64); the products decode a panel's codes and scales right before they use them.

use std::ops::Range;

use eyas_quant::{Absmax, Element, Quantized, Quantizer};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::decode::{Codebook, widen_bf16};
use crate::spec::{Dtype, HostMatrix, Storage};
use crate::{Error, Result};

/// Elements converted at a time while a weight is loaded.
const PIECE: usize = 1 << 18;

/// Scales decoded at a time while a row is read.
const SCALES: usize = 64;

/// A frozen weight, `[out, in]`.
#[derive(Clone, Debug)]
pub struct CpuWeight {
    rows: usize,
    cols: usize,
    elements: Elements,
}

/// What a weight consists of.
#[derive(Clone, Debug)]
pub(super) enum Elements {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    FourBit(Box<FourBit>),
}

/// A weight in 4-bit blocks, with what its codes stand for.
#[derive(Clone, Debug)]
pub(super) struct FourBit {
    pub weight: Quantized,
    pub book: Codebook,
}

impl CpuWeight {
    pub(super) fn load(matrix: HostMatrix<'_>, storage: Storage) -> Result<Self> {
        matrix.check()?;
        match storage {
            Storage::Quantised(config) => {
                let (rows, cols) = (matrix.rows, matrix.cols);
                let weight = match matrix.dtype {
                    Dtype::F32 => push_pieces(Quantizer::<f32>::new(rows, cols, &config)?, matrix.bytes)?,
                    Dtype::Bf16 => push_pieces(Quantizer::<bf16>::new(rows, cols, &config)?, matrix.bytes)?,
                    Dtype::F16 => push_pieces(Quantizer::<f16>::new(rows, cols, &config)?, matrix.bytes)?,
                };
                Self::from_quantized(weight)
            }
            Storage::Dense(dtype) | Storage::OnHost(dtype) => {
                let elements = match dtype {
                    Dtype::F32 => Elements::F32(convert(matrix, |piece, out| out.extend_from_slice(piece))?),
                    Dtype::Bf16 => Elements::Bf16(convert(matrix, |piece, out| {
                        out.extend(piece.iter().map(|&value| bf16::from_f32(value)));
                    })?),
                    Dtype::F16 => Elements::F16(convert(matrix, |piece, out| {
                        out.extend(piece.iter().map(|&value| f16::from_f32(value)));
                    })?),
                };
                Ok(Self { rows: matrix.rows, cols: matrix.cols, elements })
            }
        }
    }

    pub(super) fn from_quantized(weight: Quantized) -> Result<Self> {
        let (rows, cols, book) = (weight.rows(), weight.cols(), Codebook::new(weight.levels()));
        Ok(Self { rows, cols, elements: Elements::FourBit(Box::new(FourBit { weight, book })) })
    }

    /// Rows: output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Resident bytes.
    pub fn bytes(&self) -> u64 {
        match &self.elements {
            Elements::F32(values) => size_of_val(values.as_slice()) as u64,
            Elements::Bf16(values) => size_of_val(values.as_slice()) as u64,
            Elements::F16(values) => size_of_val(values.as_slice()) as u64,
            Elements::FourBit(four_bit) => four_bit.weight.bytes() as u64,
        }
    }

    pub(super) fn elements(&self) -> &Elements {
        &self.elements
    }

    pub(super) fn read_rows(&self, rows: Range<usize>, values: &mut Vec<f32>) -> Result<()> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(Error::Shape {
                op: "download_weight",
                reason: format!("rows {} to {} asked of a weight of {}", rows.start, rows.end, self.rows),
            });
        }
        values.clear();
        values.resize(rows.len() * self.cols, 0.0);
        if self.cols > 0 {
            for (row, out) in rows.zip(values.chunks_exact_mut(self.cols)) {
                self.row_into(row, out);
            }
        }
        Ok(())
    }

    /// Reads one row.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not as long as a row.
    pub(super) fn row_into(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols);
        self.read(row, 0, out);
    }

    /// Reads `out.len()` elements of a row from column `col` on.
    ///
    /// # Panics
    /// When the row has not as many.
    pub(super) fn read(&self, row: usize, col: usize, out: &mut [f32]) {
        assert!(row < self.rows && col + out.len() <= self.cols, "past the end of a weight");
        let first = row * self.cols + col;
        match &self.elements {
            Elements::F32(values) => out.copy_from_slice(&values[first..first + out.len()]),
            Elements::Bf16(values) => widen_bf16(&values[first..first + out.len()], out),
            Elements::F16(values) => values[first..first + out.len()].convert_to_f32_slice(out),
            Elements::FourBit(four_bit) => {
                let FourBit { weight, book } = &**four_bit;
                // A power of two: short reads are many, and a division takes as long as a vector of them.
                let shift = weight.block_size().trailing_zeros();
                let mut scales = [0.0; SCALES];
                let (mut index, mut done) = (first, 0);
                while done < out.len() {
                    let block = index >> shift;
                    let len = (((block + SCALES) << shift) - index).min(out.len() - done);
                    let blocks = ((index + len - 1) >> shift) + 1 - block;
                    read_scales(weight.absmax(), block, &mut scales[..blocks]);
                    book.decode(weight.packed(), index, shift, &scales, &mut out[done..done + len]);
                    index += len;
                    done += len;
                }
            }
        }
    }
}

/// Decodes the scales from block `first` on.
pub(super) fn read_scales(absmax: &Absmax, first: usize, out: &mut [f32]) {
    match absmax {
        Absmax::Plain(scales) => out.copy_from_slice(&scales[first..first + out.len()]),
        Absmax::Nested { codes, nested_absmax, nested_block_size, offset, map } => {
            let mut done = 0;
            while done < out.len() {
                let block = first + done;
                let nested = block / nested_block_size;
                let len = ((nested + 1) * nested_block_size - block).min(out.len() - done);
                let scale = nested_absmax[nested];
                for (out, &code) in out[done..done + len].iter_mut().zip(&codes[block..block + len]) {
                    // Rounded twice, as bitsandbytes does: no fused multiply-add.
                    *out = map[usize::from(code)] * scale + offset;
                }
                done += len;
            }
        }
    }
}

/// Quantises little-endian elements piece by piece.
fn push_pieces<T: Element + bytemuck::Pod>(mut quantizer: Quantizer<T>, bytes: &[u8]) -> Result<Quantized> {
    if let Ok(values) = bytemuck::try_cast_slice(bytes) {
        quantizer.push(values)?;
    } else {
        // The bytes are not aligned: copy a piece at a time to where they are.
        let mut piece: Vec<T> = Vec::new();
        for bytes in bytes.chunks(PIECE * size_of::<T>()) {
            piece.resize(bytes.len() / size_of::<T>(), T::zeroed());
            bytemuck::cast_slice_mut(&mut piece).copy_from_slice(bytes);
            quantizer.push(&piece)?;
        }
    }
    Ok(quantizer.finish()?)
}

/// Converts a matrix to another type through pieces in `f32`.
fn convert<T>(matrix: HostMatrix<'_>, extend: impl Fn(&[f32], &mut Vec<T>)) -> Result<Vec<T>> {
    let size = matrix.dtype.size();
    let len = matrix.bytes.len() / size;
    let mut out = Vec::new();
    out.try_reserve_exact(len).map_err(|_| Error::OutOfMemory {
        device: "CPU".into(),
        requested: (len * size_of::<T>()) as u64,
        available: 0,
    })?;
    let mut piece = vec![0.0f32; PIECE.min(len)];
    for bytes in matrix.bytes.chunks(PIECE * size) {
        let piece = &mut piece[..bytes.len() / size];
        for (value, bytes) in piece.iter_mut().zip(bytes.chunks_exact(size)) {
            *value = match (matrix.dtype, bytes) {
                (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
                (Dtype::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
                (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
                _ => unreachable!("a chunk is one element"),
            };
        }
        extend(piece, &mut out);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use eyas_quant::QuantConfig;

    use super::*;

    /// Little-endian bytes that begin at an odd address.
    fn unaligned<T: bytemuck::Pod>(values: &[T]) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(bytemuck::cast_slice(values));
        bytes
    }

    fn read(weight: &CpuWeight) -> Vec<f32> {
        let mut values = Vec::new();
        weight.read_rows(0..weight.rows(), &mut values).unwrap();
        values
    }

    #[test]
    fn every_type_is_loaded_from_bytes_of_any_alignment() {
        let (rows, cols) = (3, 100);
        // Exact in every type.
        let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 37) % 255) as f32 / 128.0 - 1.0).collect();
        let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
        let brains: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
        let four_bit = Storage::Quantised(QuantConfig::default());
        let expected = {
            let host = HostMatrix::from_f32(rows, cols, &values).unwrap();
            read(&CpuWeight::load(host, four_bit).unwrap())
        };
        for (dtype, bytes) in [
            (Dtype::F32, unaligned(&values)),
            (Dtype::F16, unaligned(&halves)),
            (Dtype::Bf16, unaligned(&brains)),
        ] {
            let host = HostMatrix { rows, cols, dtype, bytes: &bytes[1..] };
            for storage in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let weight = CpuWeight::load(host, Storage::Dense(storage)).unwrap();
                assert_eq!(weight.bytes(), (rows * cols * storage.size()) as u64);
                assert_eq!(read(&weight), values, "{dtype:?} as {storage:?}");
            }
            assert_eq!(read(&CpuWeight::load(host, four_bit).unwrap()), expected, "{dtype:?} in 4 bits");
        }
    }

    #[test]
    fn four_bit_rows_are_those_that_the_format_defines() {
        for (cols, block_size, double_quant) in [(100, 32, true), (75, 64, false), (320, 4096, true)] {
            let config = QuantConfig { block_size, double_quant, ..QuantConfig::default() };
            let values: Vec<f32> = (0..40 * cols).map(|i| (i as f32 * 0.7).sin()).collect();
            let quantized = eyas_quant::quantize(&values, 40, cols, &config).unwrap();
            let mut expected = vec![0.0f32; values.len()];
            quantized.dequantize_into(&mut expected).unwrap();
            let bytes = quantized.bytes() as u64;
            let weight = CpuWeight::from_quantized(quantized).unwrap();
            assert_eq!(read(&weight), expected);
            assert_eq!(weight.bytes(), bytes);
            let mut part = vec![0.0; 9];
            weight.read(7, 33, &mut part);
            assert_eq!(part, expected[7 * cols + 33..][..9]);
        }
        let weight =
            CpuWeight::load(HostMatrix::from_f32(1, 2, &[1.0, 2.0]).unwrap(), Storage::Dense(Dtype::F32));
        assert!(weight.unwrap().read_rows(0..2, &mut Vec::new()).is_err());
    }
}
