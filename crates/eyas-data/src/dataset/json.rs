//! JSON Lines, and a file that is one JSON array of rows.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{DatasetOptions, RawRow, RawRows};
use crate::error::{Error, Result, RowPosition};

/// Opens JSON Lines, or a JSON array when the first character is `[`.
pub(super) fn open<R: BufRead + 'static>(
    path: &Path,
    mut reader: R,
    options: &DatasetOptions,
) -> Result<Box<dyn RawRows>> {
    let mut line = 1;
    let mut first = true;
    loop {
        let buffer = reader.fill_buf().map_err(|e| Error::io(path, e))?;
        // A byte order mark is three bytes, so it is in the first buffer whole.
        if first && buffer.starts_with(b"\xef\xbb\xbf") {
            reader.consume(3);
            first = false;
            continue;
        }
        first = false;
        match buffer.first() {
            Some(byte) if byte.is_ascii_whitespace() => {
                line += u64::from(*byte == b'\n');
                reader.consume(1);
            }
            Some(b'[') => {
                reader.consume(1);
                let rows = ArrayRows { file: Lines::new(path, reader, line, options), state: Place::Start };
                return Ok(Box::new(rows));
            }
            Some(_) => return Ok(Box::new(LineRows { file: Lines::new(path, reader, line, options) })),
            None => return Err(Error::dataset(path, "is empty; it needs at least one row")),
        }
    }
}

/// What both forms share: the place in the file, the limit on a row, and its parsing.
struct Lines<R> {
    path: PathBuf,
    reader: R,
    line: u64,
    row: u64,
    limit: usize,
}

impl<R: BufRead> Lines<R> {
    fn new(path: &Path, reader: R, line: u64, options: &DatasetOptions) -> Self {
        Self { path: path.into(), reader, line, row: 0, limit: options.max_row_bytes }
    }

    fn parse(&mut self, line: u64, bytes: &[u8]) -> Result<RawRow> {
        self.row += 1;
        let at = RowPosition { row: self.row, line: Some(line) };
        let refuse = |reason: String| Error::Row { path: self.path.clone(), at, reason };
        let text = std::str::from_utf8(bytes)
            .map_err(|e| refuse(format!("is not UTF-8 at byte {} of the row", e.valid_up_to() + 1)))?;
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(RawRow { at, fields }),
            Ok(_) => Err(refuse("is not a JSON object; a row looks like {\"text\": \"...\"}".into())),
            Err(e) => Err(refuse(format!("is not valid JSON: {e}"))),
        }
    }

    fn too_long(&mut self, line: u64) -> Error {
        self.row += 1;
        Error::Row {
            path: self.path.clone(),
            at: RowPosition { row: self.row, line: Some(line) },
            reason: format!("is longer than {} bytes; is this a JSON Lines file?", self.limit),
        }
    }

    fn byte(&mut self) -> Result<Option<u8>> {
        let buffer = self.reader.fill_buf().map_err(|e| Error::io(&self.path, e))?;
        let Some(&byte) = buffer.first() else { return Ok(None) };
        self.reader.consume(1);
        self.line += u64::from(byte == b'\n');
        Ok(Some(byte))
    }
}

struct LineRows<R> {
    file: Lines<R>,
}

impl<R: BufRead> RawRows for LineRows<R> {
    fn columns(&self) -> Option<&[String]> {
        None
    }
}

impl<R: BufRead> LineRows<R> {
    fn next_row(&mut self) -> Result<Option<RawRow>> {
        let file = &mut self.file;
        loop {
            let line = file.line;
            let mut bytes = Vec::new();
            let limit = file.limit as u64 + 2;
            let read = (&mut file.reader).take(limit).read_until(b'\n', &mut bytes);
            if read.map_err(|e| Error::io(&file.path, e))? == 0 {
                return Ok(None);
            }
            if bytes.last() != Some(&b'\n') && bytes.len() as u64 == limit {
                // The rest of the line is passed over without being held.
                while !matches!(file.byte()?, None | Some(b'\n')) {}
                return Err(file.too_long(line));
            }
            file.line += u64::from(bytes.last() == Some(&b'\n'));
            let row = bytes.trim_ascii();
            if !row.is_empty() {
                return file.parse(line, row).map(Some);
            }
        }
    }
}

impl<R: BufRead> Iterator for LineRows<R> {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}

/// Where an array's reader stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// After `[`.
    Start,
    /// After a row.
    Between,
    /// After `]`.
    End,
}

/// The rows of a JSON array. Only one row is held at a time: a scan that knows strings and brackets finds
/// where each row ends, and the parser then judges it.
struct ArrayRows<R> {
    file: Lines<R>,
    state: Place,
}

impl<R: BufRead> RawRows for ArrayRows<R> {
    fn columns(&self) -> Option<&[String]> {
        None
    }
}

impl<R: BufRead> ArrayRows<R> {
    fn broken(&mut self, reason: &str) -> Error {
        self.state = Place::End;
        Error::dataset(&self.file.path, format!("line {}: {reason}", self.file.line))
    }

    fn skip_whitespace(&mut self) -> Result<Option<u8>> {
        loop {
            match self.file.byte()? {
                Some(byte) if byte.is_ascii_whitespace() => {}
                other => return Ok(other),
            }
        }
    }

    fn next_row(&mut self) -> Result<Option<RawRow>> {
        if self.state == Place::End {
            return Ok(None);
        }
        let mut byte = self.skip_whitespace()?;
        if byte == Some(b']') {
            self.state = Place::End;
            return match self.skip_whitespace()? {
                None => Ok(None),
                Some(_) => Err(self.broken("there is text after the array's closing bracket")),
            };
        }
        if self.state == Place::Between {
            if byte != Some(b',') && byte.is_some() {
                return Err(self.broken("a comma is missing between two rows"));
            }
            if byte.is_some() {
                byte = self.skip_whitespace()?;
            }
        }
        match byte {
            None => Err(self.broken("the array is not closed; the file is cut short")),
            Some(b'{') => self.object().map(Some),
            Some(_) => Err(self.broken("a row must be a JSON object such as {\"text\": \"...\"}")),
        }
    }

    fn object(&mut self) -> Result<RawRow> {
        let line = self.file.line;
        let mut bytes = vec![b'{'];
        let (mut depth, mut in_string, mut escaped) = (1, false, false);
        let mut too_long = false;
        while depth > 0 {
            let Some(byte) = self.file.byte()? else {
                return Err(self.broken("a row is not closed; the file is cut short"));
            };
            if bytes.len() < self.file.limit {
                bytes.push(byte);
            } else {
                too_long = true;
            }
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
        }
        self.state = Place::Between;
        if too_long {
            return Err(self.file.too_long(line));
        }
        self.file.parse(line, &bytes)
    }
}

impl<R: BufRead> Iterator for ArrayRows<R> {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}
