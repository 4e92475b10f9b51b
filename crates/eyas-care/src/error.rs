//! What can go wrong while an operator's rules are read.

use std::path::PathBuf;

/// An error of this crate. Only loading can fail; assessing, answering and checking cannot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read the care file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML, or a key is unknown or has a wrong type.
    #[error("the care rules are not valid: {0}")]
    Toml(#[from] toml::de::Error),
    /// A value is of the right type but makes no sense.
    #[error("the care rules are not valid at {place}: {message}")]
    Rule {
        /// The key, such as `rules.wish_to_die.patterns[3]`.
        place: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// Answers to a questionnaire that do not fit it.
    #[error("{questionnaire} has {expected} items with answers from 0 to {max}: {message}")]
    Answers {
        /// Its id, such as `phq-9`.
        questionnaire: String,
        /// How many items it has.
        expected: usize,
        /// The highest value of an answer.
        max: u8,
        /// What is wrong.
        message: String,
    },
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Shorthand for [`Error::Rule`].
pub(crate) fn rule_error(place: impl Into<String>, message: impl Into<String>) -> Error {
    Error::Rule { place: place.into(), message: message.into() }
}
