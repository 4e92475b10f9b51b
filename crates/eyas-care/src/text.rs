//! Text as the rules see it: folded, cut into tokens, spelled plainly.
//!
//! Compatibility forms, accents, look-alike letters, zero-width characters and case are folded; traditional characters
//! become simplified ones. A Latin word is one token and a Chinese character is one, so that a pattern is written alike
//! in both languages. Punctuation stays as tokens: `,` may stand inside a thought, `.` and `?` end it, `"` quotes.

mod fold;
mod spelling;

pub(crate) use fold::{fold_case, fold_char, is_invisible};
pub(crate) use spelling::Spelling;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Longer texts are judged by their beginning and end, so that a huge message costs no more than a long one.
const LONGEST_HALF: usize = 12_000;

/// A token, folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// The word, the character, or the punctuation.
    pub(crate) text: String,
    /// Whether it follows the last token without a space.
    pub(crate) glued: bool,
}

impl Token {
    fn new(text: impl Into<String>, glued: bool) -> Self {
        Self { text: text.into(), glued }
    }

    /// The end of a sentence.
    pub(crate) fn stop() -> Self {
        Self::new(".", true)
    }

    /// Hides a word: no pattern can name it any more. Marks stay.
    pub(crate) fn mask(&mut self) {
        if !self.is_mark() {
            self.text = "\u{25a2}".to_owned();
        }
    }

    /// `.` or `?`: ends a sentence.
    pub(crate) fn is_stop(&self) -> bool {
        matches!(self.text.as_str(), "." | "?")
    }

    /// Punctuation of any kind.
    pub(crate) fn is_mark(&self) -> bool {
        matches!(self.text.as_str(), "." | "?" | "," | "\"")
    }

    /// One Chinese character.
    pub(crate) fn is_han(&self) -> bool {
        let mut chars = self.text.chars();
        chars
            .next()
            .is_some_and(|c| matches!(c as u32, 0x3400..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF))
            && chars.next().is_none()
    }

    /// Digits only.
    pub(crate) fn is_number(&self) -> bool {
        self.text.bytes().all(|b| b.is_ascii_digit())
    }
}

/// Cuts a text into folded tokens, spelled as they came.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let (head, tail) = cut_middle(text);
    let mut out = Vec::new();
    tokens_of(head, &mut out);
    if !tail.is_empty() {
        push_mark(&mut out, ".", false);
        tokens_of(tail, &mut out);
    }
    out
}

fn cut_middle(text: &str) -> (&str, &str) {
    if text.len() <= 2 * LONGEST_HALF {
        return (text, "");
    }
    (
        &text[..text.floor_char_boundary(LONGEST_HALF)],
        &text[text.ceil_char_boundary(text.len() - LONGEST_HALF)..],
    )
}

fn tokens_of(text: &str, out: &mut Vec<Token>) {
    let chars: Vec<char> =
        text.nfkd().filter(|c| !is_combining_mark(*c) && !is_invisible(*c)).flat_map(fold_case).collect();
    let mut glued = false;
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if is_word_start(&chars, at) {
            let start = at;
            while at < chars.len() && is_in_word(&chars, at) {
                at += 1;
            }
            push_word(&chars[start..at], glued, out);
            glued = true;
            continue;
        }
        at += 1;
        match c {
            '\n' | '\r' | '.' | '!' | '。' | '…' => push_mark(out, ".", glued),
            '?' => push_mark(out, "?", glued),
            ',' | ';' | ':' | '、' | '(' | ')' | '—' | '–' | '~' => push_mark(out, ",", glued),
            '"' | '“' | '”' | '„' | '「' | '」' | '『' | '』' | '«' | '»' | '《' | '》' | '〈' | '〉' =>
            {
                push_mark(out, "\"", glued);
            }
            c if c.is_whitespace() || c == '-' || c == '_' || c == '/' => {
                glued = c == '-' || c == '_';
                continue;
            }
            c if c.is_alphanumeric() || is_picture(c) => out.push(Token::new(c, glued)),
            _ => {}
        }
        glued = true;
    }
}

/// Marks in a row count once: the strongest stays.
fn push_mark(out: &mut Vec<Token>, mark: &str, glued: bool) {
    if mark == "\"" {
        out.push(Token::new(mark, glued));
        return;
    }
    match out.last_mut() {
        Some(last) if last.is_mark() && last.text != "\"" => {
            if mark == "?" || (mark == "." && last.text == ",") {
                last.text = mark.to_owned();
            }
        }
        _ => out.push(Token::new(mark, glued)),
    }
}

