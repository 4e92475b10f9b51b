//! Removal of characters that nobody means to train on, with a count of each kind.

use std::fmt;
use std::ops::AddAssign;

use crate::conversation::Sample;

/// How many characters of each kind were changed or removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CleanCounts {
    /// Line ends other than `\n`, made `\n`.
    pub line_ends: u64,
    /// Control characters, removed.
    pub control: u64,
    /// Zero-width characters, direction marks, soft hyphens and byte order marks, removed.
    pub zero_width: u64,
    /// No-break and typographic spaces, made plain spaces.
    pub spaces: u64,
    /// Replacement characters (U+FFFD), left behind by a wrong decoding, removed.
    pub replacement: u64,
    /// Spaces and tabs at the end of a line or of the text, removed.
    pub trailing: u64,
    /// Blank lines beyond one in a row, removed.
    pub blank_lines: u64,
}

impl CleanCounts {
    /// All characters changed.
    pub fn total(&self) -> u64 {
        self.named().iter().map(|(count, _)| count).sum()
    }

    fn named(&self) -> [(u64, &'static str); 7] {
        [
            (self.line_ends, "line ends"),
            (self.control, "control characters"),
            (self.zero_width, "zero-width characters"),
            (self.spaces, "unusual spaces"),
            (self.replacement, "replacement characters"),
            (self.trailing, "spaces at line ends"),
            (self.blank_lines, "blank lines"),
        ]
    }
}

impl AddAssign for CleanCounts {
    fn add_assign(&mut self, other: Self) {
        self.line_ends += other.line_ends;
        self.control += other.control;
        self.zero_width += other.zero_width;
        self.spaces += other.spaces;
        self.replacement += other.replacement;
        self.trailing += other.trailing;
        self.blank_lines += other.blank_lines;
    }
}

impl fmt::Display for CleanCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_counts(f, &self.named())
    }
}

/// Writes `3 this, 1 that`, leaving out what did not occur.
pub(crate) fn write_counts(f: &mut fmt::Formatter<'_>, named: &[(u64, &str)]) -> fmt::Result {
    let mut any = false;
    for (count, name) in named.iter().filter(|(count, _)| *count > 0) {
        write!(f, "{}{count} {name}", if any { ", " } else { "" })?;
        any = true;
    }
    if any { Ok(()) } else { f.write_str("nothing") }
}

/// Which ends of a text are trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trim {
    /// Both ends.
    Both,
    /// The start: for a prompt, whose end touches the completion.
    Start,
    /// The end: for a completion, whose start touches the prompt.
    End,
}

/// Cleans one text. Cleaning twice changes nothing more.
///
/// The zero-width joiners are kept between two characters outside ASCII, where emoji and several scripts need
/// them.
pub fn clean(text: &str, trim: Trim) -> (String, CleanCounts) {
    let mut counts = CleanCounts::default();
    let text = replace_characters(text, &mut counts);
    let mut cleaned = String::with_capacity(text.len());
    let mut blank = 0;
    let mut lines = text.split('\n').peekable();
    while let Some(line) = lines.next() {
        let last = lines.peek().is_none();
        let kept = if last && trim == Trim::Start { line } else { line.trim_end_matches([' ', '\t']) };
        counts.trailing += (line.len() - kept.len()) as u64;
        blank = if kept.is_empty() { blank + 1 } else { 0 };
        // A blank last line is the text's final line break, not a paragraph's.
        if blank > 1 && !last {
            counts.blank_lines += 1;
            continue;
        }
        cleaned.push_str(kept);
        if !last {
            cleaned.push('\n');
        }
    }
    let trimmed = match trim {
        Trim::Both => cleaned.trim(),
        Trim::Start => cleaned.trim_start(),
        Trim::End => cleaned.trim_end(),
    };
    if trimmed.len() != cleaned.len() {
        cleaned = trimmed.to_string();
    }
    (cleaned, counts)
}

