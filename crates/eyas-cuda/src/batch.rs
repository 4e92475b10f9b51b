//! The flat batch on the card.

use eyas_backend::{Error, FlatBatch, IGNORE_INDEX, Result};

use crate::backend::CudaBackend;
use crate::device::{Buffer, Ptr};

/// A flat batch on the card, with its rows that have a target listed.
///
/// One buffer of 32-bit numbers holds, each at its full length: token ids, positions, the sequence of each token,
/// targets, target rows, `cu_seqlens`, slots.
#[derive(Debug)]
pub struct CudaBatch {
    buffer: Buffer,
    max_tokens: usize,
    max_sequences: usize,
    tokens: usize,
    sequences: usize,
    target_rows: usize,
    cu_seqlens: Vec<u32>,
    max_position: usize,
    max_slot: usize,
    max_id: usize,
    max_target: usize,
}

impl CudaBatch {
    /// Tokens of the batch loaded last.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Sequences of the batch loaded last.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Rows that have a target.
    pub fn targets(&self) -> usize {
        self.target_rows
    }

    /// Where each sequence starts, and the end of the last, in host memory.
    pub fn cu_seqlens(&self) -> &[u32] {
        &self.cu_seqlens
    }

    /// The longest sequence, in tokens.
    pub fn max_seqlen(&self) -> usize {
        self.cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
    }

    /// The largest position of a token.
    pub(crate) fn max_position(&self) -> usize {
        self.max_position
    }

    fn token_array(&self, array: usize) -> Ptr {
        self.buffer.ptr().add(array * self.max_tokens * 4)
    }

    pub(crate) fn ids(&self) -> Ptr {
        self.token_array(0)
    }

    pub(crate) fn positions(&self) -> Ptr {
        self.token_array(1)
    }

    /// The number of each token's sequence.
    pub(crate) fn sequence(&self) -> Ptr {
        self.token_array(2)
    }

    pub(crate) fn target_ids(&self) -> Ptr {
        self.token_array(3)
    }

    /// The rows that have a target, from the `start`-th on.
    pub(crate) fn rows_with_target(&self, start: usize) -> Ptr {
        self.token_array(4).add(start * 4)
    }

    /// `cu_seqlens` on the card.
    pub(crate) fn starts(&self) -> Ptr {
        self.token_array(5)
    }

    pub(crate) fn slots(&self) -> Ptr {
        self.token_array(5).add((self.max_sequences + 1) * 4)
    }

    /// Checks that every number that indexes a table is inside it: a kernel would read past the end.
    pub(crate) fn check_ids(&self, op: &'static str, vocab: usize) -> Result<()> {
        check_bound(op, "token id", self.max_id, vocab)
    }

    pub(crate) fn check_targets(&self, op: &'static str, vocab: usize) -> Result<()> {
        check_bound(op, "target", self.max_target, vocab)
    }

    pub(crate) fn check_positions(&self, op: &'static str, positions: usize) -> Result<()> {
        check_bound(op, "position", self.max_position, positions)
    }

    pub(crate) fn check_slots(&self, op: &'static str, slots: usize) -> Result<()> {
        check_bound(op, "cache slot", self.max_slot, slots)
    }

    /// Checks a range of the rows that have a target.
    pub(crate) fn check_range(&self, op: &'static str, targets: &std::ops::Range<usize>) -> Result<()> {
        if targets.start <= targets.end && targets.end <= self.target_rows {
            return Ok(());
        }
        Err(Error::Shape {
            op,
            reason: format!("targets {targets:?} of a batch that has {}", self.target_rows),
        })
    }
}

fn check_bound(op: &'static str, what: &str, largest: usize, bound: usize) -> Result<()> {
    if largest < bound {
        return Ok(());
    }
    Err(Error::Shape { op, reason: format!("{what} {largest} is outside a table of {bound}") })
}

impl CudaBackend {
    pub(crate) fn create_batch(&self, max_tokens: usize, max_sequences: usize) -> Result<CudaBatch> {
        let numbers = max_tokens.checked_mul(5).and_then(|n| n.checked_add(2 * max_sequences + 1));
        let bytes = numbers.and_then(|n| n.checked_mul(4)).ok_or_else(|| Error::Shape {
            op: "new_batch",
            reason: format!("{max_tokens} tokens are more than memory can address"),
        })?;
        Ok(CudaBatch {
            buffer: self.device.alloc(bytes)?,
            max_tokens,
            max_sequences,
            tokens: 0,
            sequences: 0,
            target_rows: 0,
            cu_seqlens: vec![0],
            max_position: 0,
            max_slot: 0,
            max_id: 0,
            max_target: 0,
        })
    }

    pub(crate) fn fill_batch(&self, batch: &FlatBatch, into: &mut CudaBatch) -> Result<()> {
        let (tokens, sequences) = (batch.tokens(), batch.sequences());
        if tokens > into.max_tokens || sequences > into.max_sequences {
            return Err(Error::Batch(format!(
                "{tokens} tokens in {sequences} sequences do not fit the planned {} in {}",
                into.max_tokens, into.max_sequences
            )));
        }
        let mut numbers = vec![0u32; into.max_tokens * 5 + 2 * into.max_sequences + 1];
        let (arrays, rest) = numbers.split_at_mut(into.max_tokens * 5);
        let mut array = arrays.chunks_mut(into.max_tokens.max(1));
        let mut next = || array.next().unwrap_or_default();
        into.target_rows = 0;
        if tokens > 0 {
            next()[..tokens].copy_from_slice(batch.input_ids());
            next()[..tokens].copy_from_slice(batch.positions());
            let sequence = next();
            for (number, range) in batch.ranges().enumerate() {
                sequence[range].fill(number as u32);
            }
            let (targets, rows) = (next(), next());
            for (token, target) in batch.targets().iter().enumerate() {
                targets[token] = *target as u32;
                if *target != IGNORE_INDEX {
                    rows[into.target_rows] = token as u32;
                    into.target_rows += 1;
                }
            }
        }
        rest[..sequences + 1].copy_from_slice(batch.cu_seqlens());
        rest[into.max_sequences + 1..][..sequences].copy_from_slice(batch.slots());
        into.tokens = tokens;
        into.sequences = sequences;
        into.cu_seqlens.clear();
        into.cu_seqlens.extend_from_slice(batch.cu_seqlens());
        let largest = |values: &[u32]| values.iter().max().map_or(0, |v| *v as usize);
        into.max_id = largest(batch.input_ids());
        into.max_position = largest(batch.positions());
        into.max_slot = largest(batch.slots());
        // Negative targets other than the one to ignore wrap to numbers outside any vocabulary.
        let targets = batch.targets().iter().filter(|t| **t != IGNORE_INDEX);
        into.max_target = targets.map(|t| *t as u32 as usize).max().unwrap_or(0);
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.staging.upload(into.buffer.ptr(), &bytes)
    }
}
