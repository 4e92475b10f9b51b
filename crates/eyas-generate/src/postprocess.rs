//! Tidying of answers, as the recipe does it.
//!
//! - Everything from the first invented turn or template marker on is cut.
//! - A closing phrase ("Goodbye", "Take care", "Best wishes") that stands as a sentence of its own is cut, with what
//!   follows it; "Take care of your sleep" is advice and stays.
//! - An unfinished last sentence and a dangling list number are cut.
//! - Runs of blank lines become one, and spaces at the ends of lines go.
//!
//! No rule but the first may leave nothing: an answer that is one unfinished sentence, or "Goodbye!" alone, stays.
//! Tidying twice changes nothing more.

mod sentence;
mod stream;

use sentence::{ends, has_words, list_marker, sentence_starts, stray_number};
pub use stream::TidyStream;

/// The line that the recipe puts between the turns it remembers and the new question.
pub const NEXT_QUESTION: &str = "Here, is the next QUESTION:";

/// Markers of turns and of chat templates. Nothing of an answer follows one.
const MARKERS: [&str; 24] = [
    "<HUMAN>",
    "<ASSISTANT>",
    NEXT_QUESTION,
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "<s>",
    "</s>",
    "### Instruction:",
];

/// Names that begin an invented turn where they begin a line.
const SPEAKERS: [&str; 12] = [
    "HUMAN:",
    "Human:",
    "USER:",
    "User:",
    "ASSISTANT:",
    "Assistant:",
    "QUESTION:",
    "Question:",
    "Q:",
    "### Human:",
    "### Assistant:",
    "### User:",
];

/// The assistant's own header, which a model may repeat before its answer.
const HEADERS: [&str; 4] = ["<ASSISTANT>:", "<ASSISTANT>", "ASSISTANT:", "Assistant:"];

/// Closings that count where they stand alone as a sentence or a line.
const CLOSINGS: [&str; 10] = [
    "Goodbye",
    "Good bye",
    "Good-bye",
    "Bye",
    "Bye bye",
    "Farewell",
    "Take care",
    "All the best",
    "再見",
    "保重",
];

/// Closings of a letter, which words may follow: "Best wishes to you all".
const SIGNATURES: [&str; 7] = [
    "Best wishes",
    "Best regards",
    "Kind regards",
    "Warm regards",
    "Warm wishes",
    "Yours sincerely",
    "Sincerely yours",
];

/// What is cut from answers.
///
/// ```
/// use eyas_generate::postprocess::Tidy;
/// let answer = "Try these:\n1. Walk every day.\n\n\n2. Sleep well.\n3.\n<HUMAN>: And then?";
/// assert_eq!(Tidy::recipe().apply(answer), "Try these:\n1. Walk every day.\n\n2. Sleep well.");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tidy {
    /// Texts that nothing of an answer follows, wherever they are.
    pub markers: Vec<String>,
    /// The same at the start of a line.
    pub speakers: Vec<String>,
    /// Closings that stand alone as a sentence.
    pub closings: Vec<String>,
    /// Closings that words may follow.
    pub signatures: Vec<String>,
    /// Cut a last sentence that does not end. Turn it off for an answer that the model ended itself.
    pub unfinished: bool,
}

impl Default for Tidy {
    fn default() -> Self {
        Self::recipe()
    }
}

impl Tidy {
    /// The recipe's rules.
    pub fn recipe() -> Self {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Self {
            markers: owned(&MARKERS),
            speakers: owned(&SPEAKERS),
            closings: owned(&CLOSINGS),
            signatures: owned(&SIGNATURES),
            unfinished: true,
        }
    }

    /// The tidied answer.
    pub fn apply(&self, answer: &str) -> String {
        let text = fold_lines(answer);
        let text = without_header(&text);
        let mut text = text[..self.marker(text).unwrap_or(text.len())].trim_end();
        loop {
            let before = text.len();
            text = shorten(text, self.closing(text));
            if self.unfinished {
                text = shorten(text, unfinished(text));
            }
            text = shorten(text, dangling(text));
            if text.len() == before {
                return text.to_owned();
            }
        }
    }

    /// Tidies an answer while it comes.
    pub fn stream(self) -> TidyStream {
        TidyStream::new(self)
    }

