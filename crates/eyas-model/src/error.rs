//! What can go wrong with a model or an adapter.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A configuration that cannot be understood or makes no sense.
    #[error("{origin}: {reason}")]
    Config {
        /// The file, and the key where one is to blame.
        origin: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Weights that do not fit the model's description.
    #[error("tensor `{tensor}`: {reason}")]
    Weights {
        /// The tensor's name in the checkpoint.
        tensor: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// An adapter that cannot be read or does not belong to the model.
    #[error("adapter {path}: {reason}", path = .path.display())]
    Adapter {
        /// The adapter's folder or file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// LoRA settings that fit no layer or contradict each other.
    #[error("LoRA: {0}")]
    Lora(String),
    /// A checkpoint file that cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] eyas_checkpoint::Error),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] eyas_backend::Error),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
