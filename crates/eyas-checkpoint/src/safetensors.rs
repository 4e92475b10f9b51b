//! safetensors: a JSON header, then the tensors' bytes without gaps.
//!
//! Format: the safetensors specification of Hugging Face. The header's entries are read by the `safetensors` crate's
//! own types; the checks are here so that each names its tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use ::safetensors::tensor::TensorInfo as Entry;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};

use crate::atomic::AtomicFile;
use crate::tensor::checked_byte_len;
use crate::{Error, Result, TensorDtype, TensorInfo, write_atomic};

/// Bytes of the header's length, before the header.
const PREFIX: usize = 8;
/// Longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;
const METADATA_KEY: &str = "__metadata__";

/// The checked header of a safetensors file.
#[derive(Debug)]
pub struct SafetensorsFile {
    /// The free-form metadata, such as `format: pt`.
    pub metadata: BTreeMap<String, String>,
    /// Tensors, each with the bytes of the file that hold it, in the order of the bytes.
    pub tensors: Vec<(TensorInfo, Range<usize>)>,
}

impl SafetensorsFile {
    /// Parses the header from the bytes of a whole file; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Damaged`] where the header contradicts itself or the file's length,
    /// [`Error::UnsupportedDtype`] where a tensor has another type than this crate knows.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = |what: String| Error::damaged(path, what);
        let prefix = bytes
            .first_chunk::<PREFIX>()
            .ok_or_else(|| damaged(format!("the file has only {} bytes: it is incomplete", bytes.len())))?;
        let header_len = u64::from_le_bytes(*prefix);
        if header_len > MAX_HEADER {
            return Err(damaged(format!(
                "the first 8 bytes claim a header of {header_len} bytes; at most {MAX_HEADER} are allowed"
            )));
        }
        let data_start = PREFIX + header_len as usize;
        let header = bytes.get(PREFIX..data_start).ok_or_else(|| {
            damaged(format!(
                "the header should have {header_len} bytes, but the file has only {}: it is incomplete",
                bytes.len()
            ))
        })?;
        let Header { metadata, mut entries } =
            serde_json::from_slice(header).map_err(|e| damaged(format!("the header is not valid: {e}")))?;

        entries.sort_by(|(a_name, a), (b_name, b)| (a.data_offsets, a_name).cmp(&(b.data_offsets, b_name)));
        let mut tensors = Vec::with_capacity(entries.len());
        let mut end = 0;
        for (name, entry) in entries {
            let dtype = dtype(path, &name, entry.dtype)?;
            let len = checked_byte_len(&entry.shape, dtype).ok_or_else(|| {
                damaged(format!("tensor `{name}` has the impossible shape {:?}", entry.shape))
            })?;
            let (from, to) = entry.data_offsets;
            if to.checked_sub(from) != Some(len) {
                return Err(damaged(format!(
                    "tensor `{name}` has data_offsets [{from}, {to}], but {dtype} {:?} takes {len} bytes",
                    entry.shape
                )));
            }
            if from != end {
                return Err(damaged(format!(
                    "tensor `{name}` starts at offset {from}, but the tensor before it ends at {end}"
                )));
            }
            end = to;
            let range = data_start.checked_add(from).zip(data_start.checked_add(to));
            let Some((from, to)) = range else {
                return Err(damaged(format!("tensor `{name}` ends at the impossible offset {to}")));
            };
            tensors.push((TensorInfo { name, shape: entry.shape, dtype }, from..to));
        }
        let have = bytes.len() - data_start;
        if have != end {
            let state = if have < end { "it is incomplete" } else { "bytes follow the last tensor" };
            return Err(damaged(format!(
                "the header describes {end} bytes of tensors, but {have} follow it: {state}"
            )));
        }
        Ok(Self { metadata, tensors })
    }
}

/// The header's entries in the order in which they stand.
struct Header {
    metadata: BTreeMap<String, String>,
    entries: Vec<(String, Entry)>,
}

impl<'de> serde::Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object with one entry for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        use serde::de::Error as _;
        let mut metadata = None;
        let mut entries = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let twice = if name == METADATA_KEY {
                metadata.replace(map.next_value()?).is_some()
            } else {
                let entry = map
                    .next_value::<Entry>()
                    .map_err(|e| A::Error::custom(format!("tensor `{name}`: {e}")))?;
                entries.insert(name.clone(), entry).is_some()
            };
            if twice {
                return Err(A::Error::custom(format!("`{name}` appears twice")));
            }
        }
        Ok(Header { metadata: metadata.unwrap_or_default(), entries: entries.into_iter().collect() })
    }
}

