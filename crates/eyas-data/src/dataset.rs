//! Files of rows: JSON Lines, a JSON array, Parquet and CSV, read one row at a time.
//!
//! A row is taken in one of four shapes, found from the columns' names in this order: `prompt` with
//! `completion`, `messages`, `conversations` (ShareGPT's `from`/`value`), and the text column
//! (`dataset_text_field`, `text` unless told otherwise). Naming a text column skips the search.

mod csv;
mod json;
mod parquet;
mod schema;

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::conversation::Sample;
use crate::error::{Error, Result, RowPosition};
pub use schema::Schema;

/// How a data set is read.
#[derive(Clone, Debug)]
pub struct DatasetOptions {
    /// The column that holds whole texts; `None` searches for a known shape and falls back to `text`.
    pub dataset_text_field: Option<String>,
    /// The column whose equal values must stay on one side of a split; ignored where the file has none.
    pub group_field: String,
    /// The longest row in bytes; a longer one is refused before it is held in memory.
    pub max_row_bytes: usize,
}

impl Default for DatasetOptions {
    fn default() -> Self {
        Self { dataset_text_field: None, group_field: "group".into(), max_row_bytes: 16 << 20 }
    }
}

/// A row of a data set, as its file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where it stands in the file.
    pub at: RowPosition,
    /// Its text or conversation.
    pub sample: Sample,
    /// Rows with the same group stay on one side of a split.
    pub group: Option<String>,
    /// The row's `topic`, where it has one.
    pub topic: Option<String>,
}

/// The fields of one row before they are understood.
struct RawRow {
    at: RowPosition,
    fields: Map<String, Value>,
}

/// A source of raw rows. An error that names a row may be followed by further rows.
trait RawRows: Iterator<Item = Result<RawRow>> {
    /// The columns' names, where the format has a header; rows of JSON carry their own.
    fn columns(&self) -> Option<&[String]>;
}

/// An iterator over the rows of a file.
pub struct Rows {
    path: PathBuf,
    source: Box<dyn RawRows>,
    schema: Option<Schema>,
    options: DatasetOptions,
    finished: bool,
}

/// Opens a data set; the format is found from the file's first bytes and its extension.
///
/// # Errors
/// When the file cannot be opened, its format is unknown, or (for formats with a header) it has no usable
/// column.
pub fn open(path: &Path, options: &DatasetOptions) -> Result<Rows> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    if file.metadata().map_err(|e| Error::io(path, e))?.is_dir() {
        return Err(Error::dataset(path, "is a folder; name one .jsonl, .json, .parquet or .csv file in it"));
    }
    let mut head = [0; 4];
    let read = read_up_to(&mut file, &mut head).map_err(|e| Error::io(path, e))?;
    file.rewind().map_err(|e| Error::io(path, e))?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let source: Box<dyn RawRows> = match (&head[..read], extension.as_str()) {
        (b"PAR1", _) | (_, "parquet") => Box::new(parquet::ParquetRows::open(path, file, options)?),
        ([0x1f, 0x8b, ..], _) => {
            return Err(Error::dataset(path, "is compressed with gzip; unpack it first"));
        }
        ([0x28, 0xb5, 0x2f, 0xfd], _) => {
            return Err(Error::dataset(path, "is compressed with zstd; unpack it first"));
        }
        ([0xff, 0xfe, ..] | [0xfe, 0xff, ..], _) => {
            return Err(Error::dataset(path, "is UTF-16; convert it to UTF-8 first"));
        }
        (_, "csv") => Box::new(csv::CsvRows::open(path, b',', BufReader::new(file), options)?),
        (_, "tsv") => Box::new(csv::CsvRows::open(path, b'\t', BufReader::new(file), options)?),
        (_, "jsonl" | "json" | "ndjson") => json::open(path, BufReader::new(file), options)?,
        _ => {
            return Err(Error::dataset(
                path,
                "is of an unknown format; the extension must be .jsonl, .json, .parquet, .csv or .tsv",
            ));
        }
    };
    Rows::new(path, source, options)
}

/// Reads JSON Lines held in memory; `name` stands for the path in messages.
///
/// # Errors
/// As [`open`].
pub fn from_jsonl(name: &str, text: &'static str, options: &DatasetOptions) -> Result<Rows> {
    let path = Path::new(name);
    Rows::new(path, json::open(path, text.as_bytes(), options)?, options)
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

impl Rows {
    fn new(path: &Path, source: Box<dyn RawRows>, options: &DatasetOptions) -> Result<Self> {
        let schema = match source.columns() {
            Some(columns) => {
                let found = Schema::detect(columns.iter().map(String::as_str), options);
                Some(found.map_err(|reason| Error::dataset(path, reason))?)
            }
            None => None,
        };
        Ok(Self { path: path.into(), source, schema, options: options.clone(), finished: false })
    }

    /// The shape of the rows; `None` before the first row of a JSON file.
    pub fn schema(&self) -> Option<&Schema> {
        self.schema.as_ref()
    }

    fn row(&mut self, raw: RawRow) -> Result<Row> {
        let RawRow { at, mut fields } = raw;
        let schema = match &self.schema {
            Some(schema) => schema,
            None => {
                let schema = Schema::detect(fields.keys().map(String::as_str), &self.options);
                let schema = schema.map_err(|reason| Error::Row { path: self.path.clone(), at, reason })?;
                self.schema.insert(schema)
            }
        };
        schema.take(at, &mut fields, &self.options).map_err(|reason| Error::Row {
            path: self.path.clone(),
            at,
            reason,
        })
    }
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        match self.source.next() {
            None => {
                self.finished = true;
                None
            }
            Some(Ok(raw)) => Some(self.row(raw)),
            Some(Err(error)) => {
                // Only an error that is bound to one row can be followed by good rows.
                self.finished = !matches!(error, Error::Row { .. });
                Some(Err(error))
            }
        }
    }
}
