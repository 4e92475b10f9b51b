//! Copies between ordinary host memory and the card, through two pinned buffers in turn.

use std::sync::{Arc, Mutex, PoisonError};

use eyas_backend::Result;

use crate::device::{Device, Event, Pinned, Ptr};

/// Bytes of a pinned buffer; a multiple of the largest quantisation block in any type.
pub(crate) const CHUNK: usize = 16 << 20;

/// Below this a copy is not shared among threads.
const THREAD_BYTES: usize = 1 << 20;

/// Two pinned buffers, made at first use.
#[derive(Debug)]
pub(crate) struct Staging {
    device: Arc<Device>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    buffers: Vec<(Pinned, Event)>,
    next: usize,
}

impl Staging {
    pub(crate) fn new(device: &Arc<Device>) -> Self {
        Self { device: Arc::clone(device), inner: Mutex::default() }
    }

    /// Runs `work` with a pinned buffer whose last copy has finished; copies that `work` queues may still run when this
    /// returns.
    fn with_buffer<T>(&self, work: impl FnOnce(&Device, &mut Pinned) -> Result<T>) -> Result<T> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.buffers.len() < 2 {
            let buffer = (Pinned::new(&self.device, CHUNK)?, self.device.event()?);
            inner.buffers.push(buffer);
            inner.next = inner.buffers.len() - 1;
        }
        let next = inner.next;
        inner.next = (next + 1) % 2;
        let (buffer, event) = &mut inner.buffers[next];
        event.wait()?;
        let result = work(&self.device, buffer)?;
        event.record()?;
        Ok(result)
    }

    /// Queues the copy of `len` bytes to `to`; `fill` writes those from a byte offset on. Pieces are multiples of 16 MiB.
    pub(crate) fn upload_with(
        &self,
        to: Ptr,
        len: usize,
        mut fill: impl FnMut(usize, &mut [u8]),
    ) -> Result<()> {
        for start in (0..len).step_by(CHUNK) {
            self.with_buffer(|device, buffer| {
                let piece = &mut buffer.bytes_mut()[..CHUNK.min(len - start)];
                fill(start, piece);
                // SAFETY: the buffer is not touched until its event, recorded next, has passed.
                unsafe { device.copy_in(to.add(start), piece) }
            })?;
        }
        Ok(())
    }

    /// Queues the copy of `bytes` to `to`; `bytes` may change once this returns.
    pub(crate) fn upload(&self, to: Ptr, bytes: &[u8]) -> Result<()> {
        self.upload_with(to, bytes.len(), |start, piece| {
            in_threads(piece, |offset, to| to.copy_from_slice(&bytes[start + offset..][..to.len()]));
        })
    }

    /// Copies `len` bytes from `from` and hands them to `take` with their offset. Waits for them.
    pub(crate) fn download_with(
        &self,
        from: Ptr,
        len: usize,
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<()> {
        for start in (0..len).step_by(CHUNK) {
            self.with_buffer(|device, buffer| {
                let piece = &mut buffer.bytes_mut()[..CHUNK.min(len - start)];
                // SAFETY: the buffer is read only after the wait.
                unsafe { device.copy_out(piece, from.add(start)) }?;
                device.synchronize()?;
                take(start, piece);
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Hands pieces of `to` with their offsets to several threads where it is worth it: one does not fill the bus.
pub(crate) fn in_threads(to: &mut [u8], work: impl Fn(usize, &mut [u8]) + Sync) {
    share(to, THREAD_BYTES, work);
}

/// The same for what is read from the card: the values that become of it.
pub(crate) fn out_of_threads(to: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    share(to, THREAD_BYTES / 2, work);
}

/// Hands pieces of at least `least` elements to as many threads as there are pieces.
fn share<T: Send>(to: &mut [T], least: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8).min(to.len() / least);
    if threads < 2 {
        work(0, to);
        return;
    }
    let share = to.len().div_ceil(threads).next_multiple_of(8);
    std::thread::scope(|scope| {
        for (i, to) in to.chunks_mut(share).enumerate() {
            let work = &work;
            scope.spawn(move || work(i * share, to));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threaded_copies_are_whole() {
        let from: Vec<u8> = (0..5_000_001u32).map(|i| (i * 7) as u8).collect();
        let mut to = vec![0; from.len()];
        in_threads(&mut to, |offset, to| to.copy_from_slice(&from[offset..][..to.len()]));
        assert_eq!(from, to);
    }
}
