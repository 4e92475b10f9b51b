//! Replacement of personal data by placeholders: e-mail addresses, web addresses, telephone, card and
//! identity numbers, and @handles.
//!
//! It finds what has a form. It does not find names, places, employers or dates of birth: a text that tells
//! whose story it is must be read by a person. Toll-free numbers and short codes are kept, because the
//! helplines that a careful answer names look like them and no person's own telephone does.

use std::fmt;
use std::ops::AddAssign;
use std::sync::LazyLock;

use regex::{Captures, Regex};

use crate::clean::write_counts;
use crate::conversation::Sample;

/// How many of each kind were replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnonymiseCounts {
    /// `[EMAIL]`
    pub emails: u64,
    /// `[URL]`
    pub urls: u64,
    /// `[PHONE]`
    pub phones: u64,
    /// `[CARD]`: payment card numbers, by their length and check digit.
    pub cards: u64,
    /// `[ID]`: IBANs, and numbers in the form of a United States social security number.
    pub ids: u64,
    /// `[HANDLE]`
    pub handles: u64,
}

impl AnonymiseCounts {
    /// All replacements.
    pub fn total(&self) -> u64 {
        self.named().iter().map(|(count, _)| count).sum()
    }

    fn named(&self) -> [(u64, &'static str); 6] {
        [
            (self.emails, "e-mail addresses"),
            (self.urls, "web addresses"),
            (self.phones, "telephone numbers"),
            (self.cards, "card numbers"),
            (self.ids, "identity numbers"),
            (self.handles, "handles"),
        ]
    }
}

impl AddAssign for AnonymiseCounts {
    fn add_assign(&mut self, other: Self) {
        self.emails += other.emails;
        self.urls += other.urls;
        self.phones += other.phones;
        self.cards += other.cards;
        self.ids += other.ids;
        self.handles += other.handles;
    }
}

impl fmt::Display for AnonymiseCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_counts(f, &self.named())
    }
}

struct Patterns {
    email: Regex,
    url: Regex,
    iban: Regex,
    number: Regex,
    handle: Regex,
}

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    let compile = |pattern| Regex::new(pattern).expect("the pattern is tested");
    Patterns {
        email: compile(r"(?i)\b[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b"),
        url: compile(r#"(?i)\b(?:https?://|www\.)[^\s<>"'\]]*[^\s<>"'\].,;:!?)]"#),
        iban: compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
        number: compile(r"[+(]?\b[0-9](?:[ .()/-]{0,2}[0-9]){6,22}\b"),
        handle: compile(r"(^|[^\w@./])@([A-Za-z_][A-Za-z0-9_.]{0,29}[A-Za-z0-9_])"),
    }
});

/// Replaces personal data in one text. Doing it twice changes nothing more.
///
/// ```
/// use eyas_data::anonymise::anonymise;
/// let (text, counts) = anonymise("Write to jo@example.org or call +44 20 7946 0958.");
/// assert_eq!(text, "Write to [EMAIL] or call [PHONE].");
/// assert_eq!(counts.total(), 2);
/// ```
pub fn anonymise(text: &str) -> (String, AnonymiseCounts) {
    let mut counts = AnonymiseCounts::default();
    let patterns = &*PATTERNS;
    let mut count = |counter: fn(&mut AnonymiseCounts) -> &mut u64, placeholder: &str| {
        *counter(&mut counts) += 1;
        placeholder.to_string()
    };
    // Addresses come first, so that a number or an @ inside them is not taken on its own.
    let text = patterns.url.replace_all(text, |_: &Captures| count(|c| &mut c.urls, "[URL]"));
    let text = patterns.email.replace_all(&text, |_: &Captures| count(|c| &mut c.emails, "[EMAIL]"));
    let text = patterns.iban.replace_all(&text, |_: &Captures| count(|c| &mut c.ids, "[ID]"));
    let text = patterns.number.replace_all(&text, |found: &Captures| match judge_number(&found[0]) {
        Number::Card => count(|c| &mut c.cards, "[CARD]"),
        Number::Id => count(|c| &mut c.ids, "[ID]"),
        Number::Phone => count(|c| &mut c.phones, "[PHONE]"),
        Number::Plain => found[0].to_string(),
    });
    let text = patterns.handle.replace_all(&text, |found: &Captures| {
        format!("{}{}", &found[1], count(|c| &mut c.handles, "[HANDLE]"))
    });
    (text.into_owned(), counts)
}

/// Replaces personal data in every text of a row, in place.
pub fn anonymise_sample(sample: &mut Sample) -> AnonymiseCounts {
    let mut counts = AnonymiseCounts::default();
    let mut apply = |text: &mut String| {
        let (changed, found) = anonymise(text);
        *text = changed;
        counts += found;
    };
    match sample {
        Sample::Text(text) => apply(text),
        Sample::PromptCompletion { prompt, completion } => {
            apply(prompt);
            apply(completion);
        }
        Sample::Chat { turns, .. } => turns.iter_mut().for_each(|turn| apply(&mut turn.content)),
    }
    counts
}

