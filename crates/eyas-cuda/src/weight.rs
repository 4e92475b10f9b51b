//! Frozen weights on the card: dense, or 4-bit codes with their scales as bitsandbytes stores them.

use std::ops::Range;

use eyas_backend::{Dtype, Error, HostMatrix, Result, Storage};
use eyas_quant::{Absmax, NESTED_BLOCK_SIZE, QuantConfig, QuantType, Quantized, dynamic_map};
use half::{bf16, f16};

use crate::backend::CudaBackend;
use crate::device::{Buffer, Pinned, Ptr, rounded};
use crate::kernels::{Grid, KernelArg, args};
use crate::reserve::stored_dtype;
use crate::scratch::Slot;
use crate::staging::{CHUNK, in_threads};

/// Numbers beside the codes: 16 levels, the offset, 256 levels of the map.
const TABLES: usize = 16 + 1 + 256;

/// A frozen weight, `[out, in]`.
#[derive(Debug)]
pub struct CudaWeight {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) kind: Kind,
    memory: Memory,
}

/// Where a weight lies.
#[derive(Debug)]
enum Memory {
    Card(Buffer),
    Host(Pinned),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Dense(Dtype),
    Quantised(QuantizedArg),
}

/// `Quantized` of prelude.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct QuantizedArg {
    packed: Ptr,
    codes: Ptr,
    absmax: Ptr,
    tables: Ptr,
    pub(crate) block_shift: i32,
    nested: i32,
    pub(crate) nested_block_size: i32,
}
// SAFETY: the layout is that of `Quantized` in prelude.cuh.
unsafe impl KernelArg for QuantizedArg {}

/// `Decision` of quantize.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct Decision {
    thresholds: [f32; 15],
    codes: [u8; 16],
}
// SAFETY: the layout is that of `Decision` in quantize.cu.
unsafe impl KernelArg for Decision {}

impl Decision {
    /// Codes by ascending level and the midpoints between them. Of FP4's two zeros the positive one comes first, which
    /// is the order of their codes.
    fn new(quant_type: QuantType) -> Self {
        let levels = quant_type.levels();
        let mut codes: [u8; 16] = std::array::from_fn(|i| i as u8);
        codes.sort_by(|a, b| {
            levels[usize::from(*a)].partial_cmp(&levels[usize::from(*b)]).unwrap_or(std::cmp::Ordering::Equal)
        });
        let level = |i: usize| levels[usize::from(codes[i])];
        Self { thresholds: std::array::from_fn(|i| (level(i) + level(i + 1)) / 2.0), codes }
    }
}

/// How the kernels number element types.
pub(crate) fn type_number(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::Bf16 => 1,
        Dtype::F16 => 2,
    }
}

/// Where the parts of a quantised weight start in its one buffer.
struct Layout {
    codes: usize,
    absmax: usize,
    tables: usize,
    bytes: usize,
    blocks: usize,
    nested: usize,
}

impl Layout {
    fn new(len: usize, block_size: usize, nested_block_size: Option<usize>) -> Self {
        let align = |n: usize| n.next_multiple_of(256);
        let blocks = len.div_ceil(block_size);
        let nested = nested_block_size.map_or(blocks, |size| blocks.div_ceil(size));
        let codes = align(len.div_ceil(2));
        let absmax = codes + if nested_block_size.is_some() { align(blocks) } else { 0 };
        let tables = absmax + align(nested * 4);
        Self { codes, absmax, tables, bytes: tables + TABLES * 4, blocks, nested }
    }
}

impl CudaWeight {
    /// Rows: output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of a weight that is to be quantised.
    pub(crate) fn quantised_bytes(rows: usize, cols: usize, config: QuantConfig) -> u64 {
        let nested = config.double_quant.then_some(NESTED_BLOCK_SIZE);
        rounded(Layout::new(rows.saturating_mul(cols), config.block_size.max(1), nested).bytes as u64)
    }

    /// Bytes of the card's memory, as allocated.
    pub fn bytes(&self) -> u64 {
        match &self.memory {
            Memory::Card(buffer) => buffer.bytes() as u64,
            Memory::Host(_) => 0,
        }
    }

