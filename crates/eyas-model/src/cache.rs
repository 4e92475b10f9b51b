//! The key/value cache of generation.

use std::ops::Range;

use eyas_backend::Backend;

use crate::Result;
use crate::block::KeyValues;
use crate::decoder::Decoder;

/// Keys and values of the tokens seen so far, for several sequences at once.
#[derive(Debug)]
pub struct Cache<B: Backend> {
    /// `[slots * positions, kv_heads * head_dim]`, one pair a block.
    blocks: Vec<[B::Tensor; 2]>,
    slots: usize,
    positions: usize,
}

impl<B: Backend> Cache<B> {
    /// Room for `slots` sequences of at most `positions` tokens.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(backend: &B, decoder: &Decoder, slots: usize, positions: usize) -> Result<Self> {
        let cols = decoder.attention.layout.kv_heads * decoder.attention.layout.head_dim;
        let tensor = || backend.zeros(backend.compute_dtype(), slots * positions, cols);
        let blocks = (0..decoder.blocks()).map(|_| Ok([tensor()?, tensor()?])).collect::<Result<_>>()?;
        Ok(Self { blocks, slots, positions })
    }

    /// Bytes that a cache takes, with activations of `dtype`.
    pub fn bytes(decoder: &Decoder, slots: usize, positions: usize, dtype: eyas_backend::Dtype) -> u64 {
        let layout = &decoder.attention.layout;
        (2 * decoder.blocks() * slots * positions * layout.kv_heads * layout.head_dim * dtype.size()) as u64
    }

    /// Sequences that fit.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Tokens that fit in a slot.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Copies the keys and values at these positions of one slot to another.
    ///
    /// # Errors
    /// When a slot or a position is outside the cache, the slots are the same, or the device fails.
    pub fn copy(&mut self, backend: &B, from: usize, to: usize, positions: Range<usize>) -> Result<()> {
        let start = |slot: usize| slot.saturating_mul(self.positions).saturating_add(positions.start);
        let (rows, to) = (start(from)..start(from).saturating_add(positions.len()), start(to));
        for tensor in self.blocks.iter_mut().flatten() {
            backend.copy_rows(tensor, rows.clone(), to)?;
        }
        Ok(())
    }

    pub(crate) fn block(&mut self, index: usize) -> KeyValues<'_, B> {
        let [keys, values] = &mut self.blocks[index];
        KeyValues::Cache { keys, values, positions: self.positions }
    }
}
