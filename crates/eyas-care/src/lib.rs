//! The safety layer around a chat, usable without a model.
//!
//! [`Care::assess`] reads the recent turns and recognises suicide, self-harm, overdose, abuse, violence and concern for
//! somebody else, in English and Chinese; [`Care::response`] gives a fixed, kind answer with helplines of a region.
//! [`Care::check_answer`] and [`AnswerGuard`] keep a model's answer from diagnosing, dosing, describing methods, inventing
//! phone numbers and posing as a human. [`Care::questionnaires`] and [`score`] are the self-assessments, and
//! [`sanitize_turn`] keeps text from forging turns.
//!
//! Everything that a clinician may want to read or change is in TOML files beside the source: `rules.toml` and its parts by
//! subject, `hints.toml` with `weights.toml`, `answers.toml`, `texts.toml`, `helplines.toml` and `questionnaires.toml`. One
//! file of an operator's own is laid over all of them ([`Care::from_file`]).
//!
//! ```
//! use eyas_care::{Care, Category, Language, Turn};
//!
//! let care = Care::builtin();
//! let assessment = care.assess(&[Turn::user("everyone would be better off without me")]);
//! let concern = assessment.concern.expect("an indirect statement");
//! assert_eq!(concern.category, Category::Suicide);
//!
//! let response = care.response(&concern, Some("TW"), Language::ZhHant);
//! assert_eq!(response.helplines[0].phone.as_deref(), Some("119"));
//! ```
//!
//! This is not a medical device. Its limits and measured figures are in the crate's README.

mod answer;
mod assess;
mod care;
mod circumstances;
mod detector;
mod error;
mod evidence;
mod helplines;
mod hints;
mod injection;
mod message;
mod numbers;
mod pattern;
mod persons;
mod questionnaire;
mod rules;
mod text;
mod types;

pub use answer::{AnswerCheck, AnswerGuard, Reason, Verdict};
pub use assess::{Assessment, Concern};
pub use care::{Care, CareResponse, ReminderPolicy};
pub use error::{Error, Result};
pub use helplines::{Helpline, HelplineKind, Region};
pub use injection::sanitize_turn;
pub use questionnaire::{AnswerOption, Band, Questionnaire, Score, ScoreUnit, score};
pub use types::{Bilingual, Category, Language, ReminderKind, Role, Turn};
