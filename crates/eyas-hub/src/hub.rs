//! The hub with its cache: what is named is brought here, as far as it is needed.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Result;
use crate::events::{Event, Observer};
use crate::fetch::{Fetch, partial};
use crate::http::Client;
use crate::name::{HubName, RepoKind};
use crate::repository::{RemoteFile, Repository};
use crate::settings::Settings;
use crate::store::Store;
use crate::{Error, select, splits};

/// Files that travel at once.
const AT_ONCE: usize = 4;

/// A hub, and the cache that is shared with Hugging Face's own tools.
#[derive(Clone, Debug)]
pub struct Hub {
    pub(crate) client: Client,
}

/// What is wanted of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Model,
    Config,
    Adapter,
    Rows,
}

/// A data set's files on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetFiles {
    /// The files of the rows, in order.
    pub files: Vec<PathBuf>,
    /// What was chosen, for a person to read.
    pub report: String,
}

/// Files of a commit in the cache.
struct Snapshot {
    folder: PathBuf,
    files: Vec<String>,
    left: Vec<String>,
}

impl Hub {
    /// A hub with these settings.
    pub fn new(settings: Settings) -> Self {
        Self { client: Client::new(settings) }
    }

    /// The hub of the environment.
    ///
    /// # Errors
    /// When no folder for the cache can be found.
    pub fn from_env() -> Result<Self> {
        Settings::from_env().map(Self::new)
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        self.client.settings()
    }

    /// A model's folder, or its GGUF file where it has no other weights or one was named. What is missing is fetched:
    /// the description, the tokenizer, and one set of weights.
    ///
    /// # Errors
    /// When the repository, the revision or the file is not there or not for this person, the disk is too small, or
    /// the network fails and the cache does not hold it.
    pub fn model(&self, name: &HubName, observer: &dyn Observer) -> Result<PathBuf> {
        let snapshot = self.snapshot(name, RepoKind::Model, Want::Model, observer)?;
        Ok(match (name.file(), snapshot.files.as_slice()) {
            (Some(file), _) => snapshot.folder.join(file),
            (None, [gguf]) if gguf.ends_with(".gguf") => snapshot.folder.join(gguf),
            _ => snapshot.folder,
        })
    }

    /// A model's `config.json`, without its weights; `None` where it has none, as GGUF files.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn config(&self, name: &HubName, observer: &dyn Observer) -> Result<Option<PathBuf>> {
        let snapshot = self.snapshot(name, RepoKind::Model, Want::Config, observer)?;
        Ok(snapshot.files.first().map(|file| snapshot.folder.join(file)))
    }

    /// An adapter's folder.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn adapter(&self, name: &HubName, observer: &dyn Observer) -> Result<PathBuf> {
        Ok(self.snapshot(name, RepoKind::Model, Want::Adapter, observer)?.folder)
    }

    /// The files of a data set's rows.
    ///
    /// # Errors
    /// As [`Hub::model`], and when it cannot be told which files are meant.
    pub fn dataset(&self, name: &HubName, observer: &dyn Observer) -> Result<DatasetFiles> {
        let snapshot = self.snapshot(name, RepoKind::Dataset, Want::Rows, observer)?;
        let mut report = format!("{name}: rows of {}", snapshot.files.join(", "));
        if let Some(first) = snapshot.left.first() {
            const SHOWN: usize = 5;
            let list = snapshot.left.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = snapshot.left.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            report += &format!("; not used: {list}{more} (named {}/{first}, for instance)", name.id());
        }
        let files = snapshot.files.iter().map(|file| snapshot.folder.join(file)).collect();
        Ok(DatasetFiles { files, report })
    }

    fn snapshot(
        &self,
        name: &HubName,
        kind: RepoKind,
        want: Want,
        observer: &dyn Observer,
    ) -> Result<Snapshot> {
        let store = Store::new(&self.settings().cache, kind, name);
        let cached = || self.cached(&store, name, want);
        // The files of a commit never change.
        if name.is_pinned()
            && let Ok(found) = cached()
        {
            return Ok(found);
        }
        if self.settings().offline {
            return cached().map_err(|error| Error::Offline(error.to_string()));
        }
        match self.fetched(&store, name, kind, want, observer) {
            Err(error) if error.is_out_of_reach() => match cached() {
                Ok(found) => {
                    observer.event(Event::Note(&format!("{error}. What the cache holds is used instead")));
                    Ok(found)
                }
                Err(_) => Err(error),
            },
            result => result,
        }
    }

    /// What the cache holds, if that is all that is wanted.
    fn cached(&self, store: &Store, name: &HubName, want: Want) -> Result<Snapshot> {
        let missing = || {
            let cache = self.settings().cache.display();
            Error::NotFound(format!("{name} is not in the cache ({cache})"))
        };
        let commit = store.commit(name.revision()).ok_or_else(missing)?;
        let (folder, names) = (store.snapshot(&commit), store.files(&commit));
        if names.is_empty() {
            return Err(missing());
        }
        let mut read = |file: &str| {
            let path = folder.join(file);
            fs::read(&path).map_err(|source| Error::Io { path, source })
        };
        let incomplete =
            |error: Error| Error::NotFound(format!("the cache holds {name} in part only ({error})"));
        let (files, left) = chosen(name, want, &names, &mut read).map_err(incomplete)?;
        Ok(Snapshot { folder, files, left })
    }

    fn fetched(
        &self,
        store: &Store,
        name: &HubName,
        kind: RepoKind,
        want: Want,
        observer: &dyn Observer,
    ) -> Result<Snapshot> {
        let repository = Repository { client: &self.client, kind, name };
        let commit = match name.is_pinned() {
            true => name.revision().to_owned(),
            false => repository.commit(name.revision(), observer)?,
        };
        let remote = repository.files(&commit, observer)?;
        let names: Vec<String> = remote.iter().map(|file| file.path.clone()).collect();
        store.make()?;
        let all = Travel { hub: self, repository, store, commit: &commit, observer };
        // A list of shards is needed before it is known what is needed.
        let mut read = |file: &str| {
            all.run(&pick(&remote, &[file.to_owned()]), false)?;
            let path = store.snapshot(&commit).join(file);
            fs::read(&path).map_err(|source| Error::Io { path, source })
        };
        let (files, left) = chosen(name, want, &names, &mut read)?;
        all.run(&pick(&remote, &files), true)?;
        // Last, so that a revision never stands for what is here in part only: whoever looks at a newer description
        // keeps the weights of the older.
        if want != Want::Config || store.commit(name.revision()).is_none() {
            store.set_commit(name.revision(), &commit)?;
        }
        Ok(Snapshot { folder: store.snapshot(&commit), files, left })
    }
}

