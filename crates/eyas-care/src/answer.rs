//! Checks of a model's answer, whole and while it streams.
//!
//! Both are the same: an answer is read sentence by sentence. A sentence that fails is replaced by fixed words, once for
//! each reason; a method or encouragement ends the answer with fixed words. Phone numbers are replaced where they stand.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::detector::Detector;
use crate::error::Result;
use crate::pattern::{Matcher, Pattern, Span};
use crate::rules::Rules;
use crate::text::Token;
use crate::types::Language;

/// Why something was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It tells how to die or to be hurt.
    Method,
    /// It encourages harm.
    Encouragement,
    /// It gives a dose.
    Dose,
    /// It tells the person that they have a disorder.
    Diagnosis,
    /// It says that a human or a professional is writing.
    ClaimsHuman,
    /// It gives a phone number; only the table of helplines does.
    PhoneNumber,
}

/// What became of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It can be shown as it is.
    Pass,
    /// Show `text` instead.
    Replace {
        /// Why, without repeats.
        reasons: Vec<Reason>,
        /// The whole answer to show.
        text: String,
    },
}

/// The result of [`Care::check_answer`](crate::Care::check_answer).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AnswerCheck {
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl AnswerCheck {
    pub(crate) fn new(text: String, reasons: Vec<Reason>) -> Self {
        let verdict = if reasons.is_empty() { Verdict::Pass } else { Verdict::Replace { reasons, text } };
        Self { verdict }
    }

    /// The text to show.
    pub fn text<'a>(&'a self, answer: &'a str) -> &'a str {
        match &self.verdict {
            Verdict::Pass => answer,
            Verdict::Replace { text, .. } => text,
        }
    }
}

/// One entry of `answers` in `answers.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AnswerEntry {
    pub(crate) patterns: Vec<String>,
    pub(crate) unless: Vec<String>,
    pub(crate) always: Vec<String>,
    #[serde(default)]
    pub(crate) whole_answer: bool,
}

/// The same, compiled.
#[derive(Debug)]
pub(crate) struct AnswerRule {
    patterns: Vec<Pattern>,
    unless: Vec<Pattern>,
    always: Vec<Pattern>,
    whole_answer: bool,
}

impl AnswerRule {
    pub(crate) fn compile(entry: &AnswerEntry, name: &str, detector: &Detector) -> Result<Self> {
        let compile = |patterns: &[String], key: &str| {
            detector.classes.compile_all(patterns, &detector.spelling, &format!("answers.{name}.{key}"))
        };
        Ok(Self {
            patterns: compile(&entry.patterns, "patterns")?,
            unless: compile(&entry.unless, "unless")?,
            always: compile(&entry.always, "always")?,
            whole_answer: entry.whole_answer,
        })
    }

    /// Whether something ends behind `from` that must not be said.
    fn fails(&self, matcher: &Matcher<'_>, from: usize) -> bool {
        if matcher.any(&self.always, |span| span.end > from) {
            return true;
        }
        let unless: Vec<Span> = matcher.find_longest(&self.unless);
        matcher.any(&self.patterns, |span| {
            if span.end <= from {
                return false;
            }
            let start = matcher.tokens[..span.start].iter().rposition(Token::is_stop).map_or(0, |at| at + 1);
            !unless.iter().any(|found| found.start >= start && found.start < span.end)
        })
    }
}

/// `own_condition` of `answers.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OwnConditionEntry {
    pub(crate) patterns: Vec<String>,
    pub(crate) unless: Vec<String>,
}

/// Finds the conditions that a person says they have.
#[derive(Debug)]
pub(crate) struct OwnCondition {
    patterns: Vec<Pattern>,
    unless: Vec<Pattern>,
    condition: Vec<Pattern>,
}

impl OwnCondition {
    pub(crate) fn compile(entry: &OwnConditionEntry, detector: &Detector) -> Result<Self> {
        let compile = |patterns: &[String], key: &str| {
            detector.classes.compile_all(patterns, &detector.spelling, &format!("own_condition.{key}"))
        };
        Ok(Self {
            patterns: compile(&entry.patterns, "patterns")?,
            unless: compile(&entry.unless, "unless")?,
            condition: compile(&["@condition".to_owned()], "condition")?,
        })
    }

