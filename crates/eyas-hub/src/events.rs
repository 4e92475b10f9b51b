//! What is told while files travel: for progress bars.

use std::time::Duration;

/// Something that happened on the way.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Files are about to be fetched or sent.
    Started {
        /// What: a repository's name.
        what: &'a str,
        /// Files that travel.
        files: usize,
        /// Their bytes; those that are there from an earlier try move at once.
        bytes: u64,
    },
    /// So many more bytes are through. Negative where a file has to begin again.
    Moved(i64),
    /// A file is whole and checked.
    Done(&'a str),
    /// Something failed and is tried again after a pause.
    Retry {
        /// What failed and why.
        reason: &'a str,
        /// How long the pause is.
        wait: Duration,
    },
    /// Something that the user should know.
    Note(&'a str),
    /// Nothing travels any more.
    Finished,
}

/// Who is told. Files travel on several threads. Any `Fn(Event<'_>) + Sync` will do.
pub trait Observer: Sync {
    /// Takes note of an event.
    fn event(&self, event: Event<'_>);
}

impl<F: Fn(Event<'_>) + Sync> Observer for F {
    fn event(&self, event: Event<'_>) {
        self(event);
    }
}
