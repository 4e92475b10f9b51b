//! The folder that downloads are kept in.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The folder that downloads are kept in: `EYAS_CACHE`, or `eyas` in the system's folder for caches.
///
/// # Errors
/// When the system names none.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("EYAS_CACHE").filter(|folder| !folder.is_empty()) {
        return Ok(folder.into());
    }
    let folders = directories::ProjectDirs::from("", "", "eyas").ok_or(Error::NoCache)?;
    Ok(folders.cache_dir().to_path_buf())
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let io = |source| Error::Io { path: path.into(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(io)?;
        if read == 0 {
            return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hasher.update(&buffer[..read]);
    }
}

/// Fails when a file's contents are not those that were published.
pub(crate) fn verify(path: &Path, expected: &str) -> Result<()> {
    let actual = sha256(path)?;
    if actual == expected {
        return Ok(());
    }
    Err(Error::Checksum { path: path.into(), actual, expected: expected.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        verify(&path, abc).unwrap();
        std::fs::write(&path, "abd").unwrap();
        assert!(verify(&path, abc).unwrap_err().to_string().contains(abc));
    }
}
