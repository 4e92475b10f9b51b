//! One interface to weights in every format.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::decode::decode_f32;
use crate::gguf::{GgufFile, Metadata};
use crate::locate::{Index, detect, locate};
use crate::mapped::MappedFile;
use crate::safetensors::SafetensorsFile;
use crate::{Error, Result, TensorDtype, TensorInfo, pytorch};

/// Elements that are decoded before the pages behind them are dropped: 16 MiB of f32.
const SEGMENT: usize = 1 << 22;

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

/// Model weights on disk, opened and checked but not read. May be shared between threads.
///
/// Each read goes to the file: nothing is kept, except that a `.bin` tensor read in row blocks stays in memory (one
/// tensor, in its stored type) until its last row or another tensor is read, because its rows cannot be mapped.
/// Tensors that one file stores once under two names, as tied weights in a `.bin`, are two tensors here: read one.
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    files: Vec<PathBuf>,
    /// Sorted by name.
    tensors: Vec<Tensor>,
    gguf: Option<Metadata>,
    safetensors: BTreeMap<String, String>,
    /// The `.bin` tensor that is being read in row blocks, by its place in `tensors`.
    recent: Mutex<Option<(usize, Arc<Vec<u8>>)>>,
}

struct Tensor {
    info: TensorInfo,
    /// Place in `Checkpoint::files`.
    file: usize,
    source: Source,
}

enum Source {
    Mapped(Arc<MappedFile>, Range<usize>),
    Pytorch(pytorch_reader::Tensor),
}

