//! GGUF, versions 2 and 3, little endian: typed metadata and tensors in one file.
//!
//! Format: the GGUF specification of the ggml project.

mod metadata;

pub use metadata::{Array, Metadata, Value};
