//! From tokens to the text that may be shown: whole characters, and nothing of a stop text.

use eyas_data::Tokenizer;
use eyas_data::tokenizer::TextStream;

use crate::Result;

/// Watches a text that comes in pieces for stop texts, also across pieces.
///
/// ```
/// use eyas_generate::stream::StopFilter;
/// let mut filter = StopFilter::new(vec!["<HUMAN>:".into()]);
/// assert_eq!(filter.push("Rest well.\n<HU"), ("Rest well.\n".into(), false));
/// assert_eq!(filter.push("MAN>: And then?"), (String::new(), true));
/// ```
#[derive(Clone, Debug, Default)]
pub struct StopFilter {
    stops: Vec<String>,
    /// Text that may be the start of a stop text.
    held: String,
}

impl StopFilter {
    /// A filter for these texts.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes a piece. Returns the text that cannot belong to a stop text any more, and whether one was found: then
    /// the text ends before it, and nothing may be pushed afterwards.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        if self.stops.is_empty() {
            return (piece.to_owned(), false);
        }
        self.held.push_str(piece);
        if let Some(start) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(start);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| partial_suffix(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text that was held back, when no more comes.
    pub fn finish(self) -> String {
        self.held
    }
}

/// Bytes of the longest end of `text` that starts `pattern` without being all of it.
pub(crate) fn partial_suffix(text: &str, pattern: &str) -> usize {
    let longest = text.len().min(pattern.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|&len| text.as_bytes()[text.len() - len..] == pattern.as_bytes()[..len])
        .unwrap_or(0)
}

/// The text of one answer as its tokens come.
#[derive(Clone, Debug)]
pub struct AnswerStream<'t> {
    decoder: TextStream<'t>,
    filter: StopFilter,
}

impl<'t> AnswerStream<'t> {
    /// A stream that leaves special tokens out and ends before the first of the stop texts.
    pub fn new(tokenizer: &'t Tokenizer, stops: Vec<String>) -> Self {
        Self { decoder: tokenizer.stream(true), filter: StopFilter::new(stops) }
    }

    /// Takes a token. Returns the text that may be shown now, and whether a stop text was found.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, token: u32) -> Result<(String, bool)> {
        let piece = self.decoder.push(token)?;
        Ok(if piece.is_empty() { (piece, false) } else { self.filter.push(&piece) })
    }

    /// Returns what was held back, and whether a stop text was found in it.
    ///
    /// # Errors
    /// As [`AnswerStream::push`].
    pub fn finish(mut self) -> Result<(String, bool)> {
        let (mut text, stopped) = self.filter.push(&self.decoder.finish()?);
        if !stopped {
            text.push_str(&self.filter.finish());
        }
        Ok((text, stopped))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_only_looks_like_a_stop_text_is_given_out() {
        let mut filter = StopFilter::new(vec!["END".into(), "Ende".into()]);
        assert_eq!(filter.push("The EN"), ("The ".into(), false));
        assert_eq!(filter.push("d of it E"), ("ENd of it ".into(), false));
        assert_eq!(filter.finish(), "E");
    }

    #[test]
    fn the_earliest_stop_text_counts() {
        let mut filter = StopFilter::new(vec!["three".into(), "two".into()]);
        assert_eq!(filter.push("one two three"), ("one ".into(), true));
    }

    #[test]
    fn stop_texts_of_several_bytes_a_character_are_held_whole() {
        let mut filter = StopFilter::new(vec!["再見。".into()]);
        assert_eq!(filter.push("好。再見"), ("好。".into(), false));
        assert_eq!(filter.push("了。"), ("再見了。".into(), false));
        // The first byte of two different characters is the same: nothing is cut inside a character.
        assert_eq!(filter.push("冊"), ("冊".into(), false));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in "[ab<x ]{0,40}", cuts in prop::collection::vec(1usize..6, 0..40)) {
            let stops = vec!["<ab".to_string(), "aab".to_string(), "xx<".to_string()];
            let end = stops.iter().filter_map(|stop| text.find(stop)).min();
            let mut filter = StopFilter::new(stops);
            let mut shown = String::new();
            let mut stopped = false;
            let mut rest = text.as_str();
            let mut cuts = cuts.into_iter();
            while !rest.is_empty() && !stopped {
                let (piece, after) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
                let (given, found) = filter.push(piece);
                shown.push_str(&given);
                stopped = found;
                rest = after;
            }
            if !stopped {
                shown.push_str(&filter.finish());
            }
            prop_assert_eq!(stopped, end.is_some());
            prop_assert_eq!(shown, &text[..end.unwrap_or(text.len())]);
        }
    }
}
