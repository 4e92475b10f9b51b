//! CSV and TSV with a header line.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{DatasetOptions, RawRow, RawRows};
use crate::error::{Error, Result, RowPosition};

pub(super) struct CsvRows<R> {
    path: PathBuf,
    reader: csv::Reader<Capped<R>>,
    columns: Vec<String>,
    row: u64,
    limit: usize,
}

impl<R: BufRead> CsvRows<R> {
    pub(super) fn open(path: &Path, delimiter: u8, reader: R, options: &DatasetOptions) -> Result<Self> {
        let limit = options.max_row_bytes;
        let capped = Capped { inner: reader, left: limit as u64 };
        let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(capped);
        let header = match reader.byte_headers() {
            Ok(header) => header.clone(),
            Err(e) => return Err(Error::dataset(path, format!("its header cannot be read: {e}"))),
        };
        if header.is_empty() {
            return Err(Error::dataset(path, "is empty; it needs a header line and at least one row"));
        }
        let mut columns = Vec::with_capacity(header.len());
        for (i, name) in header.iter().enumerate() {
            let name = if i == 0 { name.strip_prefix(b"\xef\xbb\xbf").unwrap_or(name) } else { name };
            let Ok(name) = std::str::from_utf8(name) else {
                return Err(Error::dataset(
                    path,
                    format!("line 1: the name of column {} is not UTF-8", i + 1),
                ));
            };
            columns.push(name.trim().to_string());
        }
        Ok(Self { path: path.into(), reader, columns, row: 0, limit })
    }

    fn next_row(&mut self) -> Result<Option<RawRow>> {
        self.reader.get_mut().left = self.limit as u64;
        let mut record = csv::ByteRecord::new();
        let line = self.reader.position().line();
        let read = self.reader.read_byte_record(&mut record);
        self.row += 1;
        let line = record.position().map_or(line, |p| p.line());
        let at = RowPosition { row: self.row, line: Some(line) };
        let refuse = |reason: String| Error::Row { path: self.path.clone(), at, reason };
        match read {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(e) => {
                return Err(match e.kind() {
                    csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                        refuse(format!("has {len} fields where the header has {expected_len}"))
                    }
                    // What follows a row that is over the limit cannot be told from it: the file ends here.
                    _ if self.reader.get_ref().left == 0 => Error::dataset(
                        &self.path,
                        format!("{at}: is longer than {} bytes; is a quote not closed?", self.limit),
                    ),
                    _ => Error::dataset(&self.path, format!("{at}: {e}")),
                });
            }
        }
        let mut fields = Map::new();
        for (column, value) in self.columns.iter().zip(&record) {
            let value =
                std::str::from_utf8(value).map_err(|_| refuse(format!("column `{column}` is not UTF-8")))?;
            fields.insert(column.clone(), Value::String(value.to_string()));
        }
        Ok(Some(RawRow { at, fields }))
    }
}

impl<R: BufRead> RawRows for CsvRows<R> {
    fn columns(&self) -> Option<&[String]> {
        Some(&self.columns)
    }
}

impl<R: BufRead> Iterator for CsvRows<R> {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}

/// A reader that fails once a row has taken more than its share, so that an open quote cannot pull a whole
/// file into memory.
struct Capped<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if room == 0 && !buffer.is_empty() {
            return Err(std::io::Error::other("the row is too long"));
        }
        let read = self.inner.read(&mut buffer[..room])?;
        self.left -= read as u64;
        Ok(read)
    }
}