/// The types that safetensors files and this crate share.
const DTYPES: [(Dtype, TensorDtype); 13] = [
    (Dtype::F64, TensorDtype::F64),
    (Dtype::F32, TensorDtype::F32),
    (Dtype::F16, TensorDtype::F16),
    (Dtype::BF16, TensorDtype::BF16),
    (Dtype::I64, TensorDtype::I64),
    (Dtype::I32, TensorDtype::I32),
    (Dtype::I16, TensorDtype::I16),
    (Dtype::I8, TensorDtype::I8),
    (Dtype::U64, TensorDtype::U64),
    (Dtype::U32, TensorDtype::U32),
    (Dtype::U16, TensorDtype::U16),
    (Dtype::U8, TensorDtype::U8),
    (Dtype::BOOL, TensorDtype::Bool),
];

fn dtype(path: &Path, tensor: &str, stored: Dtype) -> Result<TensorDtype> {
    DTYPES.iter().find(|(dtype, _)| *dtype == stored).map(|&(_, dtype)| dtype).ok_or_else(|| {
        Error::UnsupportedDtype {
            path: path.to_path_buf(),
            tensor: tensor.into(),
            dtype: stored.to_string(),
            advice: "supported are F64, F32, F16, BF16, BOOL and integers: take the BF16 or F16 release of this model",
        }
    })
}

/// A tensor in memory, to be written.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// Extents, outermost first.
    pub shape: &'a [usize],
    /// Element type; not one of the block types, which safetensors does not have.
    pub dtype: TensorDtype,
    /// The values, little endian and row-major.
    pub data: &'a [u8],
}

/// Writes a safetensors file [atomically](write_atomic).
///
/// The bytes depend on the tensors and the metadata alone, not on the order of `tensors`, and equal those that
/// `safetensors.torch.save_file` writes: wider element types first, then by name.
///
/// # Errors
/// [`Error::BadTensor`] for a repeated or reserved name, a block type, or data that does not fit the shape;
/// [`Error::Io`] from the disk.
pub fn write_safetensors(
    path: &Path,
    tensors: &[TensorView],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    for tensor in tensors {
        if checked_byte_len(tensor.shape, tensor.dtype).is_some_and(|bytes| bytes != tensor.data.len()) {
            let (bytes, shape) = (tensor.data.len(), tensor.shape);
            let what = format!("{bytes} bytes of data do not fit {} {shape:?}", tensor.dtype);
            return Err(bad_tensor(path, tensor.name, what, "report this as a bug"));
        }
    }
    let shapes = tensors.iter().map(|tensor| (tensor.name, tensor.shape, tensor.dtype));
    let (header, order) = layout(path, shapes, metadata)?;
    write_atomic(path, |file| {
        file.write_all(&header)?;
        order.iter().try_for_each(|&place| file.write_all(tensors[place].data))
    })
}

/// A safetensors file that is written piece by piece, for tensors that are not all in memory at once. The file has its
/// name when it is whole.
///
/// ```
/// use std::collections::BTreeMap;
/// use eyas_checkpoint::{SafetensorsWriter, TensorDtype, TensorInfo};
/// # let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("model.safetensors");
/// let table = TensorInfo { name: "table".into(), shape: vec![2, 3], dtype: TensorDtype::BF16 };
/// let mut writer = SafetensorsWriter::create(&path, &[table], &BTreeMap::new())?;
/// for tensor in writer.order().to_vec() {
///     for _row in 0..tensor.rows() {
///         writer.write(&vec![0; 2 * tensor.row_len()])?;
///     }
/// }
/// writer.finish()?;
/// # Ok::<(), eyas_checkpoint::Error>(())
/// ```
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    file: AtomicFile,
    order: Vec<TensorInfo>,
    /// Bytes of tensors that are still to come.
    left: usize,
}

