//! One interface to weights in every format.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::gguf::Metadata;
use crate::{Result, TensorInfo};

/// A file format that weights are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `.safetensors`.
    Safetensors,
    /// `.bin`, `.pt`, `.pth`: a pickle with its storages.
    Pytorch,
    /// `.gguf`.
    Gguf,
}

/// Model weights on disk, opened and checked but not read.
#[derive(Debug)]
pub struct Checkpoint {}

impl Checkpoint {
    /// Opens a Hugging Face folder or a single weight file.
    pub fn open(_path: impl AsRef<Path>) -> Result<Self> {
        todo!()
    }

    /// The format of the weights.
    pub fn format(&self) -> Format {
        todo!()
    }

    /// The weight files, in the order of their names.
    pub fn files(&self) -> &[PathBuf] {
        todo!()
    }

    /// All tensors, in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        [].iter()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, _name: &str) -> bool {
        todo!()
    }

    /// The tensor of this name, or an error that names the nearest ones.
    pub fn info(&self, _name: &str) -> Result<&TensorInfo> {
        todo!()
    }

    /// Reads a whole tensor as f32, row-major, replacing the contents of `out`.
    pub fn read_f32(&self, _name: &str, _out: &mut Vec<f32>) -> Result<()> {
        todo!()
    }

    /// Reads the rows `rows` of the first axis as f32, row-major, replacing the contents of `out`.
    pub fn read_rows_f32(&self, _name: &str, _rows: Range<usize>, _out: &mut Vec<f32>) -> Result<()> {
        todo!()
    }

    /// The stored bytes of a tensor: little endian, row-major; borrowed from the map where there is one.
    pub fn read_bytes(&self, _name: &str) -> Result<Cow<'_, [u8]>> {
        todo!()
    }

    /// Metadata of a GGUF file; `None` for the other formats.
    pub fn gguf_metadata(&self) -> Option<&Metadata> {
        todo!()
    }
}
