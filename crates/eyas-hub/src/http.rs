//! Requests to the hub: with the token where it belongs, redirects, and pauses before another try.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Take};
use std::path::Path;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION, RETRY_AFTER};
use ureq::http::{self, Method, Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody, Timeout};

use crate::events::{Event, Observer};
use crate::settings::Settings;
use crate::{Error, Result};

/// Tries after the first.
const RETRIES: u32 = 5;
/// The longest pause that is sat out; beyond it the person is told.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 10;
/// No answer in JSON is near this; a longer one is a mistake.
const LARGEST_ANSWER: u64 = 64 << 20;

/// What is sent along.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    Nothing,
    Bytes {
        content_type: &'static str,
        bytes: &'a [u8],
    },
    /// A piece of a file, told as it goes.
    File {
        path: &'a Path,
        start: u64,
        length: u64,
        observer: &'a dyn Observer,
    },
}

/// One request, as often as it is tried.
pub(crate) struct Call<'a> {
    pub method: Method,
    pub url: String,
    /// What it is about, for messages.
    pub what: &'a str,
    /// Whether the hub is to know who asks. Signed addresses of storage carry their own permission.
    pub with_token: bool,
    /// Whether the token goes along although it is kept for writing.
    pub needs_token: bool,
    pub headers: Vec<(String, String)>,
    pub payload: Payload<'a>,
    /// Whether it does no harm to send it twice.
    pub repeatable: bool,
}

impl<'a> Call<'a> {
    pub(crate) fn get(url: String, what: &'a str) -> Self {
        Self {
            method: Method::GET,
            url,
            what,
            with_token: true,
            needs_token: false,
            headers: Vec::new(),
            payload: Payload::Nothing,
            repeatable: true,
        }
    }

    pub(crate) fn post(url: String, what: &'a str, content_type: &'static str, bytes: &'a [u8]) -> Self {
        let payload = Payload::Bytes { content_type, bytes };
        Self { method: Method::POST, payload, ..Self::get(url, what) }
    }
}

/// A connection to the hub.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    agent: Agent,
    settings: Settings,
}