    pub(crate) fn ptr(&self) -> Ptr {
        match &self.memory {
            Memory::Card(buffer) => buffer.ptr(),
            Memory::Host(pinned) => pinned.ptr(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether the weight is dense in this type, so that products read it where it lies.
    pub(crate) fn is_dense(&self, dtype: Dtype) -> bool {
        matches!(self.kind, Kind::Dense(have) if have == dtype)
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn quantized_arg(buffer: &Buffer, layout: &Layout, block_size: usize, nested: Option<usize>) -> QuantizedArg {
    QuantizedArg {
        packed: buffer.ptr(),
        codes: buffer.ptr().add(layout.codes),
        absmax: buffer.ptr().add(layout.absmax),
        tables: buffer.ptr().add(layout.tables),
        block_shift: block_size.trailing_zeros() as i32,
        nested: i32::from(nested.is_some()),
        nested_block_size: nested.unwrap_or(1) as i32,
    }
}

impl CudaBackend {
    pub(crate) fn load(&self, matrix: HostMatrix<'_>, storage: Storage) -> Result<CudaWeight> {
        matrix.check()?;
        match storage {
            Storage::Dense(dtype) => self.load_dense(matrix, dtype),
            Storage::OnHost(dtype) => self.load_on_host(matrix, dtype),
            Storage::Quantised(config) => self.quantise(matrix, config),
        }
    }

    fn load_dense(&self, matrix: HostMatrix<'_>, dtype: Dtype) -> Result<CudaWeight> {
        let dtype = stored_dtype(self.dtype, dtype);
        let HostMatrix { rows, cols, .. } = matrix;
        let len = rows * cols;
        let buffer = self.device.alloc(len.saturating_mul(dtype.size()))?;
        if matrix.dtype == dtype {
            self.staging.upload(buffer.ptr(), matrix.bytes)?;
        } else {
            let mut scratch = self.scratch.lock();
            let load = scratch.get(Slot::Load, CHUNK)?;
            let per_chunk = CHUNK / matrix.dtype.size();
            for (i, piece) in matrix.bytes.chunks(CHUNK).enumerate() {
                self.staging.upload(load, piece)?;
                let count = piece.len() / matrix.dtype.size();
                let to = buffer.ptr().add(i * per_chunk * dtype.size());
                let (from, into) = (type_number(matrix.dtype), type_number(dtype));
                self.kernels.launch(
                    "convert",
                    Dtype::F32,
                    Grid::over(count),
                    args![load, from, to, into, count as u64],
                )?;
            }
        }
        Ok(CudaWeight { rows, cols, kind: Kind::Dense(dtype), memory: Memory::Card(buffer) })
    }

    fn load_on_host(&self, matrix: HostMatrix<'_>, dtype: Dtype) -> Result<CudaWeight> {
        let dtype = stored_dtype(self.dtype, dtype);
        let HostMatrix { rows, cols, bytes, dtype: given } = matrix;
        let (size, step) = (dtype.size(), given.size());
        let mut pinned = Pinned::new(&self.device, (rows * cols).saturating_mul(size))?;
        in_threads(&mut pinned.bytes_mut()[..rows * cols * size], |offset, to| {
            let from = &bytes[offset / size * step..][..to.len() / size * step];
            if given == dtype {
                to.copy_from_slice(from);
                return;
            }
            for (to, from) in to.chunks_exact_mut(size).zip(from.chunks_exact(step)) {
                let value = match given {
                    Dtype::F32 => f32::from_le_bytes([from[0], from[1], from[2], from[3]]),
                    Dtype::Bf16 => bf16::from_le_bytes([from[0], from[1]]).to_f32(),
                    Dtype::F16 => f16::from_le_bytes([from[0], from[1]]).to_f32(),
                };
                match dtype {
                    Dtype::F32 => to.copy_from_slice(&value.to_le_bytes()),
                    Dtype::Bf16 => to.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                    Dtype::F16 => to.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                }
            }
        });
        Ok(CudaWeight { rows, cols, kind: Kind::Dense(dtype), memory: Memory::Host(pinned) })
    }

    fn quantise(&self, matrix: HostMatrix<'_>, config: QuantConfig) -> Result<CudaWeight> {
        config.validate()?;
        let HostMatrix { rows, cols, dtype, bytes } = matrix;
        let len = rows * cols;
        let nested = config.double_quant.then_some(NESTED_BLOCK_SIZE);
        let layout = Layout::new(len, config.block_size, nested);
        let buffer = self.device.alloc(layout.bytes)?;
        let weight = quantized_arg(&buffer, &layout, config.block_size, nested);
        let mut tables = config.quant_type.levels().to_vec();
        tables.push(0.0);
        tables.extend_from_slice(dynamic_map(true));
        self.staging.upload(weight.tables, &bytes_of(&tables))?;

        let mut scratch = self.scratch.lock();
        let load = scratch.get(Slot::Load, CHUNK + 8)?;
        let bad_index = load.add(CHUNK);
        let scales =
            if nested.is_some() { scratch.get(Slot::Scales, layout.blocks * 4)? } else { weight.absmax };
        self.staging.upload(bad_index, &u64::MAX.to_le_bytes())?;
        let decision = Decision::new(config.quant_type);
        let per_chunk = CHUNK / dtype.size();
        for (i, piece) in bytes.chunks(CHUNK).enumerate() {
            self.staging.upload(load, piece)?;
            let count = piece.len() / dtype.size();
            let warps = count.div_ceil(config.block_size);
            let (kind, first) = (type_number(dtype), (i * per_chunk) as u64);
            self.kernels.launch(
                "quantize_blocks",
                Dtype::F32,
                Grid::new(warps.div_ceil(8), 256),
                args![
                    load,
                    kind,
                    first,
                    count as u64,
                    len as u64,
                    config.block_size as i32,
                    decision,
                    weight.packed,
                    scales,
                    bad_index
                ],
            )?;
        }
        if nested.is_some() {
            let blocks = layout.blocks as u64;
            self.kernels.launch(
                "mean_absmax",
                Dtype::F32,
                Grid::new(1, 1024),
                args![scales, blocks, weight.tables],
            )?;
            self.kernels.launch(
                "quantize_absmax",
                Dtype::F32,
                Grid::new(layout.nested, 256),
                args![scales, blocks, weight.tables, weight.codes, weight.absmax],
            )?;
        }
        let mut bad = [0; 8];
        self.staging.download_with(bad_index, 8, |_, piece| bad.copy_from_slice(piece))?;
        let bad = u64::from_le_bytes(bad) as usize;
        if bad < len {
            let size = dtype.size();
            let element = &bytes[bad * size..][..size];
            let value = match (dtype, element) {
                (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
                (Dtype::Bf16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
                (Dtype::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
                _ => f32::NAN,
            };
            return Err(Error::Quant(eyas_quant::Error::NonFinite {
                row: bad / cols,
                col: bad % cols,
                value,
            }));
        }
        Ok(CudaWeight { rows, cols, kind: Kind::Quantised(weight), memory: Memory::Card(buffer) })
    }

    pub(crate) fn place_quantized(&self, weight: &Quantized) -> Result<CudaWeight> {
        let (nested, offset, map) = match weight.absmax() {
            Absmax::Plain(_) => (None, 0.0, dynamic_map(true)),
            Absmax::Nested { nested_block_size, offset, map, .. } => {
                (Some(*nested_block_size), *offset, &**map)
            }
        };
        let layout = Layout::new(weight.len(), weight.block_size(), nested);
        let buffer = self.device.alloc(layout.bytes)?;
        let arg = quantized_arg(&buffer, &layout, weight.block_size(), nested);
        let mut tables = weight.levels().to_vec();
        tables.push(offset);
        tables.extend_from_slice(map);
        self.staging.upload(arg.packed, weight.packed())?;
        self.staging.upload(arg.tables, &bytes_of(&tables))?;
        match weight.absmax() {
            Absmax::Plain(absmax) => self.staging.upload(arg.absmax, &bytes_of(absmax))?,
            Absmax::Nested { codes, nested_absmax, .. } => {
                self.staging.upload(arg.codes, codes)?;
                self.staging.upload(arg.absmax, &bytes_of(nested_absmax))?;
            }
        }
        Ok(CudaWeight {
            rows: weight.rows(),
            cols: weight.cols(),
            kind: Kind::Quantised(arg),
            memory: Memory::Card(buffer),
        })
    }

    /// Reads a quantised weight's own parts back: codes and scales as stored. For tests and for saving.
    pub fn download_quantized(
        &self,
        weight: &CudaWeight,
        config: &QuantConfig,
        dtype: eyas_quant::Dtype,
    ) -> Result<Option<Quantized>> {
        let Kind::Quantised(arg) = weight.kind else { return Ok(None) };
        let nested = (arg.nested != 0).then_some(arg.nested_block_size as usize);
        let layout = Layout::new(weight.len(), config.block_size, nested);
        let read = |from: Ptr, len: usize| -> Result<Vec<u8>> {
            let mut bytes = vec![0; len];
            self.staging.download_with(from, len, |start, piece| {
                bytes[start..start + piece.len()].copy_from_slice(piece)
            })?;
            Ok(bytes)
        };
        let floats = |from: Ptr, len: usize| -> Result<Vec<f32>> {
            let mut values = vec![0.0; len];
            self.download_values(from, Dtype::F32, &mut values)?;
            Ok(values)
        };
        let packed = read(arg.packed, weight.len().div_ceil(2))?;
        let absmax = match nested {
            None => Absmax::Plain(floats(arg.absmax, layout.blocks)?),
            Some(nested_block_size) => {
                let tables = floats(arg.tables, TABLES)?;
                let mut map = Box::new([0.0; 256]);
                map.copy_from_slice(&tables[17..]);
                Absmax::Nested {
                    codes: read(arg.codes, layout.blocks)?,
                    nested_absmax: floats(arg.absmax, layout.nested)?,
                    nested_block_size,
                    offset: tables[16],
                    map,
                }
            }
        };
        let (rows, cols) = (weight.rows, weight.cols);
        Ok(Some(Quantized::from_parts(
            rows,
            cols,
            config.quant_type,
            config.block_size,
            dtype,
            packed,
            absmax,
        )?))
    }

    pub(crate) fn read_weight(
        &self,
        weight: &CudaWeight,
        rows: Range<usize>,
        values: &mut Vec<f32>,
    ) -> Result<()> {
        if rows.start > rows.end || rows.end > weight.rows {
            return Err(Error::Shape {
                op: "download_weight",
                reason: format!("rows {rows:?} of a weight with {} rows", weight.rows),
            });
        }
        let (first, len) = (rows.start * weight.cols, rows.len() * weight.cols);
        values.clear();
        values.resize(len, 0.0);
        let mut scratch = self.scratch.lock();
        let piece_len = CHUNK / 4;
        let load = scratch.get(Slot::Load, CHUNK)?;
        for (i, piece) in values.chunks_mut(piece_len).enumerate() {
            let (first, n) = ((first + i * piece_len) as u64, piece.len() as u64);
            let grid = Grid::over(piece.len());
            match weight.kind {
                Kind::Dense(dtype) => {
                    let kind = type_number(dtype);
                    self.kernels.launch(
                        "read_dense",
                        self.dtype,
                        grid,
                        args![weight.ptr(), kind, first, n, load],
                    )?;
                }
                Kind::Quantised(arg) => {
                    self.kernels.launch("read_quantized", self.dtype, grid, args![arg, first, n, load])?;
                }
            }
            self.download_values(load, Dtype::F32, piece)?;
        }
        Ok(())
    }

    /// Writes a weight, in the activations' type, to rows of `ld` elements at `to`.
    pub(crate) fn materialise(&self, weight: &CudaWeight, to: Ptr, ld: usize) -> Result<()> {
        let (len, cols) = (weight.len(), weight.cols as u32);
        match weight.kind {
            Kind::Quantised(arg) => {
                let vector =
                    weight.cols.is_multiple_of(8) && ld.is_multiple_of(8) && len / 8 < u32::MAX as usize;
                if vector {
                    let grid = Grid::new((len / 8).div_ceil(1024), 256);
                    let chunks = (len / 8) as u32;
                    return self.kernels.launch(
                        "dequantize",
                        self.dtype,
                        grid,
                        args![arg, chunks, cols / 8, to, ld as u64],
                    );
                }
                self.kernels.launch(
                    "dequantize_any",
                    self.dtype,
                    Grid::over(len),
                    args![arg, len as u64, cols, to, ld as u64],
                )
            }
            Kind::Dense(dtype) => self.kernels.launch(
                "dense_to_wide",
                self.dtype,
                Grid::over(len),
                args![weight.ptr(), type_number(dtype), len as u64, cols, to, ld as u64],
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_ascend_and_name_every_code() {
        for quant_type in [QuantType::Nf4, QuantType::Fp4] {
            let decision = Decision::new(quant_type);
            assert!(decision.thresholds.is_sorted());
            let mut codes = decision.codes;
            codes.sort_unstable();
            assert_eq!(codes, std::array::from_fn(|i| i as u8));
        }
        assert_eq!(
            Decision::new(QuantType::Fp4).codes,
            [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3]
        );
    }

    #[test]
    fn parts_of_a_weight_do_not_overlap() {
        let layout = Layout::new(71 * 64 * 100, 64, Some(256));
        assert!(layout.codes >= 71 * 64 * 50);
        assert!(layout.absmax >= layout.codes + 7100);
        assert!(layout.tables >= layout.absmax + 28 * 4);
        assert_eq!((layout.blocks, layout.nested), (7100, 28));
    }
}
