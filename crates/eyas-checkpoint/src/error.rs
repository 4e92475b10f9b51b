//! What can go wrong with a file of weights.

use std::path::{Path, PathBuf};

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why weights could not be read or written. Every message names the file, the tensor or key, what is wrong and what
/// to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("{}: cannot {action}: {source}; {advice}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done, as in "cannot {action}".
        action: &'static str,
        /// What to do.
        advice: &'static str,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A folder holds none of the file names that weights are kept under.
    #[error("{}: no model weights here; {advice}", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What to do: the names that were looked for, or the files that are there.
        advice: String,
    },
    /// A file is something else than weights: empty, a Git LFS pointer, a web page, an unknown format.
    #[error("{}: not model weights: {found}; {advice}", path.display())]
    NotWeights {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: String,
        /// What to do.
        advice: &'static str,
    },
    /// A file contradicts itself or its own length: truncated, damaged or made by a faulty writer.
    #[error("{}: {what}; {advice}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the tensor or key named where there is one.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// A shard that the index lists is not there.
    #[error(
        "{}: shard `{shard}`, listed in {} for tensor `{tensor}`, is missing; download it into the same folder",
        folder.display(), index.display()
    )]
    MissingShard {
        /// The folder that should hold the shard.
        folder: PathBuf,
        /// The shard's file name.
        shard: String,
        /// The index that lists it.
        index: PathBuf,
        /// A tensor that the index places in it.
        tensor: String,
    },
    /// A tensor is stored in a type that cannot be read.
    #[error("{}: tensor `{tensor}` has type {dtype}, which is not supported; {advice}", path.display())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type's own name in its format.
        dtype: String,
        /// What to do: the supported types.
        advice: &'static str,
    },
    /// No tensor has this name.
    #[error("{}: no tensor `{tensor}`; {advice}", path.display())]
    UnknownTensor {
        /// The checkpoint's file or folder.
        path: PathBuf,
        /// The name that was asked for.
        tensor: String,
        /// The nearest names, or how many tensors there are.
        advice: String,
    },
    /// A read asked for rows that a tensor does not have, or for values of a type that has none.
    #[error("{}: tensor `{tensor}`: {what}; {advice}", path.display())]
    BadRead {
        /// The checkpoint's file or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with the request.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// A metadata key is not in the GGUF file.
    #[error("{}: no metadata key `{key}`; convert the model again with a current converter, or use another file", path.display())]
    MissingKey {
        /// The GGUF file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A metadata key holds another type than the one asked for, or a value that does not fit it.
    #[error("{}: metadata key `{key}` should be {expected} but is {found}; convert the model again", path.display())]
    WrongKeyType {
        /// The GGUF file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The type asked for.
        expected: &'static str,
        /// The type, and for a number the value, that is there.
        found: String,
    },
    /// Tensors handed to a writer are not what they say.
    #[error("{}: cannot write tensor `{tensor}`: {what}; {advice}", path.display())]
    BadTensor {
        /// The file that was to be written.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        what: String,
        /// What to do.
        advice: &'static str,
    },
}

/// Advice for a file that came down incomplete.
pub(crate) const DOWNLOAD_AGAIN: &str = "download the file again";

impl Error {
    pub(crate) fn io(
        path: &Path,
        action: &'static str,
        advice: &'static str,
        source: std::io::Error,
    ) -> Self {
        Self::Io { path: path.to_path_buf(), action, advice, source }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), what: what.into(), advice: DOWNLOAD_AGAIN }
    }
}
