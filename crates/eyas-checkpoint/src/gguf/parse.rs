//! The header of a GGUF file: counts, metadata, tensor descriptions, all checked against the file's length.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

use super::cursor::{Cursor, Part};
use super::{Array, Metadata, Value};
use crate::tensor::checked_byte_len;
use crate::{Error, Result, TensorDtype, TensorInfo};

/// Most axes that ggml knows.
const MAX_AXES: u32 = 4;
/// Deepest nesting of arrays; real files have none.
const MAX_NESTING: u32 = 8;
/// Where tensor data starts without `general.alignment`.
const DEFAULT_ALIGNMENT: u64 = 32;

const CONVERT: &str = "convert the model again with a current converter";
const SUPPORTED: &str = "supported are F32, F16, BF16, F64, Q8_0, Q4_0, Q4_1 and I8 to I64: take the Q8_0 or the F16 file of this model";

/// The checked header of a GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    /// Metadata.
    pub metadata: Metadata,
    /// Tensors, each with the bytes of the file that hold it, in the file's order.
    pub tensors: Vec<(TensorInfo, Range<usize>)>,
}

impl GgufFile {
    /// Parses the header from the bytes of a whole file; `path` is for messages.
    ///
    /// Memory use is bounded by a small multiple of `bytes.len()`, whatever counts the header claims.
    ///
    /// # Errors
    /// [`Error::Damaged`] where the header contradicts itself or the file's length,
    /// [`Error::UnsupportedDtype`] where a tensor has another type than this crate decodes.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(path, bytes);
        let (tensor_count, key_count) = start(&mut cursor)?;
        let metadata = Metadata::new(path, metadata(&mut cursor, key_count)?);
        if let Ok(parts @ 2..) = metadata.u32("split.count") {
            return Err(Error::Damaged {
                path: path.to_path_buf(),
                what: format!("this is one of {parts} parts of a split model"),
                advice: "join the parts first: `llama-gguf-split --merge FIRST_PART OUTPUT.gguf`",
            });
        }
        let placed = tensor_descriptions(&mut cursor, tensor_count)?;
        let tensors = place(&cursor, bytes.len(), alignment(&cursor, &metadata)?, placed)?;
        Ok(Self { metadata, tensors })
    }
}

/// Magic, version, number of tensors, number of keys.
fn start(cursor: &mut Cursor) -> Result<(u64, u64)> {
    let magic = cursor.u32(Part::Start)?;
    if magic != u32::from_le_bytes(*b"GGUF") {
        return Err(cursor.damaged("the file does not begin with `GGUF`".into()));
    }
    let version = cursor.u32(Part::Start)?;
    if version != 2 && version != 3 {
        let what = if matches!(version.swap_bytes(), 1..=3) {
            "the file is big endian; only little endian is supported".to_owned()
        } else {
            format!("GGUF version {version} is not supported, only 2 and 3")
        };
        return Err(Error::Damaged { path: cursor.path.to_path_buf(), what, advice: CONVERT });
    }
    Ok((cursor.u64(Part::Start)?, cursor.u64(Part::Start)?))
}

fn metadata(cursor: &mut Cursor, count: u64) -> Result<BTreeMap<String, Value>> {
    // Length of the name, type, one byte of value.
    cursor.expect(count, 8 + 4 + 1, Part::Start)?;
    let mut values = BTreeMap::new();
    for number in 0..count {
        let key = cursor.string(Part::Key(number))?;
        let part = Part::Value(&key);
        let kind = cursor.u32(part)?;
        let value = value(cursor, kind, part)?;
        if values.contains_key(&key) {
            return Err(cursor.damaged(format!("metadata key `{key}` appears twice")));
        }
        values.insert(key, value);
    }
    Ok(values)
}

