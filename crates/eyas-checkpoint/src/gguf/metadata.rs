//! The key-value section of a GGUF file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A metadata value, in the types that GGUF has.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Unsigned 8-bit integer.
    U8(u8),
    /// Signed 8-bit integer.
    I8(i8),
    /// Unsigned 16-bit integer.
    U16(u16),
    /// Signed 16-bit integer.
    I16(i16),
    /// Unsigned 32-bit integer.
    U32(u32),
    /// Signed 32-bit integer.
    I32(i32),
    /// Unsigned 64-bit integer.
    U64(u64),
    /// Signed 64-bit integer.
    I64(i64),
    /// Binary32.
    F32(f32),
    /// Binary64.
    F64(f64),
    /// Boolean.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Elements of one type.
    Array(Array),
}

/// An array of a GGUF file. All its elements have one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Unsigned 8-bit integers.
    U8(Vec<u8>),
    /// Signed 8-bit integers.
    I8(Vec<i8>),
    /// Unsigned 16-bit integers.
    U16(Vec<u16>),
    /// Signed 16-bit integers.
    I16(Vec<i16>),
    /// Unsigned 32-bit integers.
    U32(Vec<u32>),
    /// Signed 32-bit integers.
    I32(Vec<i32>),
    /// Unsigned 64-bit integers.
    U64(Vec<u64>),
    /// Signed 64-bit integers.
    I64(Vec<i64>),
    /// Binary32.
    F32(Vec<f32>),
    /// Binary64.
    F64(Vec<f64>),
    /// Booleans.
    Bool(Vec<bool>),
    /// Texts.
    String(Vec<String>),
    /// Arrays.
    Array(Vec<Array>),
}

impl Value {
    /// The value as an integer, if it is one of any width.
    fn integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The type's name, with the value itself where it is a number.
    fn describe(&self) -> String {
        if let Some(v) = self.integer() {
            return format!("the integer {v}");
        }
        match self {
            Self::F32(v) => format!("the float {v}"),
            Self::F64(v) => format!("the float {v}"),
            Self::Bool(v) => format!("the boolean {v}"),
            Self::String(_) => "a string".into(),
            Self::Array(array) => format!("an array of {}", array.element_type()),
            _ => unreachable!("integers are described above"),
        }
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::String(v) => v.len(),
            Self::Array(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn element_type(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::Bool(_) => "booleans",
            Self::String(_) => "strings",
            Self::Array(_) => "arrays",
        }
    }
}

/// The metadata of a GGUF file. The typed getters fail with an error that names the file and the key.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(super) fn new(path: &Path, values: BTreeMap<String, Value>) -> Self {
        Self { path: path.to_path_buf(), values }
    }

    /// The value of `key`, if it is there.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Whether `key` is there.
    pub fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// All keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The text under `key`.
    pub fn str(&self, key: &str) -> Result<&str> {
        match self.required(key)? {
            Value::String(v) => Ok(v),
            other => Err(self.wrong_type(key, "a string", other)),
        }
    }

    /// The integer under `key`, stored in any width, signed or not, as long as the value fits.
    pub fn u32(&self, key: &str) -> Result<u32> {
        let value = self.required(key)?;
        value
            .integer()
            .and_then(|v| u32::try_from(v).ok())
            .ok_or_else(|| self.wrong_type(key, "an integer from 0 to 4294967295", value))
    }

    /// The integer under `key`, stored in any width, signed or not, as long as the value fits.
    pub fn u64(&self, key: &str) -> Result<u64> {
        let value = self.required(key)?;
        value
            .integer()
            .and_then(|v| u64::try_from(v).ok())
            .ok_or_else(|| self.wrong_type(key, "an integer that is not negative", value))
    }

    /// The number under `key`, stored as binary32 or binary64 (rounded).
    pub fn f32(&self, key: &str) -> Result<f32> {
        match self.required(key)? {
            Value::F32(v) => Ok(*v),
            Value::F64(v) => Ok(*v as f32),
            other => Err(self.wrong_type(key, "a float", other)),
        }
    }

    /// The boolean under `key`.
    pub fn bool(&self, key: &str) -> Result<bool> {
        match self.required(key)? {
            Value::Bool(v) => Ok(*v),
            other => Err(self.wrong_type(key, "a boolean", other)),
        }
    }

    /// The array of texts under `key`.
    pub fn strings(&self, key: &str) -> Result<&[String]> {
        match self.required(key)? {
            Value::Array(Array::String(v)) => Ok(v),
            other => Err(self.wrong_type(key, "an array of strings", other)),
        }
    }

    /// The array of i32 under `key`.
    pub fn i32s(&self, key: &str) -> Result<&[i32]> {
        match self.required(key)? {
            Value::Array(Array::I32(v)) => Ok(v),
            other => Err(self.wrong_type(key, "an array of i32", other)),
        }
    }

    /// The array of f32 under `key`.
    pub fn f32s(&self, key: &str) -> Result<&[f32]> {
        match self.required(key)? {
            Value::Array(Array::F32(v)) => Ok(v),
            other => Err(self.wrong_type(key, "an array of f32", other)),
        }
    }

    fn required(&self, key: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| Error::MissingKey { path: self.path.clone(), key: key.into() })
    }

    fn wrong_type(&self, key: &str, expected: &'static str, found: &Value) -> Error {
        Error::WrongKeyType { path: self.path.clone(), key: key.into(), expected, found: found.describe() }
    }
}
