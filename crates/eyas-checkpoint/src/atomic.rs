//! Files that appear whole or not at all.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// Writes a file through a temporary one in the same folder: write, flush to the disk, rename. Whatever fails or
/// whenever the process dies, `path` holds either its old contents or all of the new ones; on an error the temporary
/// file is removed.
///
/// ```
/// # let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("trainer_state.json");
/// eyas_checkpoint::write_atomic(&path, |file| file.write_all(b"{}"))?;
/// # Ok::<(), eyas_checkpoint::Error>(())
/// ```
///
/// # Errors
/// [`Error::Io`], with advice of its own for a full disk.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    write(&mut file.buffered).map_err(|e| refused(path, e))?;
    file.commit()
}

/// A file that is written piece by piece and takes its name at the end; see [`write_atomic`].
#[derive(Debug)]
pub(crate) struct AtomicFile {
    path: PathBuf,
    buffered: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Begins a file under a temporary name.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".eyas-").suffix(".tmp");
        // Readable as any file that the user makes (less the umask), not private as temporary files are.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let temporary = builder.tempfile_in(parent(path)).map_err(|e| refused(path, e))?;
        Ok(Self { path: path.into(), buffered: BufWriter::with_capacity(1 << 20, temporary) })
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffered.write_all(bytes).map_err(|e| refused(&self.path, e))
    }

    /// Flushes the file to the disk and gives it its name.
    pub(crate) fn commit(self) -> Result<()> {
        let Self { path, buffered } = self;
        let place = || -> io::Result<()> {
            let temporary = buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
            temporary.as_file().sync_all()?;
            temporary.persist(&path).map_err(|e| e.error)?;
            Ok(())
        };
        place().map_err(|e| refused(&path, e))?;
        sync_folder(parent(&path));
        Ok(())
    }
}

/// Fills a new folder through a temporary one beside it: whatever fails or whenever the process dies, `path` is not
/// there or holds everything. An empty folder gives way.
///
/// # Errors
/// [`Error::Io`] where there is something at `path` already or the disk refuses, and those of `fill`.
pub fn write_folder<T, E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let fail = |e| refused(path, e);
    check_free(path)?;
    std::fs::create_dir_all(parent(path)).map_err(fail)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".eyas-").suffix(".tmp");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let temporary = builder.tempdir_in(parent(path)).map_err(fail)?;
    let result = fill(temporary.path())?;
    sync_folder(temporary.path());
    #[cfg(not(unix))]
    let _ = std::fs::remove_dir(path);
    std::fs::rename(temporary.path(), path).map_err(fail)?;
    let _ = temporary.keep();
    sync_folder(parent(path));
    Ok(result)
}

/// Checks that a folder may be written at `path`: nothing is there, or an empty folder.
///
/// # Errors
/// [`Error::Io`] where there is something.
pub fn check_free(path: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => Err(e),
        Ok(mut entries) => Ok(entries.next().is_some()),
    };
    match entries {
        Ok(false) => Ok(()),
        Ok(true) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(e) => Err(e),
    }
    .map_err(|e| Error::io(path, "make a folder of it", "choose a folder that is new or empty", e))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A rename is durable once its folder is on the disk too. Some file systems refuse to flush a folder; the new name is
/// in place all the same.
fn sync_folder(folder: &Path) {
    #[cfg(unix)]
    let _ = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    #[cfg(not(unix))]
    let _ = folder;
}

fn refused(path: &Path, e: io::Error) -> Error {
    let advice = match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full: free some space or choose another folder; the file's previous contents are untouched"
        }
        io::ErrorKind::NotFound => "create the folder first",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "choose a folder that you may write to"
        }
        _ => "check the disk; the file's previous contents are untouched",
    };
    Error::io(path, "write the file", advice, e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_keeps_the_old_file_and_leaves_no_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        write_atomic(&path, |file| file.write_all(b"old")).unwrap();
        let error = write_atomic(&path, |file| {
            file.write_all(b"half of the new")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let message = error.to_string();
        assert!(message.contains("weights: cannot write the file"), "{message}");
        assert!(message.contains("the disk is full: free some space"), "{message}");
    }

    #[test]
    fn a_folder_is_there_with_everything_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new/model");
        let fill = |folder: &Path| write_atomic(&folder.join("a"), |file| file.write_all(b"a"));
        let failed: Result<()> = write_folder(&path, |folder| {
            fill(folder)?;
            Err(refused(folder, io::ErrorKind::StorageFull.into()))
        });
        assert!(failed.is_err() && !path.exists());
        assert_eq!(std::fs::read_dir(root.path().join("new")).unwrap().count(), 0);
        std::fs::create_dir(&path).unwrap();
        write_folder(&path, fill).unwrap();
        assert_eq!(std::fs::read(path.join("a")).unwrap(), b"a");
        let error = write_folder(&path, fill).unwrap_err().to_string();
        assert!(error.contains("new/model") && error.contains("new or empty"), "{error}");
        assert_eq!(std::fs::read_dir(root.path().join("new")).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_atomic(Path::new("/nonexistent/folder/weights"), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("create the folder first"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_not_private_to_its_writer() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        write_atomic(&path, |_| Ok(())).unwrap();
        let plain = folder.path().join("plain");
        std::fs::write(&plain, b"").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), mode(&plain));
    }
}
