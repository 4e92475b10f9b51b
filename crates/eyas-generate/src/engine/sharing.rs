//! Prompts that start alike are read once.
//!
//! Answers to one prompt, and conversations under one system prompt, come together. The first is read; the others wait
//! until it is past what they have in common, and copy the keys and values of that from its slot.

use eyas_backend::Backend;

use super::Engine;
use crate::Result;

/// Fewest tokens that are worth waiting for: about those that are read in the time of a step.
const WORTH_WAITING: usize = 16;

/// What the cache has, or will have, of the start of a prompt.
#[derive(Debug, PartialEq, Eq)]
enum Start {
    /// A sequence that came earlier is about to read more of it.
    Awaited,
    /// The slot holds so many of its tokens, and none holds more.
    Held { slot: usize, tokens: usize },
}

impl<B: Backend> Engine<'_, B> {
    /// Gives each prompt of which nothing was read yet what other slots hold of its start, unless it is to wait for more.
    pub(super) fn share_prompts(&mut self) -> Result<()> {
        for number in 0..self.sequences.len() {
            if !self.sequences[number].may_share {
                continue;
            }
            let Start::Held { slot, tokens } = self.start_of(number) else { continue };
            let sequence = &mut self.sequences[number];
            let own = self.slots.len(sequence.slot);
            if tokens > own {
                self.cache.copy(self.backend, slot, sequence.slot, own..tokens)?;
                self.slots.extend(sequence.slot, sequence.pending.drain(..tokens - own));
                self.reused += (tokens - own) as u64;
            }
            sequence.may_share = false;
        }
        Ok(())
    }

    fn start_of(&self, number: usize) -> Start {
        let sequence = &self.sequences[number];
        let (own, _) = self.slots.held(sequence.slot);
        // Never all, since logits come from running the last token.
        let limit = own.len() + sequence.pending.len() - 1;
        let prompt = || own.iter().chain(&sequence.pending).take(limit);
        let mut best = (sequence.slot, own.len());
        let alike = |slot: &usize| self.slots.held(*slot).1 == sequence.adapter;
        for slot in (0..self.options.slots).filter(alike) {
            let common = prompt().zip(self.slots.held(slot).0).take_while(|(a, b)| a == b).count();
            if common > best.1 {
                best = (slot, common);
            }
        }
        let (slot, tokens) = best;
        let is_worth = |common: usize| common > tokens && common >= own.len() + WORTH_WAITING;
        let is_awaited = self.sequences[..number]
            .iter()
            .filter(|earlier| earlier.produced == 0 && alike(&earlier.slot))
            .map(|earlier| self.slots.held(earlier.slot).0.iter().chain(&earlier.pending))
            .any(|will_hold| is_worth(prompt().zip(will_hold).take_while(|(a, b)| a == b).count()));
        if is_awaited { Start::Awaited } else { Start::Held { slot, tokens } }
    }
}
