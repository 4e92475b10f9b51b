//! Dense matrices on the card.

use eyas_backend::{DeviceTensor, Dtype, Error, Result};

use crate::backend::CudaBackend;
use crate::device::{Buffer, Ptr};
use crate::staging::{in_threads, out_of_threads};

/// A dense row-major matrix in device memory.
#[derive(Debug)]
pub struct CudaTensor {
    buffer: Buffer,
    rows: usize,
    cols: usize,
    dtype: Dtype,
}

impl DeviceTensor for CudaTensor {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }
}

impl CudaTensor {
    pub(crate) fn ptr(&self) -> Ptr {
        self.buffer.ptr()
    }

    /// The address of element `index`.
    pub(crate) fn at(&self, index: usize) -> Ptr {
        self.buffer.ptr().add(index * self.dtype.size())
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Bytes as allocated.
    pub fn bytes(&self) -> usize {
        self.buffer.bytes()
    }
}

/// Whether rows of `cols` elements from `ptr` on can be read sixteen bytes at a time.
pub(crate) fn is_vector(ptr: Ptr, cols: usize) -> bool {
    ptr.is_aligned() && cols.is_multiple_of(8)
}

/// Checks a tensor's shape and that it has the type expected of it.
pub(crate) fn check(
    op: &'static str,
    name: &str,
    tensor: &CudaTensor,
    rows: usize,
    cols: usize,
    dtype: Dtype,
) -> Result<()> {
    eyas_backend::spec::check_shape(op, name, tensor, rows, cols)?;
    if tensor.dtype == dtype {
        return Ok(());
    }
    Err(Error::Shape { op, reason: format!("{name} is {:?}; {dtype:?} is needed", tensor.dtype) })
}

impl CudaBackend {
    pub(crate) fn new_tensor(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<CudaTensor> {
        let bytes =
            rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size())).ok_or_else(|| Error::Shape {
                op: "zeros",
                reason: format!("{rows} x {cols} elements are more than memory can address"),
            })?;
        let buffer = self.device.alloc(bytes)?;
        self.device.zero(buffer.ptr(), bytes)?;
        Ok(CudaTensor { buffer, rows, cols, dtype })
    }

    pub(crate) fn upload_tensor(&self, values: &[f32], tensor: &mut CudaTensor) -> Result<()> {
        fits("upload", values.len(), tensor)?;
        let size = tensor.dtype.size();
        let dtype = tensor.dtype;
        self.staging.upload_with(tensor.ptr(), values.len() * size, |start, piece| {
            in_threads(piece, |offset, to| {
                let values = &values[(start + offset) / size..][..to.len() / size];
                for (bytes, value) in to.chunks_exact_mut(size).zip(values) {
                    match dtype {
                        Dtype::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
                        Dtype::Bf16 => bytes.copy_from_slice(&half::bf16::from_f32(*value).to_le_bytes()),
                        Dtype::F16 => bytes.copy_from_slice(&half::f16::from_f32(*value).to_le_bytes()),
                    }
                }
            });
        })
    }

    pub(crate) fn download_tensor(&self, tensor: &CudaTensor, values: &mut [f32]) -> Result<()> {
        fits("download", values.len(), tensor)?;
        self.download_values(tensor.ptr(), tensor.dtype, values)
    }

    /// Reads elements at `from` as `f32`.
    pub(crate) fn download_values(&self, from: Ptr, dtype: Dtype, values: &mut [f32]) -> Result<()> {
        let size = dtype.size();
        let len = values.len() * size;
        self.staging.download_with(from, len, |start, piece| {
            let values = &mut values[start / size..][..piece.len() / size];
            out_of_threads(values, |first, values| {
                let bytes = &piece[first * size..][..values.len() * size];
                match dtype {
                    Dtype::F32 => convert(bytes, values, f32::from_le_bytes),
                    Dtype::Bf16 => {
                        convert(bytes, values, |two| {
                            f32::from_bits(u32::from(u16::from_le_bytes(two)) << 16)
                        });
                    }
                    Dtype::F16 => convert(bytes, values, |two| half::f16::from_le_bytes(two).to_f32()),
                }
            });
        })
    }
}

/// Elements of `N` bytes as `f32`.
fn convert<const N: usize>(bytes: &[u8], values: &mut [f32], one: impl Fn([u8; N]) -> f32) {
    for (bytes, value) in bytes.as_chunks().0.iter().zip(values) {
        *value = one(*bytes);
    }
}

fn fits(op: &'static str, len: usize, tensor: &CudaTensor) -> Result<()> {
    if len <= tensor.len() {
        return Ok(());
    }
    Err(Error::Shape { op, reason: format!("{len} values do not fit a tensor of {}", tensor.len()) })
}
