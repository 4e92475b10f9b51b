//! A batch on the device, with the counts that the host needs.

use eyas_backend::{Backend, FlatBatch, reach};

use crate::Result;

/// A flat batch on the device.
#[derive(Debug)]
pub struct DeviceBatch<B: Backend> {
    on_device: B::Batch,
    tokens: usize,
    sequences: usize,
    targets: usize,
    reach: usize,
}

impl<B: Backend> DeviceBatch<B> {
    /// Room for batches of at most this many tokens and sequences.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(backend: &B, max_tokens: usize, max_sequences: usize) -> Result<Self> {
        Ok(Self {
            on_device: backend.new_batch(max_tokens, max_sequences)?,
            tokens: 0,
            sequences: 0,
            targets: 0,
            reach: 0,
        })
    }

    /// Replaces the batch.
    ///
    /// # Errors
    /// When it has more tokens or sequences than there is room for.
    pub fn load(&mut self, backend: &B, batch: &FlatBatch) -> Result<()> {
        backend.load_batch(batch, &mut self.on_device)?;
        self.tokens = batch.tokens();
        self.sequences = batch.sequences();
        self.targets = batch.target_tokens();
        self.reach = reach(batch.positions().iter().max().map_or(0, |&position| position as usize + 1));
        Ok(())
    }

    /// The backend's view.
    pub fn on_device(&self) -> &B::Batch {
        &self.on_device
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Sequences.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// How far its positions reach, see [`eyas_backend::reach`].
    pub fn reach(&self) -> usize {
        self.reach
    }

    /// Tokens that have a target.
    pub fn targets(&self) -> usize {
        self.targets
    }
}
