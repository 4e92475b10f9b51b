//! GGUF, versions 2 and 3, little endian: typed metadata and tensors in one file.
//!
//! Format: the GGUF specification of the ggml project.

mod cursor;
mod metadata;
mod parse;

pub use metadata::{Array, Metadata, Value};
pub use parse::GgufFile;
