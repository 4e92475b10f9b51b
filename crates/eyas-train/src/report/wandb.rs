//! Offline runs for Weights & Biases, which `wandb sync` uploads: `wandb/offline-run-<time>-<id>/run-<id>.wandb`.
//!
//! The file is a log in LevelDB's format (its `log_format.md`) after a header of 7 bytes: blocks of 32 KiB, in which a
//! record is whole or cut in fragments, each with the CRC-32 of its type and data, its length and its type. A record is
//! a `Record` message of wandb's `wandb_internal.proto`. Metrics are named and laid out as transformers'
//! `WandbCallback` has them.
//!
//! A resumed run cuts the file before its checkpoint's step and goes on in it with what the checkpoint has of that step,
//! so the run has one name and no step twice.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use chrono::Local;
use crc::{CRC_32_ISO_HDLC, Crc};
use rand::RngExt;
use serde_json::Value;

use super::protobuf::{Field, Message, fields};
use super::{MetricsWriter, Origin, Run, now, tag};
use crate::state::LogEntry;
use crate::{Error, Result};

const RUNS: &str = "wandb";
const PREFIX: &str = "offline-run-";
/// `:W&B`, the magic number 0xBEE1, version 0.
const HEADER: [u8; 7] = *b":W&B\xe1\xbe\0";
const BLOCK: usize = 1 << 15;
const FRAGMENT_HEADER: usize = 7;
/// Types of a fragment.
const WHOLE: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;
const CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Fields of `Record`.
mod record {
    pub(super) const NUM: u64 = 1;
    pub(super) const HISTORY: u64 = 2;
    pub(super) const SUMMARY: u64 = 3;
    pub(super) const METRIC: u64 = 12;
    pub(super) const RUN: u64 = 17;
    pub(super) const EXIT: u64 = 18;
    pub(super) const HEADER: u64 = 21;
}

/// Fields of every message that pairs a name with a value.
const NESTED_KEY: u64 = 2;
const VALUE_JSON: u64 = 16;

/// What ends a run is one value of its summary, not a point of a curve.
const SINGLE: [&str; 5] =
    ["train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"];
const STEP: &str = "train/global_step";

/// A run's log that is being written.
#[derive(Debug)]
pub(crate) struct RunLog {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    end: u64,
    records: u64,
    /// Points of the curves, the next one's number.
    points: u64,
    /// When the run began, less the time in which it did not run.
    started: f64,
}

impl RunLog {
    /// Goes on in the log of the run that is resumed, or begins a new one.
    pub(crate) fn open(run: &Run<'_>) -> Result<Self> {
        let root = Path::new(&run.recipe.training.output_dir).join(RUNS);
        if run.origin == Origin::Resumed
            && let Some(folder) = newest(&root)?
            && let Some(log) = Self::resume(&folder, run)?
        {
            return Ok(log);
        }
        Self::begin(&root, run)
    }

    fn begin(root: &Path, run: &Run<'_>) -> Result<Self> {
        const ALPHABET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut rng = rand::rng();
        let id: String = (0..8).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
        let time = Local::now().format("%Y%m%d_%H%M%S");
        let folder = root.join(format!("{PREFIX}{time}-{id}"));
        // What `wandb sync` expects beside the log.
        let files = folder.join("files");
        fs::create_dir_all(&files).map_err(|source| Error::Io { path: files.clone(), source })?;
        let path = folder.join(format!("run-{id}.wandb"));
        let fail = |source| Error::Io { path: path.clone(), source };
        let mut file = File::options().write(true).create_new(true).open(&path).map_err(fail)?;
        file.write_all(&HEADER).map_err(fail)?;
        let end = HEADER.len() as u64;
        let mut log = Self { folder, path, file, end, records: 0, points: 0, started: now() };

        // The oldest wandb that may read it; the number is what wandb's own program writes.
        let version =
            Message::default().text(1, concat!("eyas ", env!("CARGO_PKG_VERSION"))).text(2, "0.70.0");
        log.write(record::HEADER, &Message::default().message(1, &version))?;
        let description = log.description(&id, run);
        log.write(record::RUN, &description)?;
        // Every curve is drawn over the step: `defined`, and `step_sync` with it for all others.
        let defined = Message::default().number(3, 1);
        log.write(record::METRIC, &Message::default().text(1, STEP).message(6, &defined))?;
        let synced = Message::default().number(1, 1).number(3, 1);
        log.write(record::METRIC, &Message::default().text(2, "*").text(4, STEP).message(6, &synced))?;
        run.entries_from(0).try_for_each(|entry| log.logged(entry))?;
        Ok(log)
    }

