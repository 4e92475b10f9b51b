//! A file mapped into memory, whose pages can be given back after use.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result};

/// A read-only map of a whole file.
#[derive(Debug)]
pub(crate) struct MappedFile(Mmap);

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| {
            Error::io(path, "open the file", "check that it exists and that you may read it", e)
        })?;
        // SAFETY: the map is private and read-only, and every type read through it is valid for all bit patterns.
        // Another process that shortens the file while it is mapped ends this one (SIGBUS); weights are replaced by
        // renaming, which leaves the mapped file whole, and no interface for reading in place can rule it out.
        let map = unsafe { Mmap::map(&file) }
            .map_err(|e| Error::io(path, "map the file into memory", "check that it is a regular file", e))?;
        Ok(Self(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Asks for `range` to be read ahead. Only a hint: failure means slower, not wrong.
    pub(crate) fn prefetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if !range.is_empty() {
            let _ = self.0.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Drops the pages of `range` from resident memory. They are read again from the file if touched again.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if !range.is_empty() {
            // SAFETY: the map is backed by a file and never written to, so a dropped page comes back with the same
            // bytes; references into it stay valid.
            let _ = unsafe {
                self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