impl Checkpoint {
    /// Opens model weights and checks every header against its file.
    ///
    /// `path` is a Hugging Face folder (`model.safetensors`, or `model.safetensors.index.json` with its shards, or
    /// `pytorch_model.bin`, or its index with shards, or else one `.gguf` file), an index, or a single
    /// `.safetensors`, `.bin`, `.pt`, `.pth` or `.gguf` file.
    ///
    /// # Errors
    /// Where there are no weights, a shard is missing, or a file is damaged or of a type that is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let located = locate(path)?;
        let mut checkpoint = Self {
            path: path.to_path_buf(),
            format: Format::Safetensors,
            files: located.files,
            tensors: Vec::new(),
            gguf: None,
            safetensors: BTreeMap::new(),
            recent: Mutex::new(None),
        };
        for file in 0..checkpoint.files.len() {
            checkpoint.add_file(file, located.index.as_ref())?;
        }
        checkpoint.tensors.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        checkpoint.check_names(located.index.as_ref())?;
        Ok(checkpoint)
    }

    /// The format of the weights.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The weight files, in the order of their names.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// All tensors, in the order of their names.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter().map(|tensor| &tensor.info)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.position(name).is_some()
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`], which suggests the nearest name.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        Ok(&self.tensors[self.required(name)?].info)
    }

    /// Metadata of a GGUF file; `None` for the other formats.
    pub fn gguf_metadata(&self) -> Option<&Metadata> {
        self.gguf.as_ref()
    }

    /// Free-form metadata of safetensors files, such as `format: pt`; of all shards together. Empty for other formats.
    pub fn safetensors_metadata(&self) -> &BTreeMap<String, String> {
        &self.safetensors
    }

    /// Reads a whole tensor as f32, row-major, into `out`, whose contents it replaces and whose memory it reuses.
    ///
    /// # Errors
    /// As for [`read_rows_f32`](Self::read_rows_f32).
    pub fn read_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<()> {
        let rows = 0..self.info(name)?.rows();
        self.read_rows_f32(name, rows, out)
    }

    /// Reads the rows `rows` of the first axis as f32, row-major, into `out`, whose contents it replaces and whose
    /// memory it reuses. Pages of the file are dropped behind it, so that reading a large tensor in blocks needs
    /// little more memory than one block.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`]; [`Error::BadRead`] for rows that are not there or a type that is not a float;
    /// [`Error::Damaged`] and [`Error::Io`] from a `.bin` file, whose bytes are only read here.
    pub fn read_rows_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let place = self.required(name)?;
        let Tensor { info, source, .. } = &self.tensors[place];
        if !info.dtype.is_float() {
            let what = format!("it holds {}, not real numbers", info.dtype);
            return Err(self.bad_read(name, what, "read its bytes instead"));
        }
        if rows.start > rows.end || rows.end > info.rows() {
            let what =
                format!("rows {}..{} were asked for, but it has {}", rows.start, rows.end, info.rows());
            return Err(self.bad_read(name, what, "ask for rows that it has"));
        }
        let elements = rows.start * info.row_len()..rows.end * info.row_len();
        match source {
            Source::Mapped(file, range) => {
                decode_elements(info.dtype, &file.bytes()[range.clone()], elements, out, |used, next| {
                    let within = |part: Range<usize>| range.start + part.start..range.start + part.end;
                    file.prefetch(within(next));
                    file.release(within(used));
                });
            }
            Source::Pytorch(_) => {
                let bytes = self.pytorch_bytes(place, rows)?;
                decode_elements(info.dtype, &bytes, elements, out, |_, _| {});
            }
        }
        Ok(())
    }

    /// The stored bytes of a tensor, little endian and row-major; borrowed from the mapped file where there is one.
    ///
    /// Pages of the file that are touched count as resident memory until [`release`](Self::release).
    ///
    /// # Errors
    /// [`Error::UnknownTensor`]; [`Error::Damaged`] and [`Error::Io`] from a `.bin` file.
    pub fn read_bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let tensor = &self.tensors[self.required(name)?];
        match &tensor.source {
            Source::Mapped(file, range) => Ok(Cow::Borrowed(&file.bytes()[range.clone()])),
            Source::Pytorch(handle) => {
                pytorch::read(&self.files[tensor.file], &tensor.info, handle).map(Cow::Owned)
            }
        }
    }

    /// Drops a tensor's pages from resident memory after [`read_bytes`](Self::read_bytes). Borrowed bytes stay valid:
    /// they are read from the file again when touched.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`].
    pub fn release(&self, name: &str) -> Result<()> {
        if let Source::Mapped(file, range) = &self.tensors[self.required(name)?].source {
            file.release(range.clone());
        }
        Ok(())
    }

    fn add_file(&mut self, file: usize, index: Option<&Index>) -> Result<()> {
        let path = &self.files[file];
        self.format = detect(path)?;
        let mut found = Vec::new();
        match self.format {
            Format::Pytorch => {
                for (info, handle) in pytorch::open(path)? {
                    found.push((info, Source::Pytorch(handle)));
                }
            }
            Format::Safetensors | Format::Gguf => {
                let map = Arc::new(MappedFile::open(path)?);
                let tensors = if self.format == Format::Gguf {
                    let header = GgufFile::parse(path, map.bytes())?;
                    self.gguf = Some(header.metadata);
                    header.tensors
                } else {
                    let header = SafetensorsFile::parse(path, map.bytes())?;
                    self.safetensors.extend(header.metadata);
                    header.tensors
                };
                // The header's pages are not needed again.
                map.release(0..map.bytes().len());
                found.extend(
                    tensors.into_iter().map(|(info, range)| (info, Source::Mapped(Arc::clone(&map), range))),
                );
            }
        }
        // A tensor that the index places in another shard is read from there.
        let elsewhere = |name: &str| index.and_then(|i| i.weight_map.get(name)).is_some_and(|&f| f != file);
        self.tensors.extend(
            found.into_iter().filter(|(info, _)| !elsewhere(&info.name)).map(|(info, source)| Tensor {
                info,
                file,
                source,
            }),
        );
        Ok(())
    }

    fn check_names(&self, index: Option<&Index>) -> Result<()> {
        if self.tensors.is_empty() {
            return Err(Error::NotWeights {
                path: self.path.clone(),
                found: "it holds no tensors".into(),
                advice: "choose the file or folder with the model's weights",
            });
        }
        for pair in self.tensors.windows(2) {
            if pair[0].info.name == pair[1].info.name {
                let (a, b) = (&self.files[pair[0].file], &self.files[pair[1].file]);
                let what = format!("tensor `{}` is also in {}", pair[0].info.name, b.display());
                return Err(Error::damaged(a, what));
            }
        }
        for (name, &file) in index.iter().flat_map(|index| &index.weight_map) {
            if !self.contains(name) {
                let index = index.map(|index| index.path.display().to_string()).unwrap_or_default();
                let what = format!("tensor `{name}`, which {index} places here, is not in it");
                return Err(Error::damaged(&self.files[file], what));
            }
        }
        Ok(())
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|tensor| tensor.info.name.as_str().cmp(name)).ok()
    }

    fn required(&self, name: &str) -> Result<usize> {
        self.position(name).ok_or_else(|| {
            let nearest = self
                .tensors()
                .map(|info| (strsim::normalized_levenshtein(name, &info.name), &info.name))
                .max_by(|a, b| a.0.total_cmp(&b.0));
            let advice = match nearest {
                Some((likeness, nearest)) if likeness > 0.5 => format!("the nearest name is `{nearest}`"),
                _ => format!("the {} tensors there have quite other names", self.tensors.len()),
            };
            Error::UnknownTensor { path: self.path.clone(), tensor: name.into(), advice }
        })
    }

    fn bad_read(&self, name: &str, what: String, advice: &'static str) -> Error {
        Error::BadRead { path: self.path.clone(), tensor: name.into(), what, advice }
    }

    /// The bytes of a whole `.bin` tensor, kept between the reads of its row blocks.
    fn pytorch_bytes(&self, place: usize, rows: Range<usize>) -> Result<Arc<Vec<u8>>> {
        let tensor = &self.tensors[place];
        let Source::Pytorch(handle) = &tensor.source else { unreachable!("only called for .bin tensors") };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = match recent.take() {
            Some((kept, bytes)) if kept == place => bytes,
            // Another tensor's bytes go before these come.
            other => {
                drop(other);
                Arc::new(pytorch::read(&self.files[tensor.file], &tensor.info, handle)?)
            }
        };
        if rows.end < tensor.info.rows() {
            *recent = Some((place, Arc::clone(&bytes)));
        }
        Ok(bytes)
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("format", &self.format)
            .field("files", &self.files)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

/// Decodes `elements` of a tensor stored in `bytes`. After each segment `advance` gets the byte range that is done with
/// and the one that comes next.
fn decode_elements(
    dtype: TensorDtype,
    bytes: &[u8],
    elements: Range<usize>,
    out: &mut Vec<f32>,
    advance: impl Fn(Range<usize>, Range<usize>),
) {
    // Whole blocks around the elements: rows of a matrix always are, those of a vector need not be.
    let block = dtype.block_len();
    let blocks = elements.start / block..elements.end.div_ceil(block);
    let decoded = blocks.len() * block;
    if out.capacity() < decoded {
        // The old memory goes before the new comes; fresh zero pages cost nothing until they are written.
        *out = Vec::new();
        *out = vec![0.0; decoded];
    } else {
        out.resize(decoded, 0.0);
    }
    let byte = |blocks: usize| blocks * dtype.block_bytes();
    let segment = SEGMENT / block;
    let mut start = blocks.start;
    for out in out.chunks_mut(SEGMENT) {
        let end = start + out.len() / block;
        decode_f32(dtype, &bytes[byte(start)..byte(end)], out);
        advance(byte(start)..byte(end), byte(end)..byte((end + segment).min(blocks.end)));
        start = end;
    }
    let lead = elements.start - blocks.start * block;
    if lead > 0 {
        out.drain(..lead);
    }
    out.truncate(elements.len());
}
