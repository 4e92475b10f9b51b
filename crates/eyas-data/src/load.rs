//! From a file to clean rows: reading, cleaning, anonymising, and counting duplicates.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::anonymise::anonymise_sample;
use crate::clean::clean_sample;
use crate::conversation::{Role, Sample};
use crate::dataset::{self, DatasetOptions, Row, Rows};
use crate::error::{Error, Result};
use crate::hash::hash;
use crate::report::Report;

/// What is done to rows on their way in.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// How the file is read.
    pub dataset: DatasetOptions,
    /// Remove unwanted characters ([`crate::clean`]).
    pub clean: bool,
    /// Replace personal data by placeholders ([`crate::anonymise`]).
    pub anonymise: bool,
    /// Leave out rows that cannot be read or are empty, and count them, instead of stopping at the first.
    pub skip_bad_rows: bool,
    /// Leave out rows equal to an earlier one. They are counted either way.
    pub drop_duplicates: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dataset: DatasetOptions::default(),
            clean: true,
            anonymise: false,
            skip_bad_rows: false,
            drop_duplicates: false,
        }
    }
}

/// Reads a data set.
///
/// # Errors
/// When the file cannot be read, no row is left, or (unless `skip_bad_rows`) a row is unreadable or empty; the
/// message names the file, the line or row, and the column.
pub fn load(path: &Path, options: &LoadOptions) -> Result<(Vec<Row>, Report)> {
    collect(dataset::open(path, &options.dataset)?, path, options)
}

/// Reads a data set that lies in several files, in their order.
///
/// # Errors
/// As [`load`]; a file without rows is none where others have some.
pub fn load_all(paths: &[PathBuf], options: &LoadOptions) -> Result<(Vec<Row>, Report)> {
    let mut gathered = Gathered::new(options);
    for path in paths {
        gathered.add(dataset::open(path, &options.dataset)?, path)?;
    }
    gathered.finish(paths.first().map_or(Path::new("the data set"), PathBuf::as_path))
}

/// [`load`] for rows that are open already; `path` is for messages.
///
/// # Errors
/// As [`load`].
pub fn collect(source: Rows, path: &Path, options: &LoadOptions) -> Result<(Vec<Row>, Report)> {
    let mut gathered = Gathered::new(options);
    gathered.add(source, path)?;
    gathered.finish(path)
}

/// Clean rows so far, of one file or several.
struct Gathered<'a> {
    options: &'a LoadOptions,
    report: Report,
    seen: HashSet<u64>,
    rows: Vec<Row>,
}

impl<'a> Gathered<'a> {
    fn new(options: &'a LoadOptions) -> Self {
        let report = Report { duplicates_dropped: options.drop_duplicates, ..Report::default() };
        Self { options, report, seen: HashSet::new(), rows: Vec::new() }
    }

    fn add(&mut self, mut source: Rows, path: &Path) -> Result<()> {
        let Self { options, report, seen, rows } = self;
        while let Some(row) = source.next() {
            let mut row = match row {
                Ok(row) => row,
                Err(Error::Row { .. }) if options.skip_bad_rows => {
                    report.read += 1;
                    report.bad += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            report.read += 1;
            if options.clean {
                report.cleaned += clean_sample(&mut row.sample);
            }
            if options.anonymise {
                report.anonymised += anonymise_sample(&mut row.sample);
            }
            if let Some(reason) = emptiness(&row.sample, &source) {
                if options.skip_bad_rows {
                    report.empty += 1;
                    continue;
                }
                return Err(Error::Row { path: path.into(), at: row.at, reason });
            }
            if !seen.insert(hash(0, &row.sample.texts())) {
                report.duplicates += 1;
                if options.drop_duplicates {
                    continue;
                }
            }
            rows.push(row);
        }
        Ok(())
    }

    fn finish(self, path: &Path) -> Result<(Vec<Row>, Report)> {
        let Self { report, rows, .. } = self;
        if rows.is_empty() {
            let reason = if report.read == 0 {
                "has no rows".into()
            } else {
                format!("has no usable row among {}", report.read)
            };
            return Err(Error::dataset(path, reason));
        }
        Ok((rows, report))
    }
}

/// Why a row has nothing to say, if so.
fn emptiness(sample: &Sample, source: &Rows) -> Option<String> {
    let column = match source.schema() {
        Some(dataset::Schema::Text { column } | dataset::Schema::Messages { column }) => column.as_str(),
        _ => "prompt",
    };
    let empty = |text: &str| text.trim().is_empty();
    match sample {
        Sample::Text(text) => empty(text).then(|| format!("column `{column}` is empty")),
        Sample::PromptCompletion { prompt, completion } => {
            let mut columns = [("prompt", prompt), ("completion", completion)].into_iter();
            let found = columns.find(|(_, text)| empty(text));
            found.map(|(column, _)| format!("column `{column}` is empty"))
        }
        Sample::Chat { turns, prompt_turns } => {
            if turns.len() <= *prompt_turns {
                let column = if *prompt_turns > 0 { "completion" } else { column };
                return Some(format!("column `{column}` has no messages"));
            }
            // A system turn may be empty: templates then leave their own out.
            let found = turns.iter().position(|turn| turn.role != Role::System && empty(&turn.content));
            found.map(|i| {
                let (column, i) = if *prompt_turns > 0 && i >= *prompt_turns {
                    ("completion", i - prompt_turns)
                } else {
                    (column, i)
                };
                format!("column `{column}`, message {}: `content` is empty", i + 1)
            })
        }
    }
}
