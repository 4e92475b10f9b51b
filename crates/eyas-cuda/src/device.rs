//! A card: its context, one stream, memory, events.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use eyas_backend::{Error, Result};

use crate::library::Lib;

/// An address in device memory, as kernels take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Ptr(pub u64);

impl Ptr {
    pub(crate) const NULL: Self = Self(0);

    /// The address `bytes` further on.
    pub(crate) fn add(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }

    /// Whether 16-byte accesses may start here.
    pub(crate) fn is_aligned(self) -> bool {
        self.0.is_multiple_of(16)
    }
}

/// Bytes that an allocation takes: the driver's granularity, which also gives an empty buffer an address.
pub(crate) fn rounded(bytes: u64) -> u64 {
    bytes.max(1).div_ceil(512).saturating_mul(512)
}

/// Bytes of the card that are left to the driver and the libraries: kernels' code and their stacks are loaded as they are
/// first used.
pub(crate) const RESERVE: u64 = 256 << 20;

thread_local! {
    /// The device whose work this thread is recording, and the stream that records it.
    static RECORDING: std::cell::Cell<Option<(usize, sys::CUstream)>> = const { std::cell::Cell::new(None) };
}

/// A card's limits that decide how kernels are launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Compute capability, major and minor.
    pub(crate) sm: (u32, u32),
    /// Multiprocessors.
    pub(crate) multiprocessors: u32,
}

/// A card's primary context and the one stream that all work goes through.
#[derive(Debug)]
pub(crate) struct Device {
    /// Tells contexts apart even where the driver reuses an address.
    id: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    pub(crate) name: String,
    pub(crate) limits: Limits,
    memory_limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
}

// SAFETY: a context and a stream may be used from any thread once the context is current there, which every method sees to.
unsafe impl Send for Device {}
// SAFETY: as above; the driver serialises calls on one stream.
unsafe impl Sync for Device {}

/// Starts the driver. An error where there is none.
pub(crate) fn init() -> Result<()> {
    Lib::Driver.require()?;
    result::init().map_err(|e| {
        let advice = match e.0 {
            sys::CUresult::CUDA_ERROR_NO_DEVICE => {
                "no NVIDIA card is visible; see CUDA_VISIBLE_DEVICES and `nvidia-smi`"
            }
            _ => "the NVIDIA driver does not start; see `nvidia-smi`",
        };
        Error::Device { device: "CUDA".into(), reason: format!("{}: {advice}", describe(e)) }
    })
}

/// The driver's own words.
pub(crate) fn describe(error: DriverError) -> String {
    let name = error.error_name().ok().and_then(|n| n.to_str().ok()).unwrap_or("unknown error");
    let text = error.error_string().ok().and_then(|n| n.to_str().ok()).unwrap_or("");
    format!("{name} ({text})")
}

pub(crate) fn attribute(device: sys::CUdevice, attribute: Attribute) -> Result<u32, DriverError> {
    // SAFETY: `device` came from `cuDeviceGet`.
    unsafe { result::device::get_attribute(device, attribute) }.map(|v| v.max(0) as u32)
}

