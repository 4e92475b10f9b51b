//! The flat batch: every sequence of a batch laid end to end on one axis of `T` tokens, without padding.

use std::ops::Range;

use crate::{Error, Result};

/// How far a batch's positions reach, coarsely: what operations on a cache may choose their ways by, so that one choice
/// holds for many steps. A power of two that is at least `positions`.
pub fn reach(positions: usize) -> usize {
    const LEAST: usize = 256;
    positions.next_power_of_two().max(LEAST)
}

/// The target id that marks a token whose prediction does not count towards the loss.
///
/// It is PyTorch's `ignore_index`, so that labels can be compared with a peer's one to one.
pub const IGNORE_INDEX: i32 = -100;

/// Sequences laid end to end on one token axis.
///
/// The result of every operation equals that of the padded batch: positions restart at each sequence and
/// attention stays inside it (the layout of FlashAttention's variable-length kernels).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatBatch {
    input_ids: Vec<u32>,
    targets: Vec<i32>,
    positions: Vec<u32>,
    cu_seqlens: Vec<u32>,
    slots: Vec<u32>,
}

impl FlatBatch {
    /// An empty batch; add sequences with [`FlatBatch::push`].
    pub fn new() -> Self {
        Self {
            input_ids: Vec::new(),
            targets: Vec::new(),
            positions: Vec::new(),
            cu_seqlens: vec![0],
            slots: Vec::new(),
        }
    }

    /// Appends one sequence.
    ///
    /// `targets[i]` is the id that should follow `input_ids[i]`, already shifted, or [`IGNORE_INDEX`].
    ///
    /// # Errors
    /// When the sequence is empty, the lengths differ, or the batch would pass `i32::MAX` tokens.
    pub fn push(&mut self, input_ids: &[u32], targets: &[i32]) -> Result<()> {
        if input_ids.is_empty() {
            return Err(Error::Batch("a sequence has no tokens".into()));
        }
        if input_ids.len() != targets.len() {
            return Err(Error::Batch(format!(
                "a sequence has {} tokens and {} targets; there must be one target a token",
                input_ids.len(),
                targets.len()
            )));
        }
        let end = self.input_ids.len() + input_ids.len();
        if end > i32::MAX as usize {
            return Err(Error::Batch(format!("a batch of {end} tokens is too long")));
        }
        self.slots.push(self.slots.len() as u32);
        self.input_ids.extend_from_slice(input_ids);
        self.targets.extend_from_slice(targets);
        self.positions.extend(0..input_ids.len() as u32);
        self.cu_seqlens.push(end as u32);
        Ok(())
    }

    /// Appends tokens that continue the sequence in a slot of the key/value cache: they take the positions
    /// `start..start + input_ids.len()` and have no targets.
    ///
    /// # Errors
    /// As [`FlatBatch::push`], and when the slot is in the batch already or a position passes `i32::MAX`.
    pub fn push_cached(&mut self, slot: u32, start: u32, input_ids: &[u32]) -> Result<()> {
        self.push_cached_with_targets(slot, start, input_ids, &vec![IGNORE_INDEX; input_ids.len()])
    }

    /// As [`FlatBatch::push_cached`], with the id that should follow each token, or [`IGNORE_INDEX`].
    ///
    /// # Errors
    /// As [`FlatBatch::push_cached`], and when the lengths differ.
    pub fn push_cached_with_targets(
        &mut self,
        slot: u32,
        start: u32,
        input_ids: &[u32],
        targets: &[i32],
    ) -> Result<()> {
        if self.slots.contains(&slot) {
            return Err(Error::Batch(format!("cache slot {slot} is in the batch twice")));
        }
        let end = start as usize + input_ids.len();
        if end > i32::MAX as usize {
            return Err(Error::Batch(format!("position {end} is too large")));
        }
        self.push(input_ids, targets)?;
        let first = self.positions.len() - input_ids.len();
        self.positions.truncate(first);
        self.positions.extend(start..end as u32);
        if let Some(last) = self.slots.last_mut() {
            *last = slot;
        }
        Ok(())
    }