    fn description(&self, id: &str, run: &Run<'_>) -> Message {
        let training = &run.recipe.training;
        let mut config = Message::default();
        for (key, value) in run.settings().into_iter().chain([("model_config".into(), run.model().into())]) {
            config = config.message(1, &item(1, &key, &value));
        }
        let started =
            Message::default().number(1, self.started as u64).number(2, (self.started.fract() * 1e9) as u64);
        Message::default()
            .text(1, id)
            .text(3, &training.wandb_project)
            .message(4, &config)
            .text(8, training.run_name.as_deref().unwrap_or(&training.output_dir))
            .message(17, &started)
    }

    /// Opens a log to go on with at a checkpoint; `None` where it does not say which run it is.
    fn resume(folder: &Path, run: &Run<'_>) -> Result<Option<Self>> {
        let logs = super::entries(folder)?.into_iter();
        let Some(path) = logs.into_iter().find(|path| path.extension().is_some_and(|e| e == "wandb")) else {
            return Ok(None);
        };
        let fail = |source| Error::Io { path: path.clone(), source };
        let bytes = fs::read(&path).map_err(fail)?;
        let mut step = run.state.global_step;
        let Some(mut kept) = Kept::before(&bytes, step) else { return Ok(None) };
        let logged = run.entries_from(0).count() - run.entries_from(step).count();
        if kept.points != logged as u64 {
            // Points are missing or were never of this run: all of them are written anew.
            step = 0;
            kept = Kept::before(&bytes, step).unwrap_or(kept);
        }
        let mut file = File::options().write(true).open(&path).map_err(fail)?;
        file.set_len(kept.end).map_err(fail)?;
        file.seek(SeekFrom::End(0)).map_err(fail)?;
        // What `wandb sync` noted of an upload is of the log as it was; without it the whole run is uploaded anew.
        for note in [".synced", ".syncstate"] {
            let mut beside = path.clone().into_os_string();
            beside.push(note);
            let _ = fs::remove_file(beside);
        }
        let started = now() - kept.runtime;
        let (end, records, points) = (kept.end, kept.records, kept.points);
        let mut log = Self { folder: folder.into(), path, file, end, records, points, started };
        run.entries_from(step).try_for_each(|entry| log.logged(entry))?;
        Ok(Some(log))
    }

    /// Appends a record, cut where a block ends, in one `write`.
    fn write(&mut self, kind: u64, message: &Message) -> Result<()> {
        self.records += 1;
        let record = Message::default().number(record::NUM, self.records).message(kind, message);
        let mut out = Vec::new();
        let mut data = record.as_bytes();
        let mut first = true;
        while first || !data.is_empty() {
            let left = BLOCK - (self.end as usize + out.len()) % BLOCK;
            if left < FRAGMENT_HEADER {
                out.resize(out.len() + left, 0);
                continue;
            }
            let (part, rest) = data.split_at(data.len().min(left - FRAGMENT_HEADER));
            data = rest;
            let kind = match (first, rest.is_empty()) {
                (true, true) => WHOLE,
                (true, false) => FIRST,
                (false, false) => MIDDLE,
                (false, true) => LAST,
            };
            out.extend(checksum(kind, part).to_le_bytes());
            out.extend((part.len() as u16).to_le_bytes());
            out.push(kind);
            out.extend(part);
            first = false;
        }
        self.file.write_all(&out).map_err(|source| Error::Io { path: self.path.clone(), source })?;
        self.end += out.len() as u64;
        Ok(())
    }
}

impl MetricsWriter for RunLog {
    fn logged(&mut self, entry: &LogEntry) -> Result<()> {
        let time = now();
        let mut summary = Message::default();
        let mut curves = vec![
            ("_runtime".to_owned(), Value::from(time - self.started)),
            ("_step".to_owned(), Value::from(self.points)),
            ("_timestamp".to_owned(), Value::from(time)),
        ];
        for (name, value) in entry {
            match name.as_str() {
                "step" => curves.push((STEP.into(), value.clone())),
                name if SINGLE.contains(&name) => summary = summary.message(1, &item(1, name, value)),
                name => curves.push((tag(name), value.clone())),
            }
        }
        let mut history = Message::default();
        for (name, value) in &curves {
            history = history.message(1, &item(NESTED_KEY, name, value));
            summary = summary.message(1, &item(NESTED_KEY, name, value));
        }
        let history = history.message(2, &Message::default().number(1, self.points));
        // The point comes last: what stands without it is cut off when the run is resumed.
        self.write(record::SUMMARY, &summary)?;
        self.write(record::HISTORY, &history)?;
        self.points += 1;
        Ok(())
    }

