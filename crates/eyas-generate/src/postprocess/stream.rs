//! Tidying while an answer comes: what may be shown now and will not be cut later.

use super::sentence::ends;
use super::{HEADERS, Tidy, fold_lines, without_header};
use crate::stream::partial_suffix;

/// Gives out an answer sentence by sentence, as soon as no rule can cut the sentence any more.
///
/// All pieces together are what [`Tidy::apply`] makes of the whole answer.
///
/// ```
/// use eyas_generate::postprocess::Tidy;
/// let mut stream = Tidy::recipe().stream();
/// assert_eq!(stream.push("Rest well. "), "");
/// assert_eq!(stream.push("Take"), "Rest well.");
/// assert_eq!(stream.push(" care!"), "");
/// assert_eq!(stream.finish(false), "");
/// ```
#[derive(Clone, Debug)]
pub struct TidyStream {
    tidy: Tidy,
    raw: String,
    /// Bytes of the tidied answer that were given out.
    shown: usize,
    /// Whether something came that may end a sentence or a line since the last look.
    may_end: bool,
}

impl TidyStream {
    pub(super) fn new(tidy: Tidy) -> Self {
        Self { tidy, raw: String::new(), shown: 0, may_end: false }
    }

    /// Takes a piece of the answer and returns what may be shown now, which may be nothing.
    pub fn push(&mut self, piece: &str) -> String {
        self.raw.push_str(piece);
        self.may_end |= piece.contains(['.', '!', '?', '…', '。', '！', '？', '\n', '\r']);
        if !self.may_end || self.raw.ends_with(char::is_whitespace) {
            return String::new();
        }
        let safe = self.tidy.safe(&self.raw);
        // Looking again pays only after the next mark, unless the last one still waits for what follows it.
        self.may_end = !safe.1;
        self.give(&safe.0)
    }

    /// Returns the rest of the tidied answer. `complete` says that the model ended the answer itself, so that a last
    /// sentence without a full stop stays.
    pub fn finish(mut self, complete: bool) -> String {
        self.tidy.unfinished &= !complete;
        let text = self.tidy.apply(&self.raw);
        self.give(&text)
    }

    fn give(&mut self, text: &str) -> String {
        let new = text.get(self.shown..).unwrap_or_default().to_owned();
        self.shown += new.len();
        new
    }
}

impl Tidy {
    /// The start of the tidied answer that no continuation of `raw` can change, and whether nothing in what is left
    /// can end a sentence before more marks come.
    fn safe(&self, raw: &str) -> (String, bool) {
        let folded = fold_lines(raw);
        let text = without_header(&folded);
        // A header may be about to be repeated, and lines may still be folded before it.
        if HEADERS.iter().any(|header| header.starts_with(text)) {
            return (String::new(), false);
        }
        let limit = self.marker(text).unwrap_or_else(|| {
            let speakers = self.speakers.iter().map(|speaker| format!("\n{speaker}"));
            let held =
                self.markers.iter().cloned().chain(speakers).map(|marker| partial_suffix(text, &marker));
            text.len() - held.max().unwrap_or(0)
        });
        let limit = self.closing(&text[..limit]).unwrap_or(limit);
        // What ends at the very end may turn out to go on.
        let end = ends(text).take_while(|&end| end <= limit && end < text.len()).last().unwrap_or(0);
        let waits = ends(text).last() == Some(text.len());
        (text[..end].to_owned(), !waits)
    }
}