    /// Appends one sequence whose every token is to be predicted from those before it, or none when
    /// `mask` says so: `mask[i]` tells whether predicting `input_ids[i]` counts.
    ///
    /// This is the shift of a causal language model: the target of token `i` is token `i + 1`.
    ///
    /// # Errors
    /// As [`FlatBatch::push`].
    pub fn push_causal(&mut self, input_ids: &[u32], mask: &[bool]) -> Result<()> {
        if input_ids.len() != mask.len() {
            return Err(Error::Batch(format!(
                "a sequence has {} tokens and a mask of {}",
                input_ids.len(),
                mask.len()
            )));
        }
        let targets: Vec<i32> = (1..=input_ids.len())
            .map(|i| if i < mask.len() && mask[i] { input_ids[i] as i32 } else { IGNORE_INDEX })
            .collect();
        self.push(input_ids, &targets)
    }

    /// Token ids, `[T]`.
    pub fn input_ids(&self) -> &[u32] {
        &self.input_ids
    }

    /// Next-token targets, `[T]`; [`IGNORE_INDEX`] where the prediction does not count.
    pub fn targets(&self) -> &[i32] {
        &self.targets
    }

    /// Position of each token in its own sequence, `[T]`.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Where each sequence starts, and the end of the last: `[sequences + 1]`.
    pub fn cu_seqlens(&self) -> &[u32] {
        &self.cu_seqlens
    }

    /// The key/value cache slot of each sequence; its own number unless it was pushed with another.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Empties the batch, keeping its memory.
    pub fn clear(&mut self) {
        self.input_ids.clear();
        self.targets.clear();
        self.positions.clear();
        self.slots.clear();
        self.cu_seqlens.truncate(1);
    }

    /// The number of tokens, `T`.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// The number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }

    /// The token range of each sequence.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.cu_seqlens.windows(2).map(|w| w[0] as usize..w[1] as usize)
    }

    /// How many tokens have a target that counts.
    pub fn target_tokens(&self) -> usize {
        self.targets.iter().filter(|&&t| t != IGNORE_INDEX).count()
    }

    /// The longest sequence, in tokens.
    pub fn max_seqlen(&self) -> usize {
        self.ranges().map(|r| r.len()).max().unwrap_or(0)
    }
}

impl Default for FlatBatch {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causal_targets_are_shifted_and_masked() {
        let mut batch = FlatBatch::new();
        batch.push_causal(&[5, 6, 7], &[false, false, true]).unwrap();
        batch.push_causal(&[8, 9], &[true, true]).unwrap();
        assert_eq!(batch.targets(), &[IGNORE_INDEX, 7, IGNORE_INDEX, 9, IGNORE_INDEX]);
        assert_eq!(batch.positions(), &[0, 1, 2, 0, 1]);
        assert_eq!(batch.cu_seqlens(), &[0, 3, 5]);
        assert_eq!(batch.target_tokens(), 2);
        assert_eq!(batch.max_seqlen(), 3);
    }

    #[test]
    fn cached_tokens_continue_their_slot() {
        let mut batch = FlatBatch::new();
        batch.push_cached(3, 7, &[1, 2]).unwrap();
        batch.push_cached(0, 0, &[4]).unwrap();
        assert_eq!(batch.positions(), &[7, 8, 0]);
        assert_eq!(batch.slots(), &[3, 0]);
        assert!(batch.push_cached(3, 9, &[1]).is_err());
    }

    #[test]
    fn empty_and_uneven_sequences_are_refused() {
        let mut batch = FlatBatch::new();
        assert!(batch.push(&[], &[]).is_err());
        assert!(batch.push(&[1], &[]).is_err());
        assert_eq!(batch.sequences(), 0);
    }
}
