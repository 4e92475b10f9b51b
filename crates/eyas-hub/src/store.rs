//! Hugging Face's cache on disk, shared with its own tools.
//!
//! ```text
//! models--owner--name/refs/main             the commit of a branch or tag
//!                     blobs/<checksum>      the contents, each once
//!                     snapshots/<commit>/   the files of a commit: links to blobs
//! .locks/models--owner--name/<checksum>.lock
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::digest::Checksum;
use crate::name::{HubName, RepoKind, is_commit};
use crate::{Error, Result};

/// A repository's folder in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    cache: PathBuf,
    folder_name: String,
}

impl Store {
    pub(crate) fn new(cache: &Path, kind: RepoKind, name: &HubName) -> Self {
        Self {
            cache: cache.into(),
            folder_name: format!("{}--{}", kind.plural(), name.id().replace('/', "--")),
        }
    }

    fn folder(&self) -> PathBuf {
        self.cache.join(&self.folder_name)
    }

    /// Where contents are kept.
    pub(crate) fn blob(&self, checksum: &Checksum) -> PathBuf {
        self.folder().join("blobs").join(checksum.digits())
    }

    /// The folder of a commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// The commit that a revision stood for when it was last fetched.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let text = fs::read_to_string(self.folder().join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Notes the commit that a revision stands for.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder().join("refs").join(revision);
        let told = told(&path);
        let folder = path.parent().unwrap_or(&self.cache);
        fs::create_dir_all(folder).map_err(&told)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".eyas-").suffix(".tmp");
        // Readable as any file that the user makes: the cache may be shared.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let temporary = builder.tempfile_in(folder).map_err(&told)?;
        // No line break: Python takes the file's text as it is.
        fs::write(temporary.path(), commit).map_err(&told)?;
        temporary.persist(&path).map_err(|error| told(error.error))?;
        Ok(())
    }

    /// The files of a commit that are here whole, sorted.
    pub(crate) fn files(&self, commit: &str) -> Vec<String> {
        let mut found = Vec::new();
        list(&self.snapshot(commit), "", &mut found);
        found.sort();
        found
    }

    /// Makes a blob a file of a commit.
    pub(crate) fn link(&self, checksum: &Checksum, commit: &str, path: &str) -> Result<()> {
        let (blob, pointer) = (self.blob(checksum), self.snapshot(commit).join(path));
        if pointer.exists() {
            return Ok(());
        }
        let told = told(&pointer);
        fs::create_dir_all(pointer.parent().unwrap_or(&pointer)).map_err(&told)?;
        if pointer.is_symlink() {
            // It leads nowhere: the blob had been deleted.
            fs::remove_file(&pointer).map_err(&told)?;
        }
        let up = "../".repeat(2 + path.matches('/').count());
        match symlink(&format!("{up}blobs/{}", checksum.digits()), &pointer) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            // File systems without links: the file itself moves there, as Python does it.
            Err(_) => fs::rename(blob, &pointer).map_err(told),
        }
    }

    /// Waits until nobody else fetches these contents, and keeps others waiting as long as what is returned lives.
    /// `waiting` is called before a wait. Where a file system knows no locks, none is taken: what comes is checked.
    pub(crate) fn lock(&self, checksum: &Checksum, waiting: impl FnOnce()) -> Result<File> {
        let path =
            self.cache.join(".locks").join(&self.folder_name).join(format!("{}.lock", checksum.digits()));
        let told = told(&path);
        fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(&told)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(told)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            waiting();
            let _ = file.lock();
        }
        Ok(file)
    }

    /// Makes the folders of blobs and snapshots: Python takes a repository without both for damaged.
    pub(crate) fn make(&self) -> Result<()> {
        for name in ["blobs", "snapshots"] {
            let folder = self.folder().join(name);
            fs::create_dir_all(&folder).map_err(told(&folder))?;
        }
        // Backup programs know this file and leave the cache out.
        let tag = self.cache.join("CACHEDIR.TAG");
        if !tag.exists() {
            let _ = fs::write(tag, "Signature: 8a477f597d28d172789f06886806bc55\n");
        }
        Ok(())
    }
}

fn told(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::Io { path: path.clone(), source }
}

/// Files below a folder whose links lead somewhere.
fn list(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match fs::metadata(entry.path()) {
            Ok(metadata) if metadata.is_dir() => list(&entry.path(), &format!("{name}/"), found),
            Ok(_) => found.push(name),
            Err(_) => {}
        }
    }
}

#[cfg(unix)]
fn symlink(target: &str, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &str, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target.replace('/', "\\"), link)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn store(cache: &Path) -> Store {
        let store = Store::new(cache, RepoKind::Dataset, &HubName::parse("owner/rows").unwrap());
        store.make().unwrap();
        store
    }

    #[test]
    fn a_file_in_a_folder_is_a_relative_link_to_its_blob() {
        let cache = tempfile::tempdir().unwrap();
        let store = store(cache.path());
        let checksum = Checksum::GitSha1("ab".repeat(20));
        fs::write(store.blob(&checksum), "rows").unwrap();
        store.link(&checksum, COMMIT, "data/en/train.jsonl").unwrap();
        let pointer =
            cache.path().join(format!("datasets--owner--rows/snapshots/{COMMIT}/data/en/train.jsonl"));
        assert_eq!(fs::read_to_string(&pointer).unwrap(), "rows");
        assert!(fs::read_link(&pointer).unwrap().starts_with("../../../../blobs"));
        assert_eq!(store.files(COMMIT), ["data/en/train.jsonl"]);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_no_file_and_is_replaced() {
        let cache = tempfile::tempdir().unwrap();
        let store = store(cache.path());
        let checksum = Checksum::GitSha1("cd".repeat(20));
        fs::write(store.blob(&checksum), "a").unwrap();
        store.link(&checksum, COMMIT, "config.json").unwrap();
        fs::remove_file(store.blob(&checksum)).unwrap();
        assert_eq!(store.files(COMMIT), [""; 0]);
        fs::write(store.blob(&checksum), "a").unwrap();
        store.link(&checksum, COMMIT, "config.json").unwrap();
        assert_eq!(store.files(COMMIT), ["config.json"]);
    }

    #[test]
    fn a_revision_with_a_slash_is_noted_as_python_notes_it() {
        let cache = tempfile::tempdir().unwrap();
        let store = store(cache.path());
        assert_eq!(store.commit("refs/pr/1"), None);
        store.set_commit("refs/pr/1", COMMIT).unwrap();
        assert_eq!(store.commit("refs/pr/1").as_deref(), Some(COMMIT));
        let text = fs::read_to_string(cache.path().join("datasets--owner--rows/refs/refs/pr/1")).unwrap();
        assert_eq!(text, COMMIT);
        assert_eq!(store.commit(COMMIT).as_deref(), Some(COMMIT));
    }
}