    /// The words of each condition in a question.
    fn named(&self, detector: &Detector, question: &str) -> Vec<Vec<String>> {
        let tokens = detector.spelling.read(question);
        let mut named = Vec::new();
        for sentence in tokens.split_inclusive(Token::is_stop) {
            let matcher = Matcher::new(&detector.classes, sentence);
            if matcher.any(&self.unless, |_| true) {
                continue;
            }
            let said = matcher.find_longest(&self.patterns);
            for condition in matcher.find_longest(&self.condition) {
                if said.iter().any(|span| span.start <= condition.start && condition.end <= span.end) {
                    let words = &sentence[condition.start..condition.end];
                    named.push(words.iter().map(|token| token.text.clone()).collect());
                }
            }
        }
        named
    }
}

/// Tokens in which the named words are hidden.
fn without(tokens: &[Token], named: &[Vec<String>]) -> Vec<Token> {
    let mut out = tokens.to_vec();
    for words in named {
        for start in 0..tokens.len().saturating_sub(words.len() - 1) {
            if tokens[start..start + words.len()].iter().map(|token| &token.text).eq(words) {
                out[start..start + words.len()].iter_mut().for_each(Token::mask);
            }
        }
    }
    out
}

/// The rules for answers by reason, the gravest first.
pub(crate) type AnswerRules = BTreeMap<Reason, AnswerRule>;

/// A stretch without an end of sentence is judged at this length, so that little is held back.
const LONGEST_HELD: usize = 1200;

/// Holds a streaming answer back until it is known to be safe: whole sentences come out, checked.
///
/// The pieces of [`push`](Self::push) and [`finish`](Self::finish), put together, are the text to show.
#[derive(Debug)]
pub struct AnswerGuard {
    rules: Arc<Rules>,
    language: Language,
    asked_if_human: bool,
    /// The conditions that the person named as their own: to repeat them is no diagnosis.
    named: Vec<Vec<String>>,
    held: String,
    /// The last sentence as the model wrote it, for what spans two.
    last: Vec<Token>,
    reasons: Vec<Reason>,
    stopped: bool,
}

impl AnswerGuard {
    pub(crate) fn new(rules: Arc<Rules>, question: &str, language: Language) -> Self {
        let asked_if_human = rules.asks_if_human(question);
        let named = rules.own_condition.named(&rules.detector, question);
        Self {
            rules,
            language,
            asked_if_human,
            named,
            held: String::new(),
            last: Vec::new(),
            reasons: Vec::new(),
            stopped: false,
        }
    }

    /// Takes a piece of the answer and returns what may be shown now, often nothing.
    pub fn push(&mut self, piece: &str) -> String {
        let mut out = String::new();
        if self.stopped {
            return out;
        }
        self.held.push_str(piece);
        while let Some(end) = sentence_end(&self.held) {
            let rest = self.held.split_off(end);
            let sentence = std::mem::replace(&mut self.held, rest);
            out.push_str(&self.judge(&sentence));
            if self.stopped {
                break;
            }
        }
        out
    }

    /// Ends the answer and returns the rest of what may be shown.
    pub fn finish(&mut self) -> String {
        let sentence = std::mem::take(&mut self.held);
        if self.stopped || sentence.is_empty() { String::new() } else { self.judge(&sentence) }
    }

    /// Why something was replaced so far, without repeats.
    pub fn reasons(&self) -> &[Reason] {
        &self.reasons
    }

