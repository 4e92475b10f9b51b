//! Decoding ids as they come.

use super::Tokenizer;
use crate::error::Result;

/// A character has at most four bytes, so as many byte tokens; more without a whole character are not text.
const MOST_PENDING: usize = 8;

/// Turns ids into text one at a time and gives out whole characters only.
///
/// The text given out, joined, is what [`Tokenizer::decode`] makes of all ids.
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The ids that the next text depends on: those of the last piece, and those not yet given out.
    ids: Vec<u32>,
    /// How many of `ids` are given out.
    given: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), given: 0 }
    }

    /// Takes the next id and returns the text that is complete with it, which may be empty.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.take(false)
    }

    /// Returns the text of the last ids, with U+FFFD for a character that was not completed.
    ///
    /// # Errors
    /// As [`TextStream::push`].
    pub fn finish(mut self) -> Result<String> {
        self.take(true)
    }

    fn take(&mut self, all: bool) -> Result<String> {
        // The piece before is decoded along, since decoders treat the start of a text in their own way.
        let before = self.tokenizer.decode(&self.ids[..self.given], self.skip_special)?;
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        let cut = text.ends_with(char::REPLACEMENT_CHARACTER);
        if cut && !all && self.ids.len() - self.given < MOST_PENDING {
            return Ok(String::new());
        }
        let shared = before.chars().zip(text.chars()).take_while(|(a, b)| a == b);
        let new = text[shared.map(|(a, _)| a.len_utf8()).sum()..].to_string();
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        Ok(new)
    }
}