impl Client {
    pub(crate) fn new(settings: Settings) -> Self {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .tls_config(tls)
            .user_agent(concat!("eyas/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .timeout_per_write(Some(SILENCE_TIMEOUT))
            .build();
        Self { agent: config.new_agent(), settings }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sends a request until it is answered: other tries follow a broken connection, an answer that asks for them and
    /// a fault of the server, as long as the request may be repeated. The status of what comes back is not checked.
    pub(crate) fn send(&self, call: &Call<'_>, observer: &dyn Observer) -> Result<Response<Body>> {
        let mut tried = 0;
        loop {
            let (reason, asked) = match self.once(call) {
                Ok(response) => {
                    let status = response.status();
                    let busy = status == StatusCode::TOO_MANY_REQUESTS;
                    let again = busy || (call.repeatable && is_fault(status));
                    let asked = retry_after(&response);
                    if let Some(wait) = asked.filter(|wait| busy && *wait > LONGEST_WAIT) {
                        return Err(self.too_many(call.what, wait));
                    }
                    if !again || tried == RETRIES {
                        return Ok(response);
                    }
                    (format!("{}: the hub answered {status}", call.what), asked)
                }
                Err(error) => {
                    if !call.repeatable || tried == RETRIES || is_unreachable(&error) {
                        return Err(self.network(call.what, &error.to_string()));
                    }
                    (format!("{}: {error}", call.what), None)
                }
            };
            self.pause(tried, asked, &reason, observer);
            tried += 1;
        }
    }

    /// Waits before another try, as long as the hub asked or twice as long as the last time.
    pub(crate) fn pause(&self, tried: u32, asked: Option<Duration>, reason: &str, observer: &dyn Observer) {
        let wait = asked.unwrap_or(self.settings.first_wait * 2u32.pow(tried.min(5))).min(LONGEST_WAIT);
        observer.event(Event::Retry { reason, wait });
        std::thread::sleep(wait);
    }

    /// One try, through redirects. The token goes to the hub alone: not to the storage that it sends us to.
    fn once(&self, call: &Call<'_>) -> Result<Response<Body>, ureq::Error> {
        let mut url = call.url.clone();
        let mut method = call.method.clone();
        let mut payload = call.payload;
        for _ in 0..=REDIRECTS {
            let mut request = http::Request::builder().method(method.clone()).uri(&url);
            let token = self.settings.token.as_ref().filter(|_| {
                let wanted =
                    self.settings.token_for_reading || call.needs_token || call.method != Method::GET;
                call.with_token && wanted && origin(&url) == origin(&self.settings.endpoint)
            });
            if let Some(token) = token {
                request = request.header(AUTHORIZATION, format!("Bearer {}", token.secret()));
            }
            for (name, value) in &call.headers {
                request = request.header(name, value);
            }
            let response = match payload {
                Payload::Nothing => self.agent.run(request.body(())?),
                Payload::Bytes { content_type, bytes } => {
                    self.agent.run(request.header("content-type", content_type).body(bytes)?)
                }
                Payload::File { path, start, length, observer } => {
                    let mut piece = Piece::open(path, start, length, observer)?;
                    let request = request.header(CONTENT_LENGTH, length);
                    let result = self.agent.run(request.body(SendBody::from_reader(&mut piece))?);
                    if !result.as_ref().is_ok_and(|response| response.status().is_success()) {
                        piece.take_back();
                    }
                    result
                }
            }?;
            let status = response.status();
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let Some(location) = location.filter(|_| status.is_redirection()) else { return Ok(response) };
            url = join(&url, location).ok_or_else(|| ureq::Error::BadUri(location.into()))?;
            let keeps_method =
                matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
            if !keeps_method && method != Method::HEAD {
                (method, payload) = (Method::GET, Payload::Nothing);
            }
        }
        Err(ureq::Error::TooManyRedirects)
    }

    fn too_many(&self, what: &str, wait: Duration) -> Error {
        let login = if self.settings.token.is_none() {
            ", or log in (`hf auth login`) for a higher limit"
        } else {
            ""
        };
        Error::TooManyRequests { what: what.into(), wait, login }
    }

    pub(crate) fn network(&self, what: &str, reason: &str) -> Error {
        Error::Network { what: what.into(), endpoint: self.settings.endpoint.clone(), reason: reason.into() }
    }

    /// The error of an answer that is about no repository, or whose cause is none of those a repository has.
    pub(crate) fn refusal(&self, what: &str, response: &mut Response<Body>) -> Error {
        let status = response.status();
        let reason = said(response);
        match status {
            StatusCode::TOO_MANY_REQUESTS => {
                self.too_many(what, retry_after(response).unwrap_or(LONGEST_WAIT))
            }
            StatusCode::UNAUTHORIZED if self.settings.token.is_none() => Error::NoToken(what.into()),
            StatusCode::UNAUTHORIZED => Error::Refused {
                what: what.into(),
                reason,
                advice: "it may have expired: run `hf auth login`, or set HF_TOKEN anew",
            },
            StatusCode::FORBIDDEN => Error::Refused {
                what: what.into(),
                reason,
                advice: "give it the permission at the hub's settings/tokens page, or take one that has it",
            },
            _ => Error::Status { what: what.into(), status: status.as_u16(), reason },
        }
    }
}

/// Reads an answer in JSON.
pub(crate) fn json<T: DeserializeOwned>(what: &str, response: &mut Response<Body>) -> Result<T> {
    let protocol = |reason: String| Error::Protocol { what: what.into(), reason };
    let bytes = response.body_mut().with_config().limit(LARGEST_ANSWER).read_to_vec();
    let bytes = bytes.map_err(|error| protocol(format!("its answer broke off ({error})")))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| protocol(format!("its answer is not understood ({error})")))
}

/// What the hub said was wrong: in a header, in JSON or in plain words.
fn said(response: &mut Response<Body>) -> String {
    if let Some(message) = header(response, "x-error-message") {
        return message.to_owned();
    }
    let body = response.body_mut().with_config().limit(1 << 16).read_to_string().unwrap_or_default();
    let message = match serde_json::from_str::<serde_json::Value>(&body) {
        Ok(answer) => ["error", "message"].iter().find_map(|key| answer[*key].as_str().map(str::to_owned)),
        Err(_) if body.trim_start().starts_with('<') => None,
        Err(_) => Some(body.trim().chars().take(300).collect()),
    };
    message.filter(|message| !message.is_empty()).unwrap_or_else(|| "without a reason".into())
}

/// A header's value, where it is text.
pub(crate) fn header<'a, T>(response: &'a Response<T>, name: &str) -> Option<&'a str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

/// The pause that an answer asks for: `Retry-After` in seconds, or the `t` of the `RateLimit` header's draft.
pub(crate) fn retry_after<T>(response: &Response<T>) -> Option<Duration> {
    let seconds = header(response, RETRY_AFTER.as_str()).and_then(|value| value.trim().parse().ok());
    let of_limit = || {
        let limit = header(response, "ratelimit")?;
        let value = |key: &str| limit.split(';').find_map(|part| part.trim().strip_prefix(key)?.parse().ok());
        (value("r=") == Some(0u64)).then(|| value("t=")).flatten()
    };
    seconds.or_else(of_limit).map(Duration::from_secs)
}

/// A fault of the server, or of something between, that may be over in a moment.
pub(crate) fn is_fault(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 500 | 502 | 503 | 504)
}

