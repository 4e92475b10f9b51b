//! Activations moved to pinned host memory and back, on a stream of their own.
//!
//! Events keep the two streams in order: a copy waits for what was queued before it was asked for, and what needs its
//! result asks for it. The processor waits for nothing.

use std::sync::Arc;

use cudarc::driver::{result, sys};
use eyas_backend::{DeviceTensor, Dtype, Error, Result};

use crate::CudaTensor;
use crate::backend::CudaBackend;
use crate::device::{Device, Event, Pinned};
use crate::tensor::check;

/// The stream of the copies.
#[derive(Debug)]
pub(crate) struct Copies {
    stream: sys::CUstream,
    device: Arc<Device>,
}

// SAFETY: as for `Device`: a stream may be used from any thread with the context current.
unsafe impl Send for Copies {}
// SAFETY: as above.
unsafe impl Sync for Copies {}

impl Copies {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Self> {
        device.bind()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|e| device.error("creating a stream", e))?;
        Ok(Self { stream, device: Arc::clone(device) })
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: the stream is ours and ends here. Errors have nobody left to hear them.
            unsafe {
                let _ = result::stream::synchronize(self.stream);
                let _ = result::stream::destroy(self.stream);
            }
        }
    }
}

/// A matrix in pinned host memory.
#[derive(Debug)]
pub struct CudaHostBuffer {
    pinned: Pinned,
    /// What was queued before the last copy.
    ready: Event,
    /// The last copy.
    done: Event,
    rows: usize,
    cols: usize,
    dtype: Dtype,
}

impl Drop for CudaHostBuffer {
    fn drop(&mut self) {
        // The memory goes after this; a copy may still use it.
        let _ = self.done.wait();
    }
}

impl CudaHostBuffer {
    /// Bytes of `tokens` rows, once they fit both sides.
    fn bytes(&self, op: &'static str, tokens: usize, tensor: &CudaTensor) -> Result<usize> {
        check(op, "tensor", tensor, tokens, self.cols, self.dtype)?;
        if tokens > self.rows {
            let (rows, cols) = (self.rows, self.cols);
            return Err(Error::Shape {
                op,
                reason: format!("the host memory is {rows} x {cols}; at least {tokens} rows are needed"),
            });
        }
        Ok(tokens * self.cols * tensor.dtype().size())
    }

    /// Bytes of the values, once the last copy has run and they are `f32`.
    fn settled(&self) -> Result<usize> {
        if self.dtype != Dtype::F32 {
            let reason = format!("the host memory is {:?}; F32 is needed", self.dtype);
            return Err(Error::Shape { op: "host_values", reason });
        }
        // Copies run in order, so those before the last have run too.
        self.done.wait()?;
        Ok(self.rows * self.cols * self.dtype.size())
    }

    /// See [`eyas_backend::Backend::host_values`]. Pinned memory begins on a page, so the values are aligned.
    pub(crate) fn values(&self) -> Result<&[f32]> {
        let bytes = self.settled()?;
        Ok(bytemuck::cast_slice(&self.pinned.bytes()[..bytes]))
    }

    pub(crate) fn values_mut(&mut self) -> Result<&mut [f32]> {
        let bytes = self.settled()?;
        Ok(bytemuck::cast_slice_mut(&mut self.pinned.bytes_mut()[..bytes]))
    }
}

impl CudaBackend {
    pub(crate) fn create_host_buffer(
        &self,
        dtype: Dtype,
        rows: usize,
        cols: usize,
    ) -> Result<CudaHostBuffer> {
        let bytes =
            rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size())).ok_or_else(|| Error::Shape {
                op: "new_host_buffer",
                reason: format!("{rows} x {cols} elements are more than memory can address"),
            })?;
        let (ready, done) = (self.device.event()?, self.device.event()?);
        Ok(CudaHostBuffer { pinned: Pinned::new(&self.device, bytes)?, ready, done, rows, cols, dtype })
    }

    pub(crate) fn copy_to_host(
        &self,
        tokens: usize,
        from: &CudaTensor,
        to: &mut CudaHostBuffer,
    ) -> Result<()> {
        let bytes = to.bytes("offload", tokens, from)?;
        let stream = self.begin_copy(to)?;
        // SAFETY: both ends have `bytes` bytes and outlive the copy: the buffer waits for it when dropped, and freeing
        // device memory waits for work that uses it.
        unsafe { result::memcpy_dtoh_async(&mut to.pinned.bytes_mut()[..bytes], from.ptr().0, stream) }
            .map_err(|e| self.device.error("copying from it", e))?;
        to.done.record_on(stream)
    }

    pub(crate) fn copy_from_host(
        &self,
        tokens: usize,
        from: &CudaHostBuffer,
        to: &mut CudaTensor,
    ) -> Result<()> {
        let bytes = from.bytes("fetch", tokens, to)?;
        let stream = self.begin_copy(from)?;
        // SAFETY: as in `copy_to_host`.
        unsafe { result::memcpy_htod_async(to.ptr().0, &from.pinned.bytes()[..bytes], stream) }
            .map_err(|e| self.device.error("copying to it", e))?;
        from.done.record_on(stream)
    }

    /// The stream of the copies, from now on behind what is queued.
    fn begin_copy(&self, buffer: &CudaHostBuffer) -> Result<sys::CUstream> {
        buffer.ready.record()?;
        buffer.ready.hold(self.copies.stream)?;
        Ok(self.copies.stream)
    }

    pub(crate) fn hold_for_copy(&self, buffer: &CudaHostBuffer) -> Result<()> {
        buffer.done.hold(self.device.stream())
    }
}
