//! Work that was queued once and is queued again as a whole: a CUDA graph. A step of generation is hundreds of small
//! kernels, whose launches one by one take longer than they run.

use std::sync::Arc;

use cudarc::driver::{result, sys};
use eyas_backend::{Error, Result};

use crate::backend::CudaBackend;
use crate::device::Device;

/// Recorded work. It holds while the scratch memory that its kernels use stays where it was.
#[derive(Debug)]
pub struct CudaRecording {
    graph: sys::CUgraphExec,
    scratch_moves: u64,
    device: Arc<Device>,
}

// SAFETY: a graph may be launched from any thread with the context current; the backend launches on its one stream.
unsafe impl Send for CudaRecording {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for CudaRecording {}

impl Drop for CudaRecording {
    fn drop(&mut self) {
        // A launch of it may still run.
        if self.device.synchronize().is_ok() {
            // SAFETY: made by `instantiate`, destroyed once.
            let _ = unsafe { result::graph::exec_destroy(self.graph) };
        }
    }
}

impl CudaBackend {
    /// See [`eyas_backend::Backend::record`].
    pub(crate) fn record_work<E: From<Error>>(
        &self,
        mut work: impl FnMut() -> Result<(), E>,
    ) -> Result<Option<CudaRecording>, E> {
        if !self.is_measuring()
            && let Some(recording) = self.capture(&mut work)
            && self.replay_work(&recording)?
        {
            return Ok(Some(recording));
        }
        // Whatever kept it from being recorded: run as it is it works, or says what is wrong.
        work()?;
        Ok(None)
    }

    /// See [`eyas_backend::Backend::replay`].
    pub(crate) fn replay_work(&self, recording: &CudaRecording) -> Result<bool> {
        if self.is_measuring() || recording.scratch_moves != self.scratch.moves() {
            return Ok(false);
        }
        self.device.bind()?;
        // SAFETY: the graph is alive, and so is all memory that its kernels use: the caller's operands by contract,
        // scratch memory since it has not moved.
        unsafe { result::graph::launch(recording.graph, self.device.stream()) }
            .map_err(|e| self.device.error("launching a recorded step", e))?;
        Ok(true)
    }

    /// Records what `work` queues without running it; `None` where the driver or the work does not allow it.
    fn capture<E>(&self, work: &mut impl FnMut() -> Result<(), E>) -> Option<CudaRecording> {
        self.device.bind().ok()?;
        let scratch_moves = self.scratch.moves();
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).ok()?;
        // Calls of other threads, which go to the device's own stream, are neither recorded nor hindered.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream was just made and is destroyed below, after the capture has ended.
        let graph = unsafe {
            let graph = result::stream::begin_capture(stream, mode).ok().and_then(|()| {
                let worked = self.device.while_recording(stream, work).is_ok();
                let graph = result::stream::end_capture(stream).ok().filter(|graph| !graph.is_null())?;
                if worked {
                    return Some(graph);
                }
                let _ = result::graph::destroy(graph);
                None
            });
            let _ = result::stream::destroy(stream);
            graph?
        };
        // SAFETY: the graph is valid and no longer needed once it is instantiated.
        let executable = unsafe {
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            executable.ok()?
        };
        Some(CudaRecording { graph: executable, scratch_moves, device: Arc::clone(&self.device) })
    }
}
