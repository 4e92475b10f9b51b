//! Fetching one file: resumed where it broke off, checked, and only then in its place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ureq::http::StatusCode;

use crate::digest::{Running, read_into};
use crate::events::{Event, Observer};
use crate::http::{Call, header};
use crate::repository::{RemoteFile, Repository};
use crate::store::Store;
use crate::{Error, Result};

/// Broken connections in a row, without a byte in between, until it is given up.
const PATIENCE: u32 = 5;

/// A file that is to be fetched.
pub(crate) struct Fetch<'a> {
    pub repository: Repository<'a>,
    pub store: &'a Store,
    pub commit: &'a str,
    pub file: &'a RemoteFile,
    pub observer: &'a dyn Observer,
    /// Set when another file has failed.
    pub stop: &'a AtomicBool,
}

/// Where a file's bytes gather: beside its blob, under Hugging Face's own name for it.
pub(crate) fn partial(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(".incomplete");
    name.into()
}

impl Fetch<'_> {
    /// Fetches the file, unless its contents are there, and makes it a file of its commit.
    pub(crate) fn run(&self) -> Result<()> {
        let path = &self.file.path;
        let _lock = self.store.lock(&self.file.checksum, || {
            self.observer.event(Event::Note(&format!("another program is fetching {path}; waiting for it")));
        })?;
        let blob = self.store.blob(&self.file.checksum);
        let is_new = !blob.exists();
        if is_new {
            self.fetch(&blob)?;
        }
        self.store.link(&self.file.checksum, self.commit, path)?;
        if is_new {
            self.observer.event(Event::Done(path));
        }
        Ok(())
    }

    fn fetch(&self, blob: &Path) -> Result<()> {
        let path = partial(blob);
        let io = |source| Error::Io { path: path.clone(), source };
        let file =
            OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path).map_err(io)?;
        let mut gathered = Gathered { file, running: self.file.checksum.start(self.file.size), length: 0 };
        gathered.length = read_into(&mut gathered.file, &mut gathered.running).map_err(io)?;
        self.observer.event(Event::Moved(gathered.length as i64));
        if gathered.length > self.file.size {
            self.restart(&mut gathered).map_err(io)?;
        }
        let mut was_resumed = gathered.length > 0;
        loop {
            self.gather(&mut gathered, &path)?;
            let actual =
                std::mem::replace(&mut gathered.running, self.file.checksum.start(self.file.size)).finish();
            if actual == self.file.checksum {
                break;
            }
            self.restart(&mut gathered).map_err(io)?;
            // What was there may have been spoilt long ago; what comes now in one piece may not be.
            if !std::mem::take(&mut was_resumed) {
                let _ = fs::remove_file(&path);
                return Err(Error::Damaged {
                    file: format!("{}: {}", self.repository.name.id(), self.file.path),
                    actual: actual.digits().into(),
                    expected: self.file.checksum.digits().into(),
                });
            }
            self.observer.event(Event::Note(&format!(
                "{}: what was there from an earlier try is damaged; fetching it anew",
                self.file.path
            )));
        }
        gathered.file.sync_all().map_err(io)?;
        fs::rename(&path, blob).map_err(io)
    }

    /// Adds bytes until there are as many as the file has.
    fn gather(&self, gathered: &mut Gathered, path: &Path) -> Result<()> {
        let what = format!("{}: {}", self.repository.name.id(), self.file.path);
        let io = |source| Error::Io { path: path.into(), source };
        let client = self.repository.client;
        let mut broken = 0;
        while gathered.length < self.file.size {
            let mut call = Call::get(self.repository.file_url(self.commit, &self.file.path), &what);
            call.headers.push(("accept-encoding".into(), "identity".into()));
            if gathered.length > 0 {
                call.headers.push(("range".into(), format!("bytes={}-", gathered.length)));
            }
            let mut response = client.send(&call, self.observer)?;
            match response.status() {
                StatusCode::PARTIAL_CONTENT if starts_at(&response, gathered.length) => {}
                StatusCode::OK => self.restart(gathered).map_err(io)?,
                StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                    // The range means nothing to this server: from the start, then.
                    self.restart(gathered).map_err(io)?;
                    broken += 1;
                    if broken > PATIENCE {
                        let reason = "it answers another range than it was asked for".into();
                        return Err(Error::Protocol { what, reason });
                    }
                    continue;
                }
                _ => self.repository.check(&mut response, self.commit, Some(&self.file.path))?,
            }
            let before = gathered.length;
            let end = self.copy(response.body_mut().as_reader(), gathered);
            let reason = match end {
                Ok(()) if gathered.length == self.file.size => return Ok(()),
                Ok(()) => "it ended too early".into(),
                Err(Broken::Connection(error)) => error.to_string(),
                Err(Broken::Disk(error)) => return Err(io(error)),
                Err(Broken::TooLong) => {
                    self.restart(gathered).map_err(io)?;
                    return Err(Error::Protocol {
                        what,
                        reason: "it sends more bytes than the file has".into(),
                    });
                }
                Err(Broken::Stopped) => return Err(Error::NotFound(format!("{what}: stopped"))),
            };
            broken = if gathered.length > before { 0 } else { broken + 1 };
            if broken > PATIENCE {
                return Err(client.network(&what, &reason));
            }
            let told = format!("{what}: the connection broke at byte {} ({reason})", gathered.length);
            client.pause(broken, None, &told, self.observer);
        }
        Ok(())
    }

    fn copy(&self, mut body: impl Read, gathered: &mut Gathered) -> Result<(), Broken> {
        let mut buffer = vec![0; 1 << 18];
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Broken::Stopped);
            }
            let read = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Broken::Connection(error)),
            };
            if gathered.length + read as u64 > self.file.size {
                return Err(Broken::TooLong);
            }
            gathered.file.write_all(&buffer[..read]).map_err(Broken::Disk)?;
            gathered.running.update(&buffer[..read]);
            gathered.length += read as u64;
            self.observer.event(Event::Moved(read as i64));
        }
    }

    fn restart(&self, gathered: &mut Gathered) -> io::Result<()> {
        self.observer.event(Event::Moved(-(gathered.length as i64)));
        gathered.file.set_len(0)?;
        gathered.file.rewind()?;
        gathered.running = self.file.checksum.start(self.file.size);
        gathered.length = 0;
        Ok(())
    }
}

/// What has come so far.
struct Gathered {
    file: File,
    running: Running,
    length: u64,
}

enum Broken {
    Connection(io::Error),
    Disk(io::Error),
    TooLong,
    Stopped,
}

/// Whether a part begins where it was asked to.
fn starts_at<T>(response: &ureq::http::Response<T>, start: u64) -> bool {
    let range = header(response, "content-range").and_then(|range| range.strip_prefix("bytes "));
    range.and_then(|range| range.split('-').next()?.trim().parse().ok()) == Some(start)
}