    /// Where the first marker begins.
    fn marker(&self, text: &str) -> Option<usize> {
        let anywhere = self.markers.iter().filter_map(|marker| text.find(marker.as_str()));
        let at_line = self.speakers.iter().filter_map(|speaker| {
            let starts = text.match_indices(speaker.as_str()).map(|(start, _)| start);
            // At the very start it would leave nothing of an answer that may well be one.
            starts.filter(|&start| start > 0).find(|&start| text[..start].ends_with('\n'))
        });
        anywhere.chain(at_line).min()
    }

    /// Where the first closing begins that leaves something before it.
    fn closing(&self, text: &str) -> Option<usize> {
        let mut starts = sentence_starts(text);
        starts.find(|&start| {
            let sentence = text[start..].trim_start_matches(['*', '_', ' ']);
            !text[..start].trim().is_empty() && self.is_closing(sentence)
        })
    }

    fn is_closing(&self, sentence: &str) -> bool {
        let after = |phrases: &[String]| {
            let lengths = phrases.iter().filter_map(|phrase| starts_with_phrase(sentence, phrase));
            lengths.max().map(|length| &sentence[length..])
        };
        if after(&self.signatures).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric)) {
            return true;
        }
        let Some(rest) = after(&self.closings) else { return false };
        let rest =
            [" for now", " now", " then"].iter().find_map(|word| rest.strip_prefix(word)).unwrap_or(rest);
        if let Some(more) = [" and ", ", and ", " & ", ", "].iter().find_map(|word| rest.strip_prefix(word))
            && self.is_closing(more)
        {
            return true;
        }
        let mut characters = rest.chars();
        match characters.next() {
            None | Some('\n' | '!' | '…' | '。' | '！' | '，' | '*' | '_' | '"' | '”') => true,
            Some('.') => characters.next().is_none_or(|next| !next.is_alphanumeric()),
            // "Take care, friend." closes; "Take care, as some medicines ..." does not.
            Some(',') => {
                let line = characters.as_str().split(['\n', '.', '!', '?', '…', '。', '！']).next();
                line.unwrap_or_default().split_whitespace().count() <= 3
            }
            _ => false,
        }
    }
}

/// Tidies an answer by the recipe's rules.
pub fn postprocess(answer: &str) -> String {
    Tidy::recipe().apply(answer)
}

/// Bytes of a phrase at the start of a text, whatever the case of its ASCII letters.
fn starts_with_phrase(text: &str, phrase: &str) -> Option<usize> {
    let head = text.get(..phrase.len())?;
    head.eq_ignore_ascii_case(phrase).then_some(phrase.len())
}

/// Cuts a text, unless nothing would be left.
fn shorten(text: &str, end: Option<usize>) -> &str {
    let cut = text[..end.unwrap_or(text.len())].trim_end();
    if cut.is_empty() { text } else { cut }
}

/// Folds blank lines and takes spaces off the ends of lines and of the text.
fn fold_lines(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    let mut blank = false;
    for line in text.replace("\r\n", "\n").split(['\n', '\r']) {
        let line = line.trim_end();
        if line.is_empty() {
            blank = !folded.is_empty();
            continue;
        }
        if !folded.is_empty() {
            folded.push_str(if blank { "\n\n" } else { "\n" });
        }
        let line = if folded.is_empty() { line.trim_start() } else { line };
        folded.push_str(line);
        blank = false;
    }
    folded
}

/// The text after any repeated headers of the assistant.
fn without_header(mut text: &str) -> &str {
    while let Some(rest) = HEADERS.iter().find_map(|header| text.strip_prefix(header)) {
        text = rest.trim_start();
    }
    text
}

/// Where to cut an unfinished last sentence.
fn unfinished(text: &str) -> Option<usize> {
    let last = ends(text).last()?;
    has_words(&text[last..]).then_some(last)
}

/// Where to cut a list number or bullet that nothing follows.
fn dangling(text: &str) -> Option<usize> {
    let line = text.rfind('\n').map_or(0, |at| at + 1);
    if list_marker(&text[line..]).is_some_and(|marker| !has_words(&text[line + marker..])) {
        return Some(line);
    }
    stray_number(text)
}

#[cfg(test)]
mod tests;