impl SafetensorsWriter {
    /// Begins a file of these tensors with its header.
    ///
    /// # Errors
    /// As for [`write_safetensors`].
    pub fn create(path: &Path, tensors: &[TensorInfo], metadata: &BTreeMap<String, String>) -> Result<Self> {
        let shapes =
            tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice(), tensor.dtype));
        let (header, order) = layout(path, shapes, metadata)?;
        let order: Vec<TensorInfo> = order.into_iter().map(|place| tensors[place].clone()).collect();
        let left = order.iter().map(TensorInfo::byte_len).sum();
        let mut file = AtomicFile::create(path)?;
        file.write(&header)?;
        Ok(Self { path: path.into(), file, order, left })
    }

    /// The tensors in the order in which their bytes must come.
    pub fn order(&self) -> &[TensorInfo] {
        &self.order
    }

    /// Appends the next bytes, little endian and row-major.
    ///
    /// # Errors
    /// [`Error::BadTensor`] for more bytes than the tensors have; [`Error::Io`] from the disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self.left.checked_sub(bytes.len()) {
            Some(left) => self.left = left,
            None => return Err(self.miscounted("more bytes were given than the tensors have")),
        }
        self.file.write(bytes)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// [`Error::BadTensor`] where bytes are missing; [`Error::Io`] from the disk.
    pub fn finish(self) -> Result<()> {
        if self.left > 0 {
            return Err(self.miscounted("fewer bytes were given than the tensors have"));
        }
        self.file.commit()
    }

    fn miscounted(&self, what: &str) -> Error {
        let last = self.order.last().map_or("", |tensor| &tensor.name);
        bad_tensor(&self.path, last, what.into(), "report this as a bug")
    }
}

/// The length and header, padded to whole 8 bytes so that the data is aligned, and the tensors' places in the order of
/// the file.
fn layout<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a [usize], TensorDtype)>,
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<usize>)> {
    let mut order = Vec::new();
    for (place, (name, shape, dtype)) in tensors.enumerate() {
        let (stored, bytes) = checked(path, name, shape, dtype)?;
        order.push((stored, name, shape, bytes, place));
    }
    order.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));

    let mut end = 0usize;
    let mut entries = BTreeMap::new();
    let mut names = Vec::with_capacity(order.len());
    for &(dtype, name, shape, bytes, _) in &order {
        let Some(next) = end.checked_add(bytes) else {
            return Err(bad_tensor(path, name, "the file would be too long".into(), "write several files"));
        };
        let entry = Entry { dtype, shape: shape.to_vec(), data_offsets: (end, next) };
        end = next;
        if entries.insert(name, entry).is_some() {
            return Err(bad_tensor(path, name, "the name is given twice".into(), "rename one"));
        }
        names.push(name);
    }
    let mut header = Vec::new();
    let mut json = serde_json::Serializer::new(&mut header);
    let written = (|| {
        let mut map = json.serialize_map(None)?;
        if !metadata.is_empty() {
            map.serialize_entry(METADATA_KEY, metadata)?;
        }
        names.iter().try_for_each(|name| map.serialize_entry(name, &entries[name]))?;
        SerializeMap::end(map)
    })();
    written.map_err(|e| Error::io(path, "write the header", "report this as a bug", e.into()))?;
    header.resize(header.len().next_multiple_of(PREFIX), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut header);
    Ok((bytes, order.into_iter().map(|(.., place)| place).collect()))
}

/// A tensor's type in the file and its bytes.
fn checked(path: &Path, name: &str, shape: &[usize], dtype: TensorDtype) -> Result<(Dtype, usize)> {
    let stored = DTYPES.iter().find(|(_, known)| *known == dtype).map(|(stored, _)| *stored);
    let Some(stored) = stored else {
        let what = format!("safetensors has no type {dtype}");
        return Err(bad_tensor(path, name, what, "decode it to F32 first"));
    };
    if name == METADATA_KEY {
        return Err(bad_tensor(path, name, "the name is reserved".into(), "rename it"));
    }
    let Some(bytes) = checked_byte_len(shape, dtype) else {
        return Err(bad_tensor(
            path,
            name,
            format!("the shape {shape:?} is impossible"),
            "report this as a bug",
        ));
    };
    Ok((stored, bytes))
}

fn bad_tensor(path: &Path, tensor: &str, what: String, advice: &'static str) -> Error {
    Error::BadTensor { path: path.to_path_buf(), tensor: tensor.into(), what, advice }
}