#[derive(Debug, PartialEq)]
enum Number {
    Card,
    Id,
    Phone,
    Plain,
}

/// Tells telephone, card and identity numbers from years, dates and quantities by their groups of digits.
fn judge_number(found: &str) -> Number {
    const TOLL_FREE: [&str; 7] = ["800", "833", "844", "855", "866", "877", "888"];
    let groups: Vec<&str> = found.split(|c: char| !c.is_ascii_digit()).filter(|g| !g.is_empty()).collect();
    let digits: String = groups.concat();
    let sizes: Vec<usize> = groups.iter().map(|g| g.len()).collect();
    if (13..=19).contains(&digits.len()) && luhn(&digits) && sizes.iter().all(|&n| n >= 3) {
        return Number::Card;
    }
    if sizes == [3, 2, 4] {
        return Number::Id;
    }
    if digits.len() > 15 {
        return Number::Plain;
    }
    let national = digits.strip_prefix('1').filter(|rest| rest.len() == 10).unwrap_or(&digits);
    if national.len() == 10 && TOLL_FREE.iter().any(|code| national.starts_with(code)) {
        return Number::Plain;
    }
    if found.starts_with('+') {
        return Number::Phone;
    }
    // A round number in groups of three is a quantity.
    if digits.ends_with("000") && sizes[1..].iter().all(|&n| n == 3) {
        return Number::Plain;
    }
    let phone = match sizes.as_slice() {
        [n] => *n == 10 || *n == 11,
        [3, 4] => true,
        [3..=5, 5..=8] => true,
        [first, .., last] if sizes.len() >= 3 => {
            let date = sizes.contains(&4) && sizes.len() == 3 && sizes.iter().all(|&n| n == 4 || n <= 2);
            let pairs = sizes.iter().all(|&n| n == 2);
            !date
                && digits.len() >= 9
                && if pairs { digits.starts_with('0') } else { *last >= 3 && *first <= 5 }
        }
        _ => false,
    };
    if phone { Number::Phone } else { Number::Plain }
}

/// The check digit of payment cards (ISO/IEC 7812).
fn luhn(digits: &str) -> bool {
    let sum: u32 = digits.bytes().rev().enumerate().fold(0, |sum, (i, digit)| {
        let value = u32::from(digit - b'0') * if i % 2 == 1 { 2 } else { 1 };
        sum + value / 10 + value % 10
    });
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(text: &str) -> String {
        anonymise(text).0
    }

    #[test]
    fn personal_data_become_placeholders() {
        for (text, expected) in [
            ("mail me: a.b+c@mail.example.co.uk.", "mail me: [EMAIL]."),
            ("see https://example.org/a?b=1, or www.example.com.", "see [URL], or [URL]."),
            ("call (555) 012-3456 now", "call [PHONE] now"),
            ("call 555-0134", "call [PHONE]"),
            ("call 07700 900123", "call [PHONE]"),
            ("call 5550123456", "call [PHONE]"),
            ("appelez 01 23 45 67 89", "appelez [PHONE]"),
            ("+49 (30) 901820", "[PHONE]"),
            ("card 4111 1111 1111 1111", "card [CARD]"),
            ("number 078-05-1120", "number [ID]"),
            ("DE89 3704 0044 0532 0130 00", "[ID]"),
            ("thanks @some_one!", "thanks [HANDLE]!"),
        ] {
            assert_eq!(replaced(text), expected, "{text}");
            assert_eq!(replaced(expected), expected, "a second pass over {text}");
        }
    }

    #[test]
    fn other_numbers_and_helplines_stay() {
        for text in [
            "call or text 988",
            "call 116 123, day or night",
            "1-800-273-8255",
            "in 2019-2020 and 1999 2000",
            "on 2020-01-15 or 15/01/2020",
            "10 20 30 40 of 100 000 000 people",
            "1,000,000 people",
            "3.14159265358979",
            "half @ 3 pm",
            "4111 1111 1111 1112 is no card",
        ] {
            assert_eq!(replaced(text), text);
        }
    }

    #[test]
    fn every_text_of_a_row_is_treated_and_counted() {
        let mut sample =
            Sample::PromptCompletion { prompt: "a@b.org".into(), completion: "c@d.org and @e_f".into() };
        let counts = anonymise_sample(&mut sample);
        assert_eq!((counts.emails, counts.handles), (2, 1));
        assert_eq!(counts.to_string(), "2 e-mail addresses, 1 handles");
        assert_eq!(sample.texts(), ["[EMAIL]", "[EMAIL] and [HANDLE]"]);
    }
}