fn replace_characters(text: &str, counts: &mut CleanCounts) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\n' | '\t' => out.push(character),
            '\r' => {
                counts.line_ends += 1;
                if characters.peek() != Some(&'\n') {
                    out.push('\n');
                }
            }
            '\u{0b}' | '\u{0c}' | '\u{85}' | '\u{2028}' | '\u{2029}' => {
                counts.line_ends += 1;
                out.push('\n');
            }
            '\u{fffd}' => counts.replacement += 1,
            '\u{200c}' | '\u{200d}' => {
                let joins = |c: Option<char>| c.is_some_and(is_joinable);
                if joins(out.chars().next_back()) && joins(characters.peek().copied()) {
                    out.push(character);
                } else {
                    counts.zero_width += 1;
                }
            }
            c if is_dropped(c) => counts.zero_width += 1,
            c if c.is_control() => counts.control += 1,
            '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' => {
                counts.spaces += 1;
                out.push(' ');
            }
            other => out.push(other),
        }
    }
    out
}

/// Whether a zero-width joiner beside this character can mean something.
fn is_joinable(c: char) -> bool {
    !c.is_ascii() && !c.is_whitespace() && !c.is_control() && !is_dropped(c)
}

/// Characters without width or meaning in running text; joiners are judged by their neighbours.
fn is_dropped(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}'
            | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{fffd}' | '\u{fff9}'..='\u{fffb}'
    )
}

/// Cleans every text of a row in place.
pub fn clean_sample(sample: &mut Sample) -> CleanCounts {
    let mut counts = CleanCounts::default();
    let mut apply = |text: &mut String, trim| {
        let (cleaned, changed) = clean(text, trim);
        *text = cleaned;
        counts += changed;
    };
    match sample {
        Sample::Text(text) => apply(text, Trim::Both),
        Sample::PromptCompletion { prompt, completion } => {
            apply(prompt, Trim::Start);
            apply(completion, Trim::End);
        }
        Sample::Chat { turns, .. } => turns.iter_mut().for_each(|turn| apply(&mut turn.content, Trim::Both)),
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_kind_is_changed_and_counted() {
        let (text, counts) =
            clean("\u{feff}a\u{a0}b\r\nc\u{7}\u{200b} \n\n\n\nd\u{fffd}\u{2028}e", Trim::Both);
        assert_eq!(text, "a b\nc\n\nd\ne");
        let expected = CleanCounts {
            line_ends: 2,
            control: 1,
            zero_width: 2,
            spaces: 1,
            replacement: 1,
            trailing: 1,
            blank_lines: 2,
        };
        assert_eq!(counts, expected);
        assert_eq!(counts.total(), 10);
    }

    #[test]
    fn joiners_stay_where_they_carry_meaning() {
        let family = "\u{1f468}\u{200d}\u{1f469}";
        assert_eq!(clean(family, Trim::Both).0, family);
        assert_eq!(clean("a\u{200d}b", Trim::Both).0, "ab");
    }

    #[test]
    fn the_seam_of_prompt_and_completion_is_kept() {
        let mut sample =
            Sample::PromptCompletion { prompt: "  Q: x\nA: ".into(), completion: "\n y  ".into() };
        clean_sample(&mut sample);
        let expected = Sample::PromptCompletion { prompt: "Q: x\nA: ".into(), completion: "\n y".into() };
        assert_eq!(sample, expected);
    }

    #[test]
    fn indentation_is_kept() {
        assert_eq!(clean("if x:\n\ty\n    z", Trim::Both).0, "if x:\n\ty\n    z");
    }

    proptest! {
        #[test]
        fn cleaning_is_idempotent(text in "[a\u{e9}\u{1f469} \t\n\r\u{a0}\u{200b}\u{200d}\u{fffd}\u{7}\u{2028}]{0,40}") {
            for trim in [Trim::Both, Trim::Start, Trim::End] {
                let (once, _) = clean(&text, trim);
                let (twice, counts) = clean(&once, trim);
                prop_assert_eq!(&twice, &once);
                prop_assert_eq!(counts.total(), 0);
            }
        }
    }
}