    fn place(&self) -> &Path {
        &self.folder
    }

    fn close(&mut self, exit_code: u8) -> Result<()> {
        let runtime = (now() - self.started).max(0.0) as u64;
        let exit = Message::default().number(1, exit_code.into()).number(2, runtime);
        self.write(record::EXIT, &exit)?;
        self.file.sync_all().map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

/// A name with its value, as settings, summaries and points have them.
fn item(key_field: u64, key: &str, value: &Value) -> Message {
    Message::default().text(key_field, key).text(VALUE_JSON, &value.to_string())
}

fn checksum(kind: u8, data: &[u8]) -> u32 {
    let mut digest = CHECKSUM.digest();
    digest.update(&[kind]);
    digest.update(data);
    digest.finalize()
}

/// What stands of a log before a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Kept {
    /// Its bytes.
    end: u64,
    records: u64,
    points: u64,
    /// Seconds from the run's beginning to the last point.
    runtime: f64,
}

impl Kept {
    /// Reads a log up to the first point of `step` or a later one, or to where it is torn. `None` where it does not
    /// even say which run it is.
    fn before(bytes: &[u8], step: u64) -> Option<Self> {
        let mut kept = Self::default();
        let mut described = false;
        for (number, (end, record)) in (1..).zip(Records::of(bytes)?) {
            let Some(fields) = fields(&record) else { break };
            let content = fields.iter().find_map(|&(field, value)| match value {
                Field::Bytes(bytes) if field != record::NUM => Some((field, bytes)),
                _ => None,
            });
            match content {
                Some((record::HISTORY, point)) => {
                    let value = |name| point_value(point, name);
                    if value(STEP).is_none_or(|at| at >= step as f64) {
                        break;
                    }
                    kept.points += 1;
                    kept.runtime = value("_runtime").unwrap_or_default();
                }
                Some((record::SUMMARY | record::EXIT, _)) => continue,
                Some((record::RUN, _)) => described = true,
                _ => {}
            }
            (kept.end, kept.records) = (end as u64, number);
        }
        described.then_some(kept)
    }
}

/// The number of this name in a point.
fn point_value(point: &[u8], name: &str) -> Option<f64> {
    fields(point)?.into_iter().find_map(|(field, value)| {
        let (1, Field::Bytes(item)) = (field, value) else { return None };
        let item = fields(item)?;
        let text = |wanted: u64| {
            item.iter().find_map(|&(field, value)| match value {
                Field::Bytes(bytes) if field == wanted => std::str::from_utf8(bytes).ok(),
                _ => None,
            })
        };
        (text(NESTED_KEY)? == name).then(|| text(VALUE_JSON)?.parse().ok())?
    })
}

/// The whole records of a log, each with the place where it ends, up to the first that is torn or damaged.
struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    /// `None` where the bytes begin otherwise.
    fn of(bytes: &'a [u8]) -> Option<Self> {
        bytes.starts_with(&HEADER).then_some(Self { bytes, at: HEADER.len() })
    }
}

impl Iterator for Records<'_> {
    type Item = (usize, Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut record = Vec::new();
        loop {
            let left = BLOCK - self.at % BLOCK;
            if left < FRAGMENT_HEADER {
                self.at += left;
                continue;
            }
            let (header, rest) = self.bytes.get(self.at..)?.split_at_checked(FRAGMENT_HEADER)?;
            let data = rest.get(..usize::from(u16::from_le_bytes([header[4], header[5]])))?;
            let kind = header[6];
            if checksum(kind, data).to_le_bytes() != header[..4] {
                return None;
            }
            record.extend(data);
            self.at += FRAGMENT_HEADER + data.len();
            if matches!(kind, WHOLE | LAST) {
                return Some((self.at, record));
            }
        }
    }
}

/// The run in a folder that was begun last.
fn newest(root: &Path) -> Result<Option<PathBuf>> {
    let is_run = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX))
    };
    Ok(super::entries(root)?.into_iter().filter(is_run).max())
}
