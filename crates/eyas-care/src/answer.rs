//! Checks of a model's answer, whole and while it streams.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::rules::Rules;
use crate::types::Language;

/// Why something was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It tells the person that they have a disorder.
    Diagnosis,
    /// It gives a dose.
    Dose,
    /// It tells how to die or to be hurt.
    Method,
    /// It encourages harm.
    Encouragement,
    /// It gives a phone number; only the table of helplines does.
    PhoneNumber,
    /// It says that a human or a professional is writing.
    ClaimsHuman,
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
    pub(crate) fn new(answer: &str, text: String, reasons: Vec<Reason>) -> Self {
        let verdict = if reasons.is_empty() {
            debug_assert_eq!(answer, text, "what passes is not changed");
            Verdict::Pass
        } else {
            Verdict::Replace { reasons, text }
        };
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

/// Holds a streaming answer back until it is known to be safe: whole sentences come out, checked.
///
/// The pieces of [`push`](Self::push) and [`finish`](Self::finish), put together, are the text to show.
#[derive(Debug)]
pub struct AnswerGuard {
    #[expect(dead_code)]
    rules: Arc<Rules>,
    #[expect(dead_code)]
    language: Language,
    held: String,
    reasons: Vec<Reason>,
    stopped: bool,
}

impl AnswerGuard {
    pub(crate) fn new(rules: Arc<Rules>, _question: &str, language: Language) -> Self {
        Self { rules, language, held: String::new(), reasons: Vec::new(), stopped: false }
    }

    /// Takes a piece of the answer and returns what may be shown now, often nothing.
    pub fn push(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        String::new()
    }

    /// Ends the answer and returns the rest of what may be shown.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Why something was replaced so far, without repeats.
    pub fn reasons(&self) -> &[Reason] {
        &self.reasons
    }

    /// Whether the rest of the answer is no longer wanted: the model can be stopped, and [`finish`](Self::finish) called.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }
}
