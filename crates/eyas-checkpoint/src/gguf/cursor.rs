//! Reads little-endian fields from the header of a GGUF file and says where the file fell short.

use std::fmt;
use std::path::Path;

use crate::{Error, Result};

/// The part of the header that is being read, for messages.
#[derive(Clone, Copy)]
pub(super) enum Part<'a> {
    /// Magic, version and counts.
    Start,
    /// The name of the key with this number, counted from 0.
    Key(u64),
    /// The value of this key.
    Value(&'a str),
    /// The name of the tensor with this number, counted from 0.
    TensorName(u64),
    /// The description of this tensor.
    Tensor(&'a str),
}

impl fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("the GGUF header"),
            Self::Key(n) => write!(f, "the name of metadata key {n}"),
            Self::Value(key) => write!(f, "metadata key `{key}`"),
            Self::TensorName(n) => write!(f, "the name of tensor {n}"),
            Self::Tensor(name) => write!(f, "the description of tensor `{name}`"),
        }
    }
}

/// A position in the header.
pub(super) struct Cursor<'a> {
    pub(super) path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

macro_rules! number {
    ($($type:ident),*) => {$(
        pub(super) fn $type(&mut self, part: Part) -> Result<$type> {
            Ok($type::from_le_bytes(self.array(part)?))
        }
    )*};
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0 }
    }

    /// Bytes already read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    number!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

    /// A string: u64 length, then UTF-8.
    pub(super) fn string(&mut self, part: Part) -> Result<String> {
        let len = self.u64(part)?;
        let at = self.at;
        let bytes = self.take(len, part)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.damaged(format!("{part}: the string at byte {at} is not UTF-8"))),
        }
    }

    /// Checks that `count` items of at least `size` bytes can be left in the file, before memory is set aside for them.
    pub(super) fn expect(&self, count: u64, size: usize, part: Part) -> Result<usize> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(count) {
            Ok(n) if n.checked_mul(size).is_some_and(|bytes| bytes <= left) => Ok(n),
            _ => Err(self.damaged(format!(
                "{part} claims {count} entries of at least {size} bytes, but only {left} bytes of the file are left"
            ))),
        }
    }

    pub(super) fn damaged(&self, what: String) -> Error {
        Error::damaged(self.path, what)
    }

    fn array<const N: usize>(&mut self, part: Part) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, part)?);
        Ok(array)
    }

    fn take(&mut self, len: u64, part: Part) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(self.damaged(format!(
                "the file ends inside {part}: {len} bytes wanted at byte {}, {} left",
                self.at,
                rest.len()
            ))),
        }
    }
}
