//! What can go wrong in this crate.

/// An error of this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer that does not fit the shape it is used with.
    #[error("{0}")]
    Shape(String),
    /// A setting that the format does not know.
    #[error("{key} = {value} is not supported: use {allowed}")]
    Config {
        /// The setting's name.
        key: &'static str,
        /// The value given.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A value that no block can be scaled by.
    #[error(
        "{value} at row {row}, column {col}: only finite values can be quantised; repair the tensor first"
    )]
    NonFinite {
        /// The row, from 0.
        row: usize,
        /// The column, from 0.
        col: usize,
        /// The value: NaN or an infinity.
        value: f32,
    },
    /// Parts that do not make a quantised matrix.
    #[error("{part}: {reason}")]
    Malformed {
        /// The part that is wrong.
        part: &'static str,
        /// What was expected and what was found.
        reason: String,
    },
    /// A checkpoint key that is absent.
    #[error("the checkpoint has no tensor `{key}`: {reason}")]
    MissingKey {
        /// The key.
        key: String,
        /// Why it is needed.
        reason: &'static str,
    },
    /// A checkpoint tensor that is not well formed.
    #[error("tensor `{key}`: {reason}")]
    Tensor {
        /// The key.
        key: String,
        /// What was expected and what was found.
        reason: String,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