    /// Whether the rest of the answer is no longer wanted: the model can be stopped, and [`finish`](Self::finish) called.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The sentence as it may be shown.
    fn judge(&mut self, sentence: &str) -> String {
        let rules = Arc::clone(&self.rules);
        let texts = &rules.texts.replacement;
        let failed = self.failed_rule(&rules, sentence);
        if let Some((reason, whole_answer)) = failed {
            let first = self.note(reason);
            let lead = sentence.len() - sentence.trim_start().len();
            let trail = sentence.trim_end().len().max(lead);
            if whole_answer {
                self.stopped = true;
                self.held.clear();
            } else if !first {
                // Said once; the sentence goes, its line break stays.
                return sentence[trail..].to_owned();
            }
            let words = texts.of(reason).get(self.language);
            return format!("{}{words}{}", &sentence[..lead], &sentence[trail..]);
        }
        let helpline = texts.phone_number.get(self.language);
        let emergency = texts.emergency_number.get(self.language);
        match rules.phone_numbers.replace(sentence, helpline, emergency) {
            Some(text) => {
                self.note(Reason::PhoneNumber);
                text
            }
            None => sentence.to_owned(),
        }
    }

    fn failed_rule(&mut self, rules: &Rules, sentence: &str) -> Option<(Reason, bool)> {
        let detector = &rules.detector;
        let first = self.last.is_empty();
        let mut tokens = std::mem::take(&mut self.last);
        if !first {
            tokens.push(Token::stop());
        }
        let from = tokens.len();
        tokens.extend(detector.spelling.read(sentence));
        self.last = tokens[from..].to_vec();

        let matcher = Matcher::new(&detector.classes, &tokens);
        let unnamed = (!self.named.is_empty()).then(|| without(&tokens, &self.named));
        let of_unnamed = unnamed.as_deref().map(|tokens| Matcher::new(&detector.classes, tokens));
        let failed = rules.answers.iter().find(|(reason, rule)| {
            let unnamed = of_unnamed.as_ref().filter(|_| **reason == Reason::Diagnosis);
            rule.fails(unnamed.unwrap_or(&matcher), from)
        });
        if let Some((reason, rule)) = failed {
            return Some((*reason, rule.whole_answer));
        }
        (first && self.asked_if_human && rules.says_yes(&matcher)).then_some((Reason::ClaimsHuman, false))
    }

    /// Remembers a reason; whether it is new.
    fn note(&mut self, reason: Reason) -> bool {
        let new = !self.reasons.contains(&reason);
        if new {
            self.reasons.push(reason);
        }
        new
    }
}

/// Where the first sentence of a text ends, its white space included, once it is sure to have ended.
fn sentence_end(text: &str) -> Option<usize> {
    let mut ended = false;
    let mut content = false;
    for (at, c) in text.char_indices() {
        match c {
            '\n' if content => return Some(at + 1),
            '。' | '！' | '？' | '…' => {
                // A quotation mark or more marks may follow: decided at the next character.
                ended = true;
                content = true;
            }
            '」' | '』' | '”' | '）' | ')' | '"' | '*' if ended => {}
            _ if ended && (is_wide(c) || c.is_whitespace()) => {
                return Some(if c.is_whitespace() { at + c.len_utf8() } else { at });
            }
            '.' | '!' | '?' => {
                ended = content;
            }
            _ => {
                ended = false;
                content |= !c.is_whitespace();
            }
        }
        if at > LONGEST_HELD {
            let space = text[..at].rfind(char::is_whitespace).filter(|space| *space > LONGEST_HELD / 2);
            return Some(space.map_or(at, |space| text.ceil_char_boundary(space + 1)));
        }
    }
    None
}

/// Chinese text needs no space after a sentence.
fn is_wide(c: char) -> bool {
    c as u32 >= 0x2E80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_they_are_sure_to() {
        assert_eq!(sentence_end("One. Two"), Some(5));
        assert_eq!(sentence_end("One."), None);
        assert_eq!(sentence_end("It is 3.5 long"), None);
        assert_eq!(sentence_end("好。再"), Some("好。".len()));
        assert_eq!(sentence_end("「好。」再"), Some("「好。」".len()));
        assert_eq!(sentence_end("a\nb"), Some(2));
        assert!(sentence_end(&"word ".repeat(400)).is_some());
        assert!(sentence_end(&"字".repeat(2000)).is_some());
    }
}