fn value(cursor: &mut Cursor, kind: u32, part: Part) -> Result<Value> {
    Ok(match kind {
        0 => Value::U8(cursor.u8(part)?),
        1 => Value::I8(cursor.i8(part)?),
        2 => Value::U16(cursor.u16(part)?),
        3 => Value::I16(cursor.i16(part)?),
        4 => Value::U32(cursor.u32(part)?),
        5 => Value::I32(cursor.i32(part)?),
        6 => Value::F32(cursor.f32(part)?),
        7 => Value::Bool(boolean(cursor, part)?),
        8 => Value::String(cursor.string(part)?),
        9 => Value::Array(array(cursor, 0, part)?),
        10 => Value::U64(cursor.u64(part)?),
        11 => Value::I64(cursor.i64(part)?),
        12 => Value::F64(cursor.f64(part)?),
        _ => return Err(cursor.damaged(format!("{part} has the unknown type {kind}"))),
    })
}

fn array(cursor: &mut Cursor, depth: u32, part: Part) -> Result<Array> {
    if depth == MAX_NESTING {
        return Err(cursor.damaged(format!("{part} nests arrays more than {MAX_NESTING} deep")));
    }
    let kind = cursor.u32(part)?;
    let count = cursor.u64(part)?;
    Ok(match kind {
        0 => Array::U8(elements(cursor, count, 1, part, Cursor::u8)?),
        1 => Array::I8(elements(cursor, count, 1, part, Cursor::i8)?),
        2 => Array::U16(elements(cursor, count, 2, part, Cursor::u16)?),
        3 => Array::I16(elements(cursor, count, 2, part, Cursor::i16)?),
        4 => Array::U32(elements(cursor, count, 4, part, Cursor::u32)?),
        5 => Array::I32(elements(cursor, count, 4, part, Cursor::i32)?),
        6 => Array::F32(elements(cursor, count, 4, part, Cursor::f32)?),
        7 => Array::Bool(elements(cursor, count, 1, part, boolean)?),
        8 => Array::String(elements(cursor, count, 8, part, Cursor::string)?),
        9 => Array::Array(elements(cursor, count, 12, part, |cursor, part| array(cursor, depth + 1, part))?),
        10 => Array::U64(elements(cursor, count, 8, part, Cursor::u64)?),
        11 => Array::I64(elements(cursor, count, 8, part, Cursor::i64)?),
        12 => Array::F64(elements(cursor, count, 8, part, Cursor::f64)?),
        _ => return Err(cursor.damaged(format!("{part} is an array of the unknown type {kind}"))),
    })
}

/// Reads `count` elements of at least `size` bytes each.
fn elements<'a, T>(
    cursor: &mut Cursor<'a>,
    count: u64,
    size: usize,
    part: Part,
    read: impl Fn(&mut Cursor<'a>, Part) -> Result<T>,
) -> Result<Vec<T>> {
    let count = cursor.expect(count, size, part)?;
    let mut elements = Vec::with_capacity(count);
    for _ in 0..count {
        elements.push(read(cursor, part)?);
    }
    Ok(elements)
}

fn boolean(cursor: &mut Cursor, part: Part) -> Result<bool> {
    match cursor.u8(part)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(cursor.damaged(format!("{part} should be a boolean, 0 or 1, but is {other}"))),
    }
}

/// Tensors with their offsets from the start of the data.
fn tensor_descriptions(cursor: &mut Cursor, count: u64) -> Result<Vec<(TensorInfo, u64)>> {
    // Length of the name, number of axes, type, offset.
    let count = cursor.expect(count, 8 + 4 + 4 + 8, Part::Start)?;
    let mut tensors = Vec::with_capacity(count);
    let mut names = HashSet::with_capacity(count);
    for number in 0..count as u64 {
        let name = cursor.string(Part::TensorName(number))?;
        let part = Part::Tensor(&name);
        let axes = cursor.u32(part)?;
        if axes > MAX_AXES {
            return Err(cursor.damaged(format!("tensor `{name}` claims {axes} axes; GGUF has at most 4")));
        }
        let mut shape = Vec::with_capacity(axes as usize);
        for _ in 0..axes {
            let extent = cursor.u64(part)?;
            shape.push(usize::try_from(extent).map_err(|_| {
                cursor.damaged(format!("tensor `{name}` has the impossible extent {extent}"))
            })?);
        }
        let dtype = dtype(cursor, &name)?;
        let offset = cursor.u64(part)?;
        if let Some(&row) = shape.first()
            && !row.is_multiple_of(dtype.block_len())
        {
            return Err(cursor.damaged(format!(
                "tensor `{name}` has rows of {row} values, which are not whole {dtype} blocks of {}",
                dtype.block_len()
            )));
        }
        shape.reverse();
        if !names.insert(name.clone()) {
            return Err(cursor.damaged(format!("tensor `{name}` appears twice")));
        }
        tensors.push((TensorInfo { name, shape, dtype }, offset));
    }
    Ok(tensors)
}

