//! What can go wrong when a model is looked for.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder that cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No folder for downloads can be found.
    #[error("this system names no folder for caches; set EYAS_CACHE to a folder that may hold models")]
    NoCache,
    /// A model that is nowhere on this machine.
    #[error("{0}")]
    NotFound(String),
    /// A download that failed.
    #[error("{0}")]
    Download(String),
    /// A file whose contents are not those that were published.
    #[error("{path}: its SHA-256 is {actual}, {expected} was expected; delete it and try again", path = .path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// What it has.
        actual: String,
        /// What was published.
        expected: String,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
