//! What an operator decides.

use std::time::Duration;

use crate::care::CareSettings;
use crate::storage::Storage;
use crate::{Error, Result};

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

    /// Checks what would otherwise be noticed when it is too late.
    pub(crate) fn validate(&self) -> Result<()> {
        for origin in self.cors_origins.iter().filter(|origin| *origin != "*") {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            let is_origin = |host: &str| !host.is_empty() && !host.contains(['/', '*', ' ', '@', '?', '#']);
            if !host.is_some_and(is_origin) || !origin.is_ascii() {
                return Err(Error::Config(format!(
                    "{origin:?} is no origin; one is a scheme, a host and perhaps a port, such as https://example.org"
                )));
            }
        }
        if self
            .api_key
            .as_ref()
            .is_some_and(|key| key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(Error::Config(
                "the API key must be of visible ASCII characters, at least one".into(),
            ));
        }
        let limits = &self.limits;
        for (name, value) in [
            ("max_body", limits.max_body),
            ("max_queue", limits.max_queue),
            ("max_sequences", limits.max_sequences),
            ("max_connections", limits.max_connections),
        ] {
            if value == 0 {
                return Err(Error::Config(format!("{name} is 0; nothing could be served")));
            }
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let valid = |origin: &str| {
            Config { cors_origins: vec![origin.into()], ..Config::default() }.validate().is_ok()
        };
        for origin in ["*", "https://example.org", "http://localhost:3000"] {
            assert!(valid(origin), "{origin}");
        }
        for origin in ["example.org", "https://", "https://example.org/", "https://*.example.org", "null", ""]
        {
            assert!(!valid(origin), "{origin}");
        }
    }

    #[test]
    fn a_key_can_be_sent() {
        let valid = |key: &str| Config { api_key: Some(key.into()), ..Config::default() }.validate().is_ok();
        assert!(valid("sk-123"));
        assert!(!valid("") && !valid("two words") && !valid("schlüssel"));
    }
}
