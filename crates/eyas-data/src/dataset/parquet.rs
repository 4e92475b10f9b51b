//! Parquet: text and lists of structs, read a batch of rows at a time.

use std::any::Any;
use std::fmt::Display;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch, StructArray, types};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Value};

use super::{DatasetOptions, RawRow, RawRows, Schema};
use crate::error::{Error, Result, RowPosition};

/// Rows decoded at once: enough to amortise the decoder, few enough to hold long texts.
const BATCH_ROWS: usize = 256;

pub(super) struct ParquetRows {
    path: PathBuf,
    reader: ParquetRecordBatchReader,
    columns: Vec<String>,
    limit: usize,
    batch: Option<RecordBatch>,
    next_in_batch: usize,
    row: u64,
    expected: u64,
    finished: bool,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, file: File, options: &DatasetOptions) -> Result<Self> {
        let damaged = |e: String| Error::dataset(path, format!("is not a whole Parquet file: {e}"));
        let builder = guarded(|| ParquetRecordBatchReaderBuilder::try_new(file)).map_err(damaged)?;
        let all: Vec<String> = builder.schema().fields().iter().map(|f| f.name().clone()).collect();
        let schema = Schema::detect(all.iter().map(String::as_str), options)
            .map_err(|reason| Error::dataset(path, reason))?;
        // Only the columns that a row is made of are read from the disk.
        let wanted = schema.columns(options);
        let roots: Vec<usize> = (0..all.len()).filter(|&i| wanted.contains(&all[i].as_str())).collect();
        let columns = roots.iter().map(|&i| all[i].clone()).collect();
        let expected = u64::try_from(builder.metadata().file_metadata().num_rows())
            .map_err(|_| damaged("its row count is negative".into()))?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let reader = guarded(|| builder.with_projection(mask).with_batch_size(BATCH_ROWS).build());
        Ok(Self {
            path: path.into(),
            reader: reader.map_err(damaged)?,
            columns,
            limit: options.max_row_bytes,
            batch: None,
            next_in_batch: 0,
            row: 0,
            expected,
            finished: false,
        })
    }

    fn next_row(&mut self) -> Result<Option<RawRow>> {
        while self.batch.as_ref().is_none_or(|batch| self.next_in_batch >= batch.num_rows()) {
            let reader = &mut self.reader;
            let read = guarded(|| reader.next().transpose());
            self.next_in_batch = 0;
            self.batch = read.map_err(|e| {
                let rows = format!("after row {} of {}", self.row, self.expected);
                Error::dataset(&self.path, format!("cannot be read {rows}: {e}"))
            })?;
            if self.batch.is_none() {
                if self.row != self.expected {
                    let counts = format!("holds {} rows but says {}", self.row, self.expected);
                    return Err(Error::dataset(&self.path, counts));
                }
                return Ok(None);
            }
        }
        self.row += 1;
        let at = RowPosition { row: self.row, line: None };
        let refuse = |reason: String| Error::Row { path: self.path.clone(), at, reason };
        let mut fields = Map::new();
        let mut bytes = 0;
        if let Some(batch) = &self.batch {
            for (name, column) in self.columns.iter().zip(batch.columns()) {
                let value = value(column.as_ref(), self.next_in_batch, &mut bytes)
                    .map_err(|e| refuse(format!("column `{name}`: {e}")))?;
                fields.insert(name.clone(), value);
            }
        }
        self.next_in_batch += 1;
        if bytes > self.limit {
            return Err(refuse(format!("is longer than {} bytes", self.limit)));
        }
        Ok(Some(RawRow { at, fields }))
    }
}

impl RawRows for ParquetRows {
    fn columns(&self) -> Option<&[String]> {
        Some(&self.columns)
    }
}

impl Iterator for ParquetRows {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let row = self.next_row().transpose();
        self.finished = matches!(row, None | Some(Err(Error::Dataset { .. })));
        row
    }
}

/// Runs the Parquet library; its panics on damaged files become errors.
///
/// The library checks most of what it reads, yet some damaged pages reach an assertion of its own.
fn guarded<T, E: Display>(run: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(e.to_string()),
        Err(panic) => Err(format!("the page data are damaged ({})", panic_text(panic.as_ref()))),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown")
}

/// One cell as JSON. `bytes` counts the text taken, for the limit on a row.
fn value(array: &dyn Array, row: usize, bytes: &mut usize) -> Result<Value, String> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    let mut text = |text: &str| {
        *bytes += text.len();
        Ok(Value::String(text.to_string()))
    };
    if let Some(strings) = array.as_string_opt::<i32>() {
        return text(strings.value(row));
    }
    if let Some(strings) = array.as_string_opt::<i64>() {
        return text(strings.value(row));
    }
    if let Some(strings) = array.as_string_view_opt() {
        return text(strings.value(row));
    }
    if let Some(dictionary) = array.as_any_dictionary_opt() {
        let keys = dictionary.normalized_keys();
        return value(dictionary.values().as_ref(), keys[row], bytes);
    }
    if let Some(lists) = array.as_list_opt::<i32>() {
        return list(lists.value(row).as_ref(), bytes);
    }
    if let Some(lists) = array.as_list_opt::<i64>() {
        return list(lists.value(row).as_ref(), bytes);
    }
    if let Some(structs) = array.as_struct_opt() {
        return object(structs, row, bytes);
    }
    if let Some(booleans) = array.as_boolean_opt() {
        return Ok(booleans.value(row).into());
    }
    macro_rules! number {
        ($($kind:ident),*) => {
            $(if let Some(numbers) = array.as_primitive_opt::<types::$kind>() {
                return Ok(numbers.value(row).into());
            })*
        };
    }
    number!(
        Int8Type,
        Int16Type,
        Int32Type,
        Int64Type,
        UInt8Type,
        UInt16Type,
        UInt32Type,
        UInt64Type,
        Float32Type,
        Float64Type
    );
    Err(format!("its type {} is not supported", array.data_type()))
}

fn list(items: &dyn Array, bytes: &mut usize) -> Result<Value, String> {
    (0..items.len()).map(|i| value(items, i, bytes)).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn object(structs: &StructArray, row: usize, bytes: &mut usize) -> Result<Value, String> {
    let mut fields = Map::new();
    for (name, column) in structs.column_names().into_iter().zip(structs.columns()) {
        fields.insert(name.to_string(), value(column.as_ref(), row, bytes)?);
    }
    Ok(Value::Object(fields))
}