pub(crate) fn limits(device: sys::CUdevice) -> Result<Limits, DriverError> {
    Ok(Limits {
        sm: (
            attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

impl Device {
    /// Opens card `ordinal`; allocations stay below `memory_limit` bytes.
    pub(crate) fn open(ordinal: usize, memory_limit: Option<u64>) -> Result<Self> {
        init()?;
        let fail = |what: &str, e: DriverError| Error::Device {
            device: format!("CUDA device {ordinal}"),
            reason: format!("{what}: {}", describe(e)),
        };
        let count = result::device::get_count().map_err(|e| fail("counting cards", e))?;
        if ordinal >= count as usize {
            return Err(Error::Device {
                device: format!("CUDA device {ordinal}"),
                reason: format!(
                    "there are {count} cards, numbered from 0; see `nvidia-smi` and CUDA_VISIBLE_DEVICES"
                ),
            });
        }
        let device = result::device::get(ordinal as i32).map_err(|e| fail("opening", e))?;
        let name = result::device::get_name(device).map_err(|e| fail("reading its name", e))?;
        let limits = limits(device).map_err(|e| fail("reading its limits", e))?;
        if limits.sm < (7, 5) {
            return Err(Error::Device {
                device: name,
                reason: format!(
                    "compute capability {}.{} is too old; 7.5 or newer is needed",
                    limits.sm.0, limits.sm.1
                ),
            });
        }
        // SAFETY: `device` is valid; the context is released in `drop`.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(|e| fail("creating a context", e))?;
        // SAFETY: `context` was just retained.
        let stream = unsafe { result::ctx::set_current(context) }
            .and_then(|()| result::stream::create(result::stream::StreamKind::NonBlocking))
            .map_err(|e| fail("creating a stream", e))?;
        static NEXT_ID: AtomicUsize = AtomicUsize::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            id,
            device,
            context,
            stream,
            name,
            limits,
            memory_limit: memory_limit.unwrap_or(u64::MAX),
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
        })
    }

    pub(crate) fn error(&self, what: &str, e: DriverError) -> Error {
        match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => self.no_reserve(),
            _ => self.broken(what, e),
        }
    }

    fn broken(&self, what: &str, e: DriverError) -> Error {
        Error::Device { device: self.name.clone(), reason: format!("{what}: {}", describe(e)) }
    }

    /// That the driver or a library found no room for its own needs. They do not say how much they wanted; what is left
    /// to them is gone.
    pub(crate) fn no_reserve(&self) -> Error {
        self.out_of_memory(RESERVE)
    }

    /// Makes the context current on this thread.
    pub(crate) fn bind(&self) -> Result<()> {
        thread_local!(static CURRENT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });
        CURRENT.with(|current| {
            if current.get() != self.id {
                // SAFETY: the context is retained as long as `self` lives.
                unsafe { result::ctx::set_current(self.context) }.map_err(|e| self.error("binding", e))?;
                current.set(self.id);
            }
            Ok(())
        })
    }

    /// The stream that this thread's work goes to: the device's own, or the one that records.
    pub(crate) fn stream(&self) -> sys::CUstream {
        match RECORDING.get() {
            Some((id, stream)) if id == self.id => stream,
            _ => self.stream,
        }
    }

    /// Runs `work` with everything that it queues from this thread going to `stream`, which records it.
    pub(crate) fn while_recording<T>(&self, stream: sys::CUstream, work: impl FnOnce() -> T) -> T {
        struct Restore(Option<(usize, sys::CUstream)>);
        impl Drop for Restore {
            fn drop(&mut self) {
                RECORDING.set(self.0);
            }
        }
        let _restore = Restore(RECORDING.replace(Some((self.id, stream))));
        work()
    }

    /// An error while this thread records: what waits for the card or for host memory cannot be repeated.
    fn check_not_recording(&self) -> Result<()> {
        if RECORDING.get().is_some_and(|(id, _)| id == self.id) {
            let reason = "copies to or from the host and waits cannot be recorded".into();
            return Err(Error::Device { device: self.name.clone(), reason });
        }
        Ok(())
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        self.check_not_recording()?;
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }
            .map_err(|e| self.error("running what was queued", e))
    }

    /// Bytes free, those that the limit still allows, and bytes in use by this process' buffers.
    pub(crate) fn memory(&self) -> Result<(u64, u64, u64)> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(|e| self.error("reading its memory", e))?;
        let used = self.used.load(Ordering::Relaxed);
        Ok(((free as u64).min(self.memory_limit.saturating_sub(used)), total as u64, used))
    }

    /// Bytes that buffers hold together.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The most bytes that buffers ever held together.
    pub(crate) fn peak_bytes(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Allocates; contents are undefined.
    pub(crate) fn alloc(self: &Arc<Self>, bytes: usize) -> Result<Buffer> {
        self.bind()?;
        let bytes = usize::try_from(rounded(bytes as u64)).map_err(|_| self.out_of_memory(u64::MAX))?;
        let used = self.used.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let allocated = if used > self.memory_limit {
            None
        } else {
            // SAFETY: a context is current; the memory is freed by `Buffer::drop`.
            unsafe { result::malloc_sync(bytes) }.ok()
        };
        match allocated {
            Some(ptr) => {
                self.peak.fetch_max(used, Ordering::Relaxed);
                Ok(Buffer { ptr: Ptr(ptr), bytes, device: Arc::clone(self) })
            }
            None => {
                self.used.fetch_sub(bytes as u64, Ordering::Relaxed);
                Err(self.out_of_memory(bytes as u64))
            }
        }
    }

    fn out_of_memory(&self, requested: u64) -> Error {
        let available = self.memory().map_or(0, |(free, _, _)| free);
        Error::OutOfMemory { device: self.name.clone(), requested, available }
    }

    /// Queues a fill with zero bytes.
    pub(crate) fn zero(&self, ptr: Ptr, bytes: usize) -> Result<()> {
        self.fill(ptr, 0, bytes)
    }

    /// Queues a fill with one byte.
    pub(crate) fn fill(&self, ptr: Ptr, byte: u8, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: callers pass ranges of live buffers.
        unsafe { result::memset_d8_async(ptr.0, byte, bytes, self.stream()) }
            .map_err(|e| self.error("clearing memory", e))
    }

    /// Queues a copy from host memory. Asynchronous only where `from` is pinned.
    ///
    /// # Safety
    /// `from` stays as it is until the copy has run, where it is pinned.
    pub(crate) unsafe fn copy_in(&self, to: Ptr, from: &[u8]) -> Result<()> {
        self.check_not_recording()?;
        self.bind()?;
        // SAFETY: callers pass ranges of live buffers.
        unsafe { result::memcpy_htod_async(to.0, from, self.stream) }
            .map_err(|e| self.error("copying to it", e))
    }

    /// Queues a copy to host memory. Asynchronous only where `to` is pinned.
    ///
    /// # Safety
    /// `to` is neither read nor written until the copy has run, where it is pinned.
    pub(crate) unsafe fn copy_out(&self, to: &mut [u8], from: Ptr) -> Result<()> {
        self.check_not_recording()?;
        self.bind()?;
        // SAFETY: callers pass ranges of live buffers.
        unsafe { result::memcpy_dtoh_async(to, from.0, self.stream) }
            .map_err(|e| self.error("copying from it", e))
    }

    /// Queues a copy on the card.
    ///
    /// # Safety
    /// Both ranges are of live buffers, and do not overlap.
    pub(crate) unsafe fn copy_on(&self, to: Ptr, from: Ptr, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: as the caller promises.
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream) }
            .map_err(|e| self.error("copying on it", e))
    }

    /// A point in the stream.
    pub(crate) fn event(self: &Arc<Self>) -> Result<Event> {
        self.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map_err(|e| self.error("creating an event", e))?;
        Ok(Event { event, device: Arc::clone(self) })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: everything that holds memory or events of the device holds the device too, so this comes last.
        // Errors have nobody left to hear them.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::synchronize(self.stream);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// Device memory.
#[derive(Debug)]
pub(crate) struct Buffer {
    ptr: Ptr,
    bytes: usize,
    device: Arc<Device>,
}

impl Buffer {
    pub(crate) fn ptr(&self) -> Ptr {
        self.ptr
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: the pointer came from `malloc_sync`; freeing waits for work that uses it.
            let _ = unsafe { result::free_sync(self.ptr.0) };
            self.device.used.fetch_sub(self.bytes as u64, Ordering::Relaxed);
        }
    }
}