fn dtype(cursor: &mut Cursor, tensor: &str) -> Result<TensorDtype> {
    let kind = cursor.u32(Part::Tensor(tensor))?;
    Ok(match kind {
        0 => TensorDtype::F32,
        1 => TensorDtype::F16,
        2 => TensorDtype::Q4_0,
        3 => TensorDtype::Q4_1,
        8 => TensorDtype::Q8_0,
        24 => TensorDtype::I8,
        25 => TensorDtype::I16,
        26 => TensorDtype::I32,
        27 => TensorDtype::I64,
        28 => TensorDtype::F64,
        30 => TensorDtype::BF16,
        _ => {
            return Err(Error::UnsupportedDtype {
                path: cursor.path.to_path_buf(),
                tensor: tensor.into(),
                dtype: type_name(kind),
                advice: SUPPORTED,
            });
        }
    })
}

/// ggml's name of a type that is not supported.
fn type_name(kind: u32) -> String {
    match kind {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return format!("number {kind} (unknown)"),
    }
    .into()
}

fn alignment(cursor: &Cursor, metadata: &Metadata) -> Result<u64> {
    if !metadata.contains("general.alignment") {
        return Ok(DEFAULT_ALIGNMENT);
    }
    let alignment = metadata.u32("general.alignment")?;
    if !alignment.is_power_of_two() {
        return Err(cursor.damaged(format!(
            "metadata key `general.alignment` should be a power of two but is {alignment}"
        )));
    }
    Ok(alignment.into())
}

/// Turns offsets into ranges of the file and checks that each lies inside it and apart from the others.
fn place(
    cursor: &Cursor,
    file_len: usize,
    alignment: u64,
    tensors: Vec<(TensorInfo, u64)>,
) -> Result<Vec<(TensorInfo, Range<usize>)>> {
    let data_start = (cursor.position() as u64).checked_next_multiple_of(alignment);
    let mut placed = Vec::with_capacity(tensors.len());
    for (info, offset) in tensors {
        let name = &info.name;
        let len = checked_byte_len(&info.shape, info.dtype).ok_or_else(|| {
            cursor.damaged(format!("tensor `{name}` has the impossible shape {:?}", info.shape))
        })?;
        if !offset.is_multiple_of(alignment) {
            return Err(cursor.damaged(format!(
                "tensor `{name}` starts at offset {offset}, which is not a multiple of the alignment {alignment}"
            )));
        }
        let range = data_start
            .and_then(|start| start.checked_add(offset))
            .and_then(|start| usize::try_from(start).ok())
            .and_then(|start| Some(start..start.checked_add(len)?))
            .filter(|range| range.end <= file_len)
            .ok_or_else(|| {
                cursor.damaged(format!(
                    "tensor `{name}` wants {len} bytes at offset {offset} of the data, but the file has only \
                     {file_len} bytes: it is incomplete"
                ))
            })?;
        placed.push((info, range));
    }
    check_apart(cursor, &placed)?;
    Ok(placed)
}

/// Tensors that share bytes could make a small file claim any amount of data.
fn check_apart(cursor: &Cursor, placed: &[(TensorInfo, Range<usize>)]) -> Result<()> {
    let mut order: Vec<_> = placed.iter().filter(|(_, range)| !range.is_empty()).collect();
    order.sort_by_key(|(_, range)| range.start);
    for pair in order.windows(2) {
        let [(first, a), (second, b)] = pair else { continue };
        if a.end > b.start {
            return Err(cursor.damaged(format!("tensors `{}` and `{}` overlap", first.name, second.name)));
        }
    }
    Ok(())
}