/// The files that are wanted of those that there are, and tables of rows that are not.
fn chosen(
    name: &HubName,
    want: Want,
    names: &[String],
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>>,
) -> Result<(Vec<String>, Vec<String>)> {
    Ok(match want {
        Want::Model => (select::model(name, names, read)?, Vec::new()),
        Want::Config => (select::config(name, names), Vec::new()),
        Want::Adapter => (select::adapter(name, names)?, Vec::new()),
        Want::Rows => {
            let choice = splits::choose(name, names)?;
            (choice.files, choice.left)
        }
    })
}

fn pick<'a>(remote: &'a [RemoteFile], wanted: &[String]) -> Vec<&'a RemoteFile> {
    remote.iter().filter(|file| wanted.contains(&file.path)).collect()
}

/// Files of one commit on their way into the cache.
struct Travel<'a> {
    hub: &'a Hub,
    repository: Repository<'a>,
    store: &'a Store,
    commit: &'a str,
    observer: &'a dyn Observer,
}

impl Travel<'_> {
    /// Fetches what is missing, several files at a time, and makes all of them files of the commit.
    fn run(&self, files: &[&RemoteFile], told: bool) -> Result<()> {
        let Self { repository, store, commit, observer, .. } = *self;
        let missing: Vec<&RemoteFile> =
            files.iter().copied().filter(|file| !store.blob(&file.checksum).exists()).collect();
        let missing: Vec<&RemoteFile> =
            missing.into_iter().filter(|file| !store.snapshot(commit).join(&file.path).exists()).collect();
        self.check_space(&missing)?;
        if told && !missing.is_empty() {
            let bytes = missing.iter().map(|file| file.size).sum();
            observer.event(Event::Started { what: repository.name.id(), files: missing.len(), bytes });
        }
        let queue: Mutex<VecDeque<&RemoteFile>> = Mutex::new(files.iter().copied().collect());
        let (stop, failed) = (AtomicBool::new(false), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(files.len()) {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let Some(file) = lock(&queue).pop_front() else { break };
                        let fetch = Fetch { repository, store, commit, file, observer, stop: &stop };
                        if let Err(error) = fetch.run() {
                            stop.store(true, Ordering::Relaxed);
                            lock(&failed).get_or_insert(error);
                        }
                    }
                });
            }
        });
        if told && !missing.is_empty() {
            observer.event(Event::Finished);
        }
        match lock(&failed).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Fails before the first byte where the disk is too small for all of them.
    fn check_space(&self, missing: &[&RemoteFile]) -> Result<()> {
        let there = |file: &RemoteFile| {
            let path = partial(&self.store.blob(&file.checksum));
            fs::metadata(path).map_or(0, |metadata| metadata.len()).min(file.size)
        };
        let needed =
            missing.iter().fold(0u64, |sum, file| sum.saturating_add(file.size.saturating_sub(there(file))));
        let folder: &Path = &self.hub.settings().cache;
        // A file system that does not say how much is left is no reason to stop.
        let Ok(free) = fs4::available_space(folder) else { return Ok(()) };
        if needed <= free {
            return Ok(());
        }
        let what = self.repository.name.id().to_owned();
        Err(Error::DiskFull { what, needed, free, folder: folder.into() })
    }
}

/// A lock whose holder never panics while it holds it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
