//! What each slot of the cache holds, and which one a new prompt gets.

use super::adapters::AdapterId;

/// A slot: the tokens whose keys and values it holds.
#[derive(Debug, Default)]
struct Slot {
    tokens: Vec<u32>,
    /// Keys and values depend on the adapter, too.
    adapter: Option<AdapterId>,
    is_taken: bool,
    /// When it was last let go.
    released: u64,
}

/// All slots of a cache.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    clock: u64,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self { slots: (0..count).map(|_| Slot::default()).collect(), clock: 0 }
    }

    /// Takes the free slot that holds most of the prompt's start, of equals the one let go longest ago. Returns its
    /// number and how many tokens of the prompt it holds: never all, since logits come from running the last one.
    pub(super) fn take(&mut self, prompt: &[u32], adapter: Option<AdapterId>) -> Option<(usize, usize)> {
        let usable = |slot: &Slot| {
            let limit = if slot.adapter == adapter { prompt.len().saturating_sub(1) } else { 0 };
            slot.tokens.iter().zip(&prompt[..limit]).take_while(|(a, b)| a == b).count()
        };
        let free = self.slots.iter().enumerate().filter(|(_, slot)| !slot.is_taken);
        let (number, reused) = free
            .map(|(number, slot)| (number, usable(slot), slot.released))
            .max_by_key(|&(number, reused, released)| (reused, std::cmp::Reverse((released, number))))
            .map(|(number, reused, _)| (number, reused))?;
        let slot = &mut self.slots[number];
        slot.tokens.truncate(reused);
        slot.adapter = adapter;
        slot.is_taken = true;
        Some((number, reused))
    }

    /// Lets a slot go; what it holds stays until another sequence needs the place.
    pub(super) fn release(&mut self, number: usize) {
        self.clock += 1;
        let slot = &mut self.slots[number];
        slot.is_taken = false;
        slot.released = self.clock;
    }

    /// Lets a slot go, and what it holds.
    pub(super) fn discard(&mut self, number: usize) {
        self.slots[number].tokens.clear();
        self.release(number);
    }

    pub(super) fn is_free(&self, number: usize) -> bool {
        !self.slots[number].is_taken
    }

    /// Tokens that a slot holds.
    pub(super) fn len(&self, number: usize) -> usize {
        self.slots[number].tokens.len()
    }

    /// Tokens that a slot holds, and the adapter that their keys and values are of.
    pub(super) fn held(&self, number: usize) -> (&[u32], Option<AdapterId>) {
        let slot = &self.slots[number];
        (&slot.tokens, slot.adapter)
    }

    /// Notes tokens that were written to the cache.
    pub(super) fn extend(&mut self, number: usize, tokens: impl Iterator<Item = u32>) {
        self.slots[number].tokens.extend(tokens);
    }

    /// Empties the slots that hold an adapter's keys and values.
    pub(super) fn forget(&mut self, adapter: AdapterId) {
        for slot in self.slots.iter_mut().filter(|slot| slot.adapter == Some(adapter)) {
            slot.tokens.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(contents: &[&[u32]]) -> Slots {
        let mut slots = Slots::new(contents.len());
        for (number, tokens) in contents.iter().enumerate() {
            slots.take(&[0], None).unwrap();
            slots.extend(number, tokens.iter().copied());
        }
        (0..contents.len()).for_each(|number| slots.release(number));
        slots
    }

    #[test]
    fn the_longest_common_start_wins() {
        let mut slots = filled(&[&[1, 2], &[1, 2, 3, 4], &[9]]);
        assert_eq!(slots.take(&[1, 2, 3, 7], None), Some((1, 3)));
        assert_eq!(slots.len(1), 3);
        assert_eq!(slots.take(&[1, 2, 3, 7], None), Some((0, 2)));
    }

    #[test]
    fn the_last_token_of_a_prompt_is_always_run() {
        assert_eq!(filled(&[&[1, 2, 3]]).take(&[1, 2, 3], None), Some((0, 2)));
    }

    #[test]
    fn without_a_common_start_the_oldest_goes() {
        let mut slots = filled(&[&[1], &[2], &[3]]);
        assert_eq!(slots.take(&[7, 7], None), Some((0, 0)));
        slots.release(0);
        assert_eq!(slots.take(&[8, 8], None), Some((1, 0)));
        assert_eq!(slots.take(&[8, 8], None), Some((2, 0)));
        assert_eq!(slots.take(&[8, 8], None), Some((0, 0)));
        assert_eq!(slots.take(&[8, 8], None), None);
    }
}
