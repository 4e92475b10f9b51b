//! What can go wrong between a file and a batch.

use std::fmt;
use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that says what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be opened or read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A data set that cannot be read as a whole: an unknown format, no usable column.
    #[error("{path}: {reason}", path = path.display())]
    Dataset {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// One row that cannot be used.
    #[error("{path}:{at}: {reason}", path = path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        at: RowPosition,
        /// What is wrong, with the column's name.
        reason: String,
    },
    /// A tokenizer file, or GGUF tokenizer metadata, that is missing, damaged or of an unsupported kind.
    #[error("tokenizer {path}: {reason}", path = path.display())]
    Tokenizer {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, with the key or token.
        reason: String,
    },
    /// A chat template that does not parse, or refuses a conversation.
    #[error("chat template: {0}")]
    Template(String),
    /// Text that the tokenizer refuses, or ids that it cannot decode.
    #[error("tokenizing: {0}")]
    Encode(String),
    /// An option outside its range.
    #[error("{key}: {reason}")]
    Option {
        /// The option's name.
        key: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// A model file whose metadata cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] eyas_checkpoint::Error),
    /// A batch that cannot be built.
    #[error(transparent)]
    Batch(#[from] eyas_backend::Error),
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    pub(crate) fn dataset(path: &Path, reason: impl Into<String>) -> Self {
        Self::Dataset { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn tokenizer(path: &Path, reason: impl Into<String>) -> Self {
        Self::Tokenizer { path: path.into(), reason: reason.into() }
    }
}

/// Where a row stands in its file.
///
/// `row` counts from 1 over the file's rows; `line` is the line on which the row starts, in formats that have
/// lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowPosition {
    /// The row, counted from 1.
    pub row: u64,
    /// The line, counted from 1; `None` for Parquet.
    pub line: Option<u64>,
}

impl fmt::Display for RowPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) if line == self.row => write!(f, "line {line}"),
            Some(line) => write!(f, "line {line} (row {})", self.row),
            None => write!(f, "row {}", self.row),
        }
    }
}
