//! Checksums by which the hub knows files: SHA-256 of large ones, git's own SHA-1 of others.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// How a file is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// The SHA-256 of a file in large file storage.
    Sha256(String),
    /// git's hash of a blob: the SHA-1 of a header with the length, and the contents.
    GitSha1(String),
}

impl Checksum {
    /// The hexadecimal digits, which name the file in the cache.
    pub(crate) fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitSha1(digits) => digits,
        }
    }

    /// A running checksum of this kind over a file of `size` bytes.
    pub(crate) fn start(&self, size: u64) -> Running {
        match self {
            Self::Sha256(_) => Running::Sha256(Sha256::new()),
            Self::GitSha1(_) => Running::git(size),
        }
    }
}

/// A checksum under way.
pub(crate) enum Running {
    Sha256(Sha256),
    GitSha1(Sha1),
}

impl Running {
    fn git(size: u64) -> Self {
        let mut hasher = Sha1::new();
        hasher.update(format!("blob {size}\0"));
        Self::GitSha1(hasher)
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitSha1(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Checksum {
        match self {
            Self::Sha256(hasher) => Checksum::Sha256(hexadecimal(&hasher.finalize())),
            Self::GitSha1(hasher) => Checksum::GitSha1(hexadecimal(&hasher.finalize())),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// git's hash of contents held in memory.
pub(crate) fn git_sha1(contents: &[u8]) -> String {
    let mut running = Running::git(contents.len() as u64);
    running.update(contents);
    running.finish().digits().to_owned()
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> Result<String> {
    let io = |source| Error::Io { path: path.into(), source };
    let mut running = Running::Sha256(Sha256::new());
    read_into(&mut File::open(path).map_err(io)?, &mut running).map_err(io)?;
    Ok(running.finish().digits().to_owned())
}

/// Runs all that is left of a file through a checksum and returns its bytes.
pub(crate) fn read_into(file: &mut File, running: &mut Running) -> std::io::Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            read => {
                running.update(&buffer[..read]);
                total += read as u64;
            }
        }
    }
}

/// Fails when a file's contents are not those that were published.
pub(crate) fn verify(path: &Path, expected: &str) -> Result<()> {
    let actual = sha256_of(path)?;
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

    #[test]
    fn git_counts_the_length_in() {
        // What `printf hello | git hash-object --stdin` prints.
        assert_eq!(git_sha1(b"hello"), "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0");
    }
}
