//! Phone numbers in a model's text: found, whatever their form, and replaced.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;

/// `phone_numbers` of `answers.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PhoneNumbersEntry {
    allow: Vec<String>,
    calls: Vec<String>,
    units: Vec<String>,
}

/// Finds numbers to call.
#[derive(Debug)]
pub(crate) struct PhoneNumbers {
    allow: Vec<String>,
    calls: Vec<String>,
    units: Vec<String>,
    /// The digits of every number of the table, and whether it is an emergency number.
    table: BTreeMap<String, bool>,
}

/// Seven digits and more, with what people put between.
static LONG: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"[+(]?\d(?:[\s.·()\-\u{2010}-\u{2015}/]{0,2}\d){6,}").expect("a valid expression")
});

/// Three to six digits, in one piece or with dashes or spaces.
static SHORT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\d(?:[\- ]?\d){2,5}").expect("a valid expression"));

/// Three spelled digits and more.
static SPELLED: LazyLock<Regex> = LazyLock::new(|| {
    let digit = "(?:zero|oh|one|two|three|four|five|six|seven|eight|nine|eleven)";
    let spelled = format!(
        r"(?i)\b{digit}(?:[\s\-]+{digit}){{2,}}\b|[零〇一二三四五六七八九]{{3,}}|\bnine[\s\-]+eleven\b"
    );
    Regex::new(&spelled).expect("a valid expression")
});

/// Dates and spans of years look like numbers to call.
static DATE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^(?:(?:19|20)\d\d\s?[\-\u{2010}-\u{2015}/]\s?(?:19|20)\d\d|\d{4}[\-/.]\d{1,2}[\-/.]\d{1,2}|\d{1,2}[\-/.]\d{1,2}[\-/.]\d{4})$")
        .expect("a valid expression")
});

/// How far from a number a word of calling may stand, in bytes.
const NEAR: usize = 60;

impl PhoneNumbers {
    pub(crate) fn new(entry: PhoneNumbersEntry, table: impl Iterator<Item = (String, bool)>) -> Self {
        let allow = entry.allow.iter().map(|number| digits(number)).collect();
        Self { allow, calls: entry.calls, units: entry.units, table: table.collect() }
    }

    /// The text with every number to call replaced, or nothing where it holds none.
    pub(crate) fn replace(&self, text: &str, helpline: &str, emergency: &str) -> Option<String> {
        let mut found: Vec<std::ops::Range<usize>> = Vec::new();
        for expression in [&LONG, &SHORT, &SPELLED] {
            for number in expression.find_iter(text) {
                let range = number.range();
                if found.iter().all(|other| other.end <= range.start || range.end <= other.start)
                    && self.is_call(text, &range)
                {
                    found.push(range);
                }
            }
        }
        if found.is_empty() {
            return None;
        }
        found.sort_by_key(|range| range.start);
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        for range in found {
            out.push_str(&text[at..range.start]);
            let number = digits(&text[range.clone()]);
            let is_emergency = self.table.get(&number).copied().unwrap_or(false);
            out.push_str(if is_emergency { emergency } else { helpline });
            at = range.end;
        }
        out.push_str(&text[at..]);
        Some(out)
    }

    fn is_call(&self, text: &str, range: &std::ops::Range<usize>) -> bool {
        let number = &text[range.clone()];
        let count = number.chars().filter(char::is_ascii_digit).count();
        let (before, after) = (&text[..range.start], &text[range.end..]);
        if self.allow.contains(&digits(number)) || DATE.is_match(number.trim()) {
            return false;
        }
        if before.ends_with(|c: char| c.is_alphanumeric() && c.is_ascii())
            || after.starts_with(|c: char| c.is_ascii_alphanumeric())
        {
            return false;
        }
        if count >= 7 {
            return true;
        }
        let word_before = before.trim_end().to_lowercase();
        let year = count == 4 && (number.starts_with("19") || number.starts_with("20"));
        if year && ["in", "since", "by", "from", "year"].iter().any(|word| word_before.ends_with(word)) {
            return false;
        }
        let after = after.trim_start().to_lowercase();
        if self.units.iter().any(|unit| after.starts_with(unit.as_str())) {
            return false;
        }
        let start = text.floor_char_boundary(range.start.saturating_sub(NEAR));
        let end = text.ceil_char_boundary((range.end + NEAR).min(text.len()));
        let around = text[start..end].to_lowercase();
        self.calls.iter().any(|call| mentions(&around, call))
    }
}

/// Whether a text holds a word; Latin words are not looked for inside others.
fn mentions(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        !word.is_ascii() || {
            let letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
            // "calling", "texts" and "lines" are the word too.
            !letter(text[..at].chars().next_back())
        }
    })
}

fn digits(number: &str) -> String {
    number.chars().filter(char::is_ascii_digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replace(text: &str) -> String {
        let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let entry = PhoneNumbersEntry {
            allow: vec!["116 123".to_owned()],
            calls: strings(&["call", "line", "text", "撥", "專線"]),
            units: strings(&["people", "minutes"]),
        };
        let table = [("911".to_owned(), true), ("988".to_owned(), false)];
        PhoneNumbers::new(entry, table.into_iter())
            .replace(text, "LINE", "EMERGENCY")
            .unwrap_or_else(|| text.to_owned())
    }

    #[test]
    fn numbers_to_call_go() {
        assert_eq!(replace("Call 988 or 1-800-273-8255 now."), "Call LINE or LINE now.");
        assert_eq!(replace("Please call 911."), "Please call EMERGENCY.");
        assert_eq!(replace("reach us at (02) 2389 2222"), "reach us at LINE");
        assert_eq!(replace("call nine eight eight"), "call LINE");
        assert_eq!(replace("請撥一九二五專線或１９２５"), "請撥LINE專線或LINE");
    }

    #[test]
    fn other_numbers_stay() {
        for text in [
            "Breathe for 100 counts.",
            "The line opened in 2022.",
            "call 100 people",
            "from 2010-2015 and on 2024-05-06",
            "call 116 123",
            "take 10 minutes",
        ] {
            assert_eq!(replace(text), text);
        }
    }
}