/// No network, rather than one that stumbled.
fn is_unreachable(error: &ureq::Error) -> bool {
    use io::ErrorKind as Kind;
    match error {
        ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => true,
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::BadUri(_) => true,
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Http(_) => true,
        ureq::Error::Io(error) => matches!(
            error.kind(),
            // The last is a certificate that is not valid.
            Kind::ConnectionRefused
                | Kind::NetworkUnreachable
                | Kind::HostUnreachable
                | Kind::NotFound
                | Kind::InvalidData
        ),
        _ => false,
    }
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let length = url[start..].find(['/', '?', '#']).unwrap_or(url.len() - start);
    &url[..start + length]
}

/// An address that another one leads to.
fn join(base: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.into());
    }
    (location.starts_with('/') && !location.starts_with("//")).then(|| format!("{}{location}", origin(base)))
}

/// Everything but what is plain in an address.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same, with `/` between folders.
const PATH: &AsciiSet = &COMPONENT.remove(b'/');

/// A revision, or anything else that is one part of an address.
pub(crate) fn component(text: &str) -> String {
    utf8_percent_encode(text, COMPONENT).to_string()
}

/// A path of folders and a file.
pub(crate) fn path(text: &str) -> String {
    utf8_percent_encode(text, PATH).to_string()
}

/// A piece of a file on its way, told as it goes.
struct Piece<'a> {
    file: Take<File>,
    moved: u64,
    observer: &'a dyn Observer,
}

impl<'a> Piece<'a> {
    fn open(path: &Path, start: u64, length: u64, observer: &'a dyn Observer) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(start))?;
        Ok(Self { file: file.take(length), moved: 0, observer })
    }

    /// It has to be sent again.
    fn take_back(&self) {
        self.observer.event(Event::Moved(-(self.moved as i64)));
    }
}

impl Read for Piece<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.moved += read as u64;
        self.observer.event(Event::Moved(read as i64));
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_stays_with_scheme_host_and_port() {
        assert_eq!(origin("https://hub.example/a/b?c=d"), "https://hub.example");
        assert_eq!(origin("http://127.0.0.1:80?x"), "http://127.0.0.1:80");
        assert_eq!(origin("https://hub.example"), "https://hub.example");
    }

    #[test]
    fn a_redirect_is_absolute_or_from_the_root() {
        let base = "https://hub.example/a/resolve/main/f";
        assert_eq!(join(base, "/api/f").as_deref(), Some("https://hub.example/api/f"));
        assert_eq!(join(base, "https://cdn.example/f").as_deref(), Some("https://cdn.example/f"));
        assert_eq!(join(base, "ftp://cdn.example/f"), None);
        assert_eq!(join(base, "//cdn.example/f"), None);
    }

    #[test]
    fn revisions_and_paths_are_escaped() {
        assert_eq!(component("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(path("data/train 1.jsonl"), "data/train%201.jsonl");
    }

    #[test]
    fn a_pause_is_in_seconds_or_in_the_limit() {
        let with =
            |name: &str, value: &str| retry_after(&Response::builder().header(name, value).body(()).unwrap());
        assert_eq!(with("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(with("ratelimit", "\"api\";r=0;t=55"), Some(Duration::from_secs(55)));
        assert_eq!(with("ratelimit", "\"api\";r=3;t=55"), None);
        assert_eq!(with("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }
}
