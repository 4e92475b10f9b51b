//! Conversations on disk, where an operator wants them and a person consented.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use eyas_data::Turn;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// A folder for conversations, and the text that people consent to.
///
/// A thread of its own writes: answers do not wait for the disk, and lines keep the order of the answers.
#[derive(Debug)]
pub struct Storage {
    consent_text: String,
    consent_id: String,
    writer: Mutex<Option<Writer>>,
}

/// The way to the thread that writes.
#[derive(Debug)]
struct Writer {
    lines: Sender<Line>,
    thread: JoinHandle<()>,
}

impl Storage {
    /// Stores into `folder`, which is made where it is missing, with the consent text of a file.
    ///
    /// # Errors
    /// When the folder cannot be made, the text is not there or empty, or the system gives no thread.
    pub fn new(folder: &Path, consent_file: &Path) -> Result<Self> {
        let failed = |path: &Path, error: &dyn std::fmt::Display| {
            Error::Config(format!("{}: {error}", path.display()))
        };
        let consent_text = fs::read_to_string(consent_file).map_err(|error| failed(consent_file, &error))?;
        let consent_text = consent_text.trim().to_owned();
        if consent_text.is_empty() {
            return Err(failed(
                consent_file,
                &"is empty; it must say what is stored, by whom, for what and how long",
            ));
        }
        fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
        let digest = Sha256::digest(consent_text.as_bytes());
        let consent_id = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let (lines, given) = channel();
        let folder = folder.to_owned();
        let thread = thread::Builder::new().name("storage".into()).spawn(move || write(&folder, given))?;
        Ok(Self { consent_text, consent_id, writer: Mutex::new(Some(Writer { lines, thread })) })
    }

    /// What people read before they consent.
    pub fn consent_text(&self) -> &str {
        &self.consent_text
    }

    /// Names the text; a changed text has another, so that old consents do not count for it.
    pub fn consent_id(&self) -> &str {
        &self.consent_id
    }

    /// Gives an exchange to the writer. What the disk does not take is logged, without what people wrote.
    pub(crate) fn store(&self, exchange: &Exchange) {
        let now = chrono::Local::now();
        let line = Line {
            day: now.format("%Y-%m-%d").to_string(),
            text: format!("{}\n", exchange.line(&now.to_rfc3339(), &self.consent_id)),
        };
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.as_ref().is_none_or(|writer| writer.lines.send(line).is_err()) {
            tracing::error!("a conversation was not stored: the server has stopped");
        }
    }

    /// Waits until everything that was given is on disk; nothing is taken afterwards.
    pub(crate) fn finish(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Writer { lines, thread }) = writer {
            drop(lines);
            if thread.join().is_err() {
                tracing::error!("the thread that stores conversations failed");
            }
        }
    }
}

/// An exchange as it is written, and the day whose file it goes to.
struct Line {
    day: String,
    text: String,
}

/// Appends lines to their days' files until no more can come.
fn write(folder: &Path, lines: Receiver<Line>) {
    let mut open: Option<(String, File)> = None;
    for line in lines {
        if let Err(error) = append(folder, &line, &mut open) {
            tracing::error!("a conversation was not stored: {error}");
        }
    }
}

/// One write of a whole line, so that a crash leaves no half of one behind.
fn append(folder: &Path, line: &Line, open: &mut Option<(String, File)>) -> std::io::Result<()> {
    let mut file = match open.take() {
        Some((day, file)) if day == line.day => file,
        _ => append_to(&folder.join(format!("conversations-{}.jsonl", line.day)))?,
    };
    file.write_all(line.text.as_bytes())?;
    file.sync_data()?;
    *open = Some((line.day.clone(), file));
    Ok(())
}

/// Opens a file that its owner alone may read.
fn append_to(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// A conversation up to an answer.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub model: String,
    pub turns: Vec<Turn>,
    pub answers: Vec<String>,
    /// The concern's category, where the care answer was given.
    pub care: Option<Value>,
}

impl Exchange {
    fn line(&self, time: &str, consent_id: &str) -> Value {
        json!({
            "time": time,
            "consent": consent_id,
            "model": self.model,
            "messages": self.turns.iter().map(|turn| json!({"role": turn.role, "content": turn.content})).collect::<Vec<_>>(),
            "answers": self.answers,
            "care": self.care,
        })
    }
}

#[cfg(test)]
mod tests {
    use eyas_data::Role;

    use super::*;

    fn storage(folder: &Path, text: &str) -> Result<Storage> {
        let consent = folder.join("consent.txt");
        fs::write(&consent, text).unwrap();
        Storage::new(&folder.join("stored"), &consent)
    }

    #[test]
    fn every_exchange_is_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let storage = storage(folder.path(), "We keep it.\n").unwrap();
        for answer in ["One\ntwo.", "三"] {
            let exchange = Exchange {
                model: "m".into(),
                turns: vec![Turn::new(Role::User, "Why?")],
                answers: vec![answer.into()],
                care: None,
            };
            storage.store(&exchange);
        }
        storage.finish();
        let file = fs::read_dir(folder.path().join("stored")).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["answers"][0], "One\ntwo.");
        assert_eq!(lines[0]["messages"][0]["content"], "Why?");
        assert_eq!(lines[1]["consent"], storage.consent_id());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_changed_text_needs_a_new_consent() {
        let folder = tempfile::tempdir().unwrap();
        let first = storage(folder.path(), "We keep it for a week.").unwrap();
        let second = storage(folder.path(), "We keep it for a year.").unwrap();
        assert_ne!(first.consent_id(), second.consent_id());
        assert!(storage(folder.path(), " \n").is_err());
    }
}
