//! What an operator decides.

use std::time::Duration;

use crate::care::CareSettings;
use crate::storage::Storage;

/// How the server behaves.
#[derive(Debug)]
pub struct Config {
    /// The page's title.
    pub title: String,
    /// Requests to `/v1/...` and `/metrics` must carry it, if there is one.
    pub api_key: Option<String>,
    /// Origins of other sites whose scripts may call the API; `*` allows all.
    pub cors_origins: Vec<String>,
    /// Names under which the server may be called, without port; `None` accepts any. On a loopback address a list
    /// keeps other sites from reaching the server through a name of theirs that points here (DNS rebinding).
    pub allowed_hosts: Option<Vec<String>>,
    /// The safety layer.
    pub care: CareSettings,
    /// Where conversations are stored, if anywhere.
    pub storage: Option<Storage>,
    /// How much the server takes on.
    pub limits: Limits,
    /// How long running answers have after a request to stop.
    pub grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            title: "Mental Health Conversational AI".into(),
            api_key: None,
            cors_origins: Vec::new(),
            allowed_hosts: None,
            care: CareSettings::default(),
            storage: None,
            limits: Limits::default(),
            grace: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// The names of this machine for itself.
    pub const LOOPBACK_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
}

/// How much the server takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub max_body: usize,
    /// Requests that wait for the engine.
    pub max_queue: usize,
    /// Sequences of one request: prompts times `n`.
    pub max_sequences: usize,
    /// Open connections.
    pub max_connections: usize,
    /// For a request's head, and between requests.
    pub header_timeout: Duration,
    /// For a request's body.
    pub body_timeout: Duration,
    /// For a client that does not read.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body: 1 << 20,
            max_queue: 64,
            max_sequences: 128,
            max_connections: 512,
            header_timeout: Duration::from_secs(15),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
        }
    }
}
