//! Memory that operations use between their kernels. It grows to the largest step and then stays.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eyas_backend::Result;

use crate::device::{Buffer, Device, Ptr};

/// What a piece of scratch memory holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slot {
    /// A projection's weights as the product reads them.
    Weight,
    /// `[x | h]`: an input with its low-rank activations beside it.
    Wide,
    /// The packed `A` of a projection.
    PackedA,
    /// The packed `B` of a part.
    PackedB,
    /// Low-rank activations, or their gradient.
    Hidden,
    /// Pieces of a sum.
    Partial,
    /// A bias in the activations' type.
    Bias,
    /// Each row's loss, or each row's `dout . out`.
    Rows,
    /// A source on its way to being quantised, and its scales.
    Load,
    /// Scales before they are quantised.
    Scales,
}

/// Pieces of scratch memory.
pub(crate) const SLOTS: usize = Slot::Scales as usize + 1;

impl Slot {
    /// All of them, in their order.
    pub(crate) const ALL: [Self; SLOTS] = [
        Self::Weight,
        Self::Wide,
        Self::PackedA,
        Self::PackedB,
        Self::Hidden,
        Self::Partial,
        Self::Bias,
        Self::Rows,
        Self::Load,
        Self::Scales,
    ];
}

/// The scratch memory of one stream.
#[derive(Debug)]
pub(crate) struct Scratch {
    device: Arc<Device>,
    /// How often a slot was given other memory.
    moves: AtomicU64,
    slots: Mutex<[Option<Buffer>; SLOTS]>,
}

/// Scratch memory during one operation: no other thread queues work that uses it meanwhile.
pub(crate) struct ScratchGuard<'a> {
    device: &'a Arc<Device>,
    moves: &'a AtomicU64,
    slots: MutexGuard<'a, [Option<Buffer>; SLOTS]>,
}

impl Scratch {
    pub(crate) fn new(device: &Arc<Device>) -> Self {
        Self {
            device: Arc::clone(device),
            moves: AtomicU64::new(0),
            slots: Mutex::new([const { None }; SLOTS]),
        }
    }

    pub(crate) fn lock(&self) -> ScratchGuard<'_> {
        ScratchGuard {
            device: &self.device,
            moves: &self.moves,
            slots: self.slots.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Gives everything back.
    pub(crate) fn clear(&self) -> Result<()> {
        let mut guard = self.lock();
        self.device.synchronize()?;
        self.moves.fetch_add(1, Ordering::Relaxed);
        guard.slots.fill_with(|| None);
        Ok(())
    }

    /// Changes whenever memory handed out earlier may be gone.
    pub(crate) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().slots.iter().flatten().map(|buffer| buffer.bytes() as u64).sum()
    }
}

impl ScratchGuard<'_> {
    /// What `slot` holds, and its bytes; nothing when it was never asked for.
    pub(crate) fn held(&self, slot: Slot) -> (Ptr, usize) {
        self.slots[slot as usize].as_ref().map_or((Ptr::NULL, 0), |buffer| (buffer.ptr(), buffer.bytes()))
    }

    /// At least `bytes` bytes for `slot`. What they held is lost when the slot grows.
    pub(crate) fn get(&mut self, slot: Slot, bytes: usize) -> Result<Ptr> {
        let held = &mut self.slots[slot as usize];
        if held.as_ref().is_none_or(|buffer| buffer.bytes() < bytes) {
            // Freed first, so that the old and the new are never held together.
            self.device.synchronize()?;
            self.moves.fetch_add(1, Ordering::Relaxed);
            *held = None;
            *held = Some(self.device.alloc(bytes)?);
        }
        Ok(held.as_ref().map_or(Ptr::NULL, Buffer::ptr))
    }
}