fn is_latin(c: char) -> bool {
    c.is_alphabetic() && (c as u32) < 0x500
}

fn is_picture(c: char) -> bool {
    matches!(c as u32, 0x2600..=0x27BF | 0x1F300..=0x1FAFF)
}

/// Signs that stand for letters inside a word.
fn is_disguise(c: char) -> bool {
    matches!(c, '@' | '$' | '*' | '!' | '|' | '+' | '#' | '€' | '%' | '&')
}

fn is_word_start(chars: &[char], at: usize) -> bool {
    let c = chars[at];
    is_latin(c)
        || c.is_ascii_digit()
        || (matches!(c, '@' | '$' | '*') && chars.get(at + 1).is_some_and(|next| is_latin(*next)))
}

fn is_in_word(chars: &[char], at: usize) -> bool {
    let c = chars[at];
    let next_is_word = chars.get(at + 1).is_some_and(|next| is_latin(*next) || next.is_ascii_digit());
    is_latin(c)
        || c.is_ascii_digit()
        || (matches!(c, '\'' | '’' | '‘' | '`' | '´') && next_is_word)
        || (is_disguise(c)
            && (next_is_word
                || chars[at..].iter().take_while(|c| is_disguise(**c)).count() > 1 && inside_word(chars, at)))
}

/// Whether letters follow the run of disguising signs that starts here.
fn inside_word(chars: &[char], at: usize) -> bool {
    chars[at..].iter().find(|c| !is_disguise(**c)).is_some_and(|c| is_latin(*c))
}

fn push_word(chars: &[char], glued: bool, out: &mut Vec<Token>) {
    let is_apostrophe = |c: &char| matches!(c, '\'' | '’' | '‘' | '`' | '´');
    // "mum's" is "mum", "she's" is "shes", which the spelling table expands; "she'd" is "she would".
    let mut kept = chars;
    let mut verb = None;
    if let Some(at) = chars.iter().rposition(is_apostrophe).filter(|at| *at > 0) {
        let ending: String = chars[at + 1..].iter().collect();
        verb = match ending.as_str() {
            "d" => Some("would"),
            "ll" => Some("will"),
            "ve" => Some("have"),
            "re" => Some("are"),
            _ => None,
        };
        if verb.is_some() || (ending == "s" && at > 2 && !is_pronoun(&chars[..at])) {
            kept = &chars[..at];
        }
    }
    let word: String = kept.iter().filter(|c| !is_apostrophe(c)).collect();
    // "50mg" is an amount and a unit.
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let unit = &word[digits..];
    if digits > 0
        && !unit.is_empty()
        && matches!(unit, "mg" | "mcg" | "g" | "ml" | "ug" | "iu" | "x" | "pm" | "am" | "cm" | "cc")
    {
        out.push(Token::new(&word[..digits], glued));
        out.push(Token::new(unit, true));
    } else if !word.is_empty() {
        out.push(Token::new(word, glued));
    }
    out.extend(verb.map(|verb| Token::new(verb, false)));
}

fn is_pronoun(chars: &[char]) -> bool {
    ["she", "that", "what", "there", "here", "where", "who", "how", "let"]
        .iter()
        .any(|word| word.chars().eq(chars.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        tokens(text).into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn folds_width_accents_lookalikes_and_hidden_characters() {
        assert_eq!(words("Ｄｉｅ d\u{200b}íe ԁіе 𝖉𝖎𝖊"), ["die", "die", "die", "die"]);
    }

    #[test]
    fn folds_traditional_to_simplified() {
        assert_eq!(words("殺"), words("杀"));
        assert_eq!(words("諮商"), words("咨商"));
    }

    #[test]
    fn keeps_disguised_words_whole() {
        assert_eq!(
            words("k!ll s*icide $uicide d**e stop!"),
            ["k!ll", "s*icide", "$uicide", "d**e", "stop", "."]
        );
    }

    #[test]
    fn marks_in_a_row_are_one() {
        assert_eq!(words("why...?! no, …"), ["why", "?", "no", "."]);
    }

    #[test]
    fn amounts_and_possessives_are_split() {
        assert_eq!(
            words("50mg mum's she's I'll he’d"),
            ["50", "mg", "mum", "shes", "i", "will", "he", "would"]
        );
    }

    #[test]
    fn a_huge_text_keeps_both_ends() {
        let text = format!("start {} end", "字".repeat(100_000));
        let words = words(&text);
        assert!(words.len() < 10_000);
        assert_eq!((words[0].as_str(), words[words.len() - 1].as_str()), ("start", "end"));
    }
}