/// Pinned host memory, cached by the processor, which kernels may read and write too.
#[derive(Debug)]
pub(crate) struct Pinned {
    ptr: *mut u8,
    on_device: Ptr,
    bytes: usize,
    device: Arc<Device>,
}

// SAFETY: plain host memory, owned by the value.
unsafe impl Send for Pinned {}
// SAFETY: shared references only read it.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        device.bind()?;
        let bytes = bytes.max(1);
        let fail = |e| {
            let advice = "a lower limit on locked memory (`ulimit -l`) or too little free memory may be why";
            device.broken(&format!("pinning {bytes} bytes of host memory ({advice})"), e)
        };
        // SAFETY: a context is current; the memory is freed by `drop`. Not write-combined: the processor reads it too.
        let ptr: *mut c_void =
            unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP) }.map_err(fail)?;
        let mut pinned = Self { ptr: ptr.cast(), on_device: Ptr::NULL, bytes, device: Arc::clone(device) };
        // SAFETY: the memory was just allocated for this.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut pinned.on_device.0, ptr, 0) }
            .result()
            .map_err(fail)?;
        Ok(pinned)
    }

    /// Its address for kernels, which reach it over the bus.
    pub(crate) fn ptr(&self) -> Ptr {
        self.on_device
    }

    /// The bytes; what the card writes there is only seen after a wait.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: as `bytes_mut`, and nothing writes through a shared reference.
        unsafe { std::slice::from_raw_parts(self.ptr, self.bytes) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `bytes` bytes were allocated, the driver hands out initialised pages, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Kernels and copies that still use it come first.
        if self.device.synchronize().is_ok() {
            // SAFETY: the pointer came from `malloc_host`.
            let _ = unsafe { result::free_host(self.ptr.cast()) };
        }
    }
}

/// A point in the stream that can be waited for and timed.
#[derive(Debug)]
pub(crate) struct Event {
    event: sys::CUevent,
    device: Arc<Device>,
}

// SAFETY: events may be used from any thread of the process.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn record(&self) -> Result<()> {
        self.record_on(self.device.stream)
    }

    /// Puts the point into another stream of the device.
    pub(crate) fn record_on(&self, stream: sys::CUstream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: callers pass a live stream, and the event is alive.
        unsafe { result::event::record(self.event, stream) }
            .map_err(|e| self.device.error("recording an event", e))
    }

    /// What is queued on `stream` after this runs once the point has passed. A point that was never recorded has.
    pub(crate) fn hold(&self, stream: sys::CUstream) -> Result<()> {
        self.device.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: callers pass a live stream, and the event is alive.
        unsafe { result::stream::wait_event(stream, self.event, flags) }
            .map_err(|e| self.device.error("waiting for an event", e))
    }

    pub(crate) fn wait(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.event) }
            .map_err(|e| self.device.error("running what was queued", e))
    }

    /// Milliseconds from `self` to `later`; both have been waited for.
    pub(crate) fn milliseconds_to(&self, later: &Self) -> Result<f32> {
        // SAFETY: both events are alive.
        unsafe { result::event::elapsed(self.event, later.event) }.map_err(|e| self.device.error("timing", e))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: the event came from `event::create`.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
