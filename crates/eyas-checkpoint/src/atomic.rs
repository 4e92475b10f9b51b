//! Files that appear whole or not at all.

use std::io::{self, BufWriter, Write};
use std::path::Path;

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
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    replace(path, folder, write).map_err(|e| {
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
    })
}

fn replace(
    path: &Path,
    folder: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".eyas-").suffix(".tmp");
    // Readable as any file that the user makes (less the umask), not private as temporary files are.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder)?;
    let mut buffered = BufWriter::with_capacity(1 << 20, temporary.as_file());
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|e| e.error)?;
    // The rename is durable once the folder is on the disk too. Some file systems refuse to flush a folder; the new
    // file is in place all the same.
    #[cfg(unix)]
    let _ = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
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
