//! What can go wrong between this machine and the hub.

use std::path::PathBuf;
use std::time::Duration;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder that cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No folder for downloads can be found.
    #[error(
        "this system names no folder for caches; set EYAS_CACHE or HF_HOME to a folder that may hold models"
    )]
    NoCache,
    /// Something that was named and is nowhere, or is not what it was taken for.
    #[error("{0}")]
    NotFound(String),
    /// A download of the demo's model that failed.
    #[error("{0}")]
    Download(String),
    /// A file whose contents are not those that were published.
    #[error("{path}: its SHA-256 is {actual}, {expected} was expected; delete it and try again", path = .path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// What it has.
        actual: String,
        /// What was published.
        expected: String,
    },
    /// A repository's name that is none.
    #[error("`{0}` is no name of a repository; it is owner/name, of letters, digits, `-`, `_` and `.`")]
    Name(String),
    /// A repository that is not there, or not for this person.
    #[error("{name}: the hub has no such {what}, or it is private and {login}. Its page would be {page}")]
    NoRepository {
        /// The repository.
        name: String,
        /// Model or data set.
        what: &'static str,
        /// Its page.
        page: String,
        /// What the person's token has to do with it.
        login: &'static str,
    },
    /// A branch, tag or commit that is not there.
    #[error("{name}: there is no branch, tag or commit `{revision}`; {page} lists them")]
    NoRevision {
        /// The repository.
        name: String,
        /// The revision.
        revision: String,
        /// The page that lists them.
        page: String,
    },
    /// A file that a repository does not have.
    #[error("{name}: there is no file `{file}` in revision {revision}")]
    NoFile {
        /// The repository.
        name: String,
        /// The revision.
        revision: String,
        /// The file.
        file: String,
    },
    /// A repository whose terms have to be accepted first.
    #[error("{name} is gated: accept its terms at {page} with your account, then {login}")]
    Gated {
        /// The repository.
        name: String,
        /// Where the terms are.
        page: String,
        /// What to do with the token.
        login: &'static str,
    },
    /// Something is to be written, or a name asked for, without a token.
    #[error(
        "{0} needs an access token: run `hf auth login`, or set HF_TOKEN to a token with write access (the hub's \
         settings/tokens page makes one)"
    )]
    NoToken(String),
    /// The hub refused the token, or what it may do.
    #[error("{what}: the hub refused the access token ({reason}); {advice}")]
    Refused {
        /// What was asked for.
        what: String,
        /// What the hub said.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// The hub asks for a longer pause than anybody waits for.
    #[error("{what}: the hub lets no more requests through for {} s; try again then{login}", .wait.as_secs())]
    TooManyRequests {
        /// What was asked for.
        what: String,
        /// How long it asks to wait.
        wait: Duration,
        /// That a token raises the limit, where there is none.
        login: &'static str,
    },
    /// The network, or the hub, cannot be reached.
    #[error(
        "{what}: {endpoint} cannot be reached ({reason}); check the network and the proxy, and HF_ENDPOINT"
    )]
    Network {
        /// What was asked for.
        what: String,
        /// The hub.
        endpoint: String,
        /// What the system said.
        reason: String,
    },
    /// The network is not to be used.
    #[error("{0}, and HF_HUB_OFFLINE is set; unset it to fetch from the hub")]
    Offline(String),
    /// An answer that says that something is wrong, and is none of the above.
    #[error("{what}: the hub answered {status}: {reason}")]
    Status {
        /// What was asked for.
        what: String,
        /// HTTP's status.
        status: u16,
        /// What the hub said.
        reason: String,
    },
    /// An answer that makes no sense.
    #[error("{what}: {reason}; does HF_ENDPOINT name a hub?")]
    Protocol {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// There is too little room.
    #[error(
        "{what} needs {needed} and {folder} has {free} left; free some space, or set HF_HOME to a folder on another disk",
        needed = display_bytes(*.needed), free = display_bytes(*.free), folder = .folder.display()
    )]
    DiskFull {
        /// What is to be fetched.
        what: String,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        free: u64,
        /// The folder of the cache.
        folder: PathBuf,
    },
    /// A file that came through whole and is not the one that was published.
    #[error(
        "{file}: what came has the checksum {actual} instead of {expected}; it was thrown away. A proxy in between may \
         change files: try again, or another network"
    )]
    Damaged {
        /// The file.
        file: String,
        /// What it has.
        actual: String,
        /// What was published.
        expected: String,
    },
    /// Something that may not be pushed, or not there.
    #[error("{0}")]
    Push(String),
}

impl Error {
    /// Whether the hub could not be asked, so that what is in the cache may do.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        matches!(
            self,
            Self::Network { .. } | Self::TooManyRequests { .. } | Self::Status { status: 500.., .. }
        )
    }
}

/// Bytes for a person to read.
pub(crate) fn display_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
