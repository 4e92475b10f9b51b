//! Event files for TensorBoard, with the tags of transformers' `TensorBoardCallback`.
//!
//! An event file is a sequence of records (TensorFlow's `TFRecord`): the length in 8 bytes, its checksum, the record,
//! its checksum; little endian, CRC-32C, masked. A record is an `Event` message of `tensorflow/core/util/event.proto`.
//!
//! Each process writes a file of its own, one `write` a record, so a crash can tear the last record only, and readers
//! pass over that. A resumed run writes beside the earlier file and begins with a `SessionLog` of status `START` at
//! its checkpoint's step: TensorBoard then drops what the earlier process logged from there on.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use chrono::Local;
use crc::{CRC_32_ISCSI, Crc};

use super::protobuf::Message;
use super::{MetricsWriter, Origin, Run, now, step_of, tag};
use crate::state::LogEntry;
use crate::{Error, Result};

/// The folder of event files in the output folder; each run has one of its own in it.
const RUNS: &str = "runs";
/// What every event file's name begins with; the time in seconds follows.
const PREFIX: &str = "events.out.tfevents.";
const CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// An event file that is being written.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Starts a file for a run: beside the files of the run that it goes on from, or in a folder of its own.
    pub(crate) fn open(run: &Run<'_>) -> Result<Self> {
        let training = &run.recipe.training;
        let root = Path::new(&training.output_dir).join(RUNS);
        let (folder, earlier) = match &training.logging_dir {
            Some(folder) => (PathBuf::from(folder), newest(Path::new(folder))?),
            None => match run.origin {
                Origin::Resumed => match newest_folder(&root)? {
                    Some((seconds, folder)) => (folder, Some(seconds)),
                    None => (new_folder(&root), None),
                },
                Origin::Fresh => (new_folder(&root), None),
            },
        };
        let fail = |source| Error::Io { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(fail)?;
        // Readers take the files in the order of their names, and a run may be resumed within the second.
        let seconds = (now() as u64).max(earlier.map_or(0, |seconds| seconds + 1));
        let path = folder.join(format!("{PREFIX}{seconds:010}.eyas.{}.0", std::process::id()));
        let file = File::options().append(true).create_new(true).open(&path);
        let file = file.map_err(|source| Error::Io { path: path.clone(), source })?;
        let mut events = Self { path, file };
        events.write(Message::default().double(1, now()).text(3, "brain.Event:2"))?;
        let goes_on = earlier.is_some() && run.origin == Origin::Resumed;
        let from = if goes_on { run.state.global_step } else { 0 };
        if earlier.is_some() {
            const START: u64 = 1;
            let session = Message::default().number(1, START);
            events.write(event(from).message(7, &session))?;
        }
        if !goes_on {
            for (name, values) in [("args", run.settings()), ("model_config", run.model())] {
                let json = serde_json::to_string_pretty(&values).unwrap_or_default();
                events.write(text(name, &format!("```json\n{json}\n```")))?;
            }
        }
        run.entries_from(from).try_for_each(|entry| events.logged(entry))?;
        Ok(events)
    }

    fn write(&mut self, event: Message) -> Result<()> {
        let data = event.as_bytes();
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked(data).to_le_bytes());
        self.file.write_all(&record).map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

impl MetricsWriter for EventFile {
    fn logged(&mut self, entry: &LogEntry) -> Result<()> {
        let step = step_of(entry);
        let summary = entry
            .iter()
            .filter(|(name, _)| *name != "step")
            .filter_map(|(name, value)| Some((tag(name), value.as_f64()?)))
            .fold(Message::default(), |summary, (tag, value)| {
                summary.message(1, &Message::default().text(1, &tag).float(2, value as f32))
            });
        self.write(event(step).message(5, &summary))
    }

    fn place(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    fn close(&mut self, _exit_code: u8) -> Result<()> {
        self.file.sync_all().map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

fn masked(bytes: &[u8]) -> u32 {
    CHECKSUM.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn event(step: u64) -> Message {
    Message::default().double(1, now()).number(2, step)
}

/// A text for the page of that name, as torch's `SummaryWriter.add_text` lays it out.
fn text(name: &str, text: &str) -> Message {
    const STRING: u64 = 7;
    let plugin = Message::default().text(1, "text");
    let shape = Message::default().message(2, &Message::default().number(1, 1));
    let tensor = Message::default().number(1, STRING).message(2, &shape).text(8, text);
    let value = Message::default()
        .text(1, &format!("{name}/text_summary"))
        .message(9, &Message::default().message(1, &plugin))
        .message(8, &tensor);
    event(0).message(5, &Message::default().message(1, &value))
}

/// Torch's default name, without the machine's: the folder may be published with the adapter.
fn new_folder(root: &Path) -> PathBuf {
    let name = Local::now().format("%b%d_%H-%M-%S").to_string();
    let free = |place: &PathBuf| !place.exists();
    let numbered = |number: u32| root.join(format!("{name}_{number}"));
    Some(root.join(&name)).filter(free).or_else(|| (1..).map(numbered).find(free)).unwrap_or_default()
}

/// The run in a folder that was begun last: its event files' newest time, and its folder.
fn newest_folder(root: &Path) -> Result<Option<(u64, PathBuf)>> {
    let mut found = None;
    for entry in super::entries(root)? {
        if let Some(seconds) = newest(&entry)? {
            found = found.max(Some((seconds, entry)));
        }
    }
    Ok(found)
}

/// The newest time, in seconds, of the event files in a folder.
fn newest(folder: &Path) -> Result<Option<u64>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let seconds = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
        name.split('.').next()?.parse().ok()
    };
    Ok(super::entries(folder)?.into_iter().filter_map(seconds).max())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_castagnoli_s_masked() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(CHECKSUM.checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked(&[0; 32]), 0x0fd7_fffa);
    }

    #[test]
    fn a_second_run_of_the_same_second_has_a_folder_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let first = new_folder(root.path());
        fs::create_dir(&first).unwrap();
        let second = new_folder(root.path());
        assert_ne!(first, second);
    }
}
