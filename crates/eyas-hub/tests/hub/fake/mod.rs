//! A hub on this machine: the real one's routes over repositories in memory, and faults on demand.
//!
//! `tools/hub/interop.py` proves it against Hugging Face's own client.

#![allow(dead_code, unused_imports)]

mod reading;
mod state;
mod storage;
mod writing;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri};
use percent_encoding::percent_decode_str;
use tokio::net::TcpListener;

pub use state::{Account, Entry, Fault, FaultKind, State, is_large};

/// A running hub. It ends with the test's process.
#[derive(Clone)]
pub struct FakeHub {
    pub state: Arc<Mutex<State>>,
    pub address: SocketAddr,
}

/// A request as routes see it.
pub struct Request {
    pub method: Method,
    /// The path's parts, decoded.
    pub parts: Vec<String>,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub address: SocketAddr,
}

pub type Answer = Response<Body>;

impl FakeHub {
    /// Starts a hub on a free port, or on the one that is named.
    pub fn start(port: u16) -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let hub = Self { state: Arc::default(), address };
        let served = hub.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let app = axum::Router::new().fallback(move |method, uri, headers, body| {
                    let hub = served.clone();
                    async move { hub.answer(method, uri, headers, body) }
                });
                // Uploads come in one piece.
                let app = app.layer(axum::extract::DefaultBodyLimit::disable());
                axum::serve(TcpListener::from_std(listener).unwrap(), app).await.unwrap();
            });
        });
        hub
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Requests so far, `GET /path`, whose line contains a text.
    pub fn requests(&self, containing: &str) -> Vec<String> {
        self.state().log.iter().filter(|line| line.contains(containing)).cloned().collect()
    }

    fn answer(&self, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Answer {
        let range =
            headers.get("range").map_or(String::new(), |range| format!(" [{}]", range.to_str().unwrap()));
        let mut state = self.state();
        state.log.push(format!("{method} {}{range}", uri.path()));
        let parts = uri.path().trim_matches('/').split('/');
        let parts = parts.map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned()).collect();
        let query = uri.query().unwrap_or_default().to_owned();
        let request = Request { method, parts, query, headers, body, address: self.address };
        if let Some(fault) = state.status_fault(uri.path()) {
            return fault;
        }
        route(&mut state, &request)
    }
}

fn route(state: &mut State, request: &Request) -> Answer {
    let parts: Vec<&str> = request.parts.iter().map(String::as_str).collect();
    let get = request.method == Method::GET || request.method == Method::HEAD;
    match (get, parts.as_slice()) {
        (_, ["storage", rest @ ..]) => storage::route(state, request, rest),
        (true, ["api", "whoami-v2"]) => reading::whoami(state, request),
        (false, ["api", "repos", "create"]) => writing::create(state, request),
        (false, ["api", "validate-yaml"]) => {
            json(StatusCode::OK, &serde_json::json!({"warnings": [], "errors": []}))
        }
        (true, ["api", kind @ ("models" | "datasets"), owner, name, rest @ ..]) => {
            reading::api(state, request, kind, &format!("{owner}/{name}"), rest)
        }
        (false, ["api", kind @ ("models" | "datasets"), owner, name, rest @ ..]) => {
            writing::api(state, request, kind, &format!("{owner}/{name}"), rest)
        }
        (true, ["api", "resolve-cache", kind, owner, name, commit, file @ ..]) => {
            reading::contents(state, request, kind, &format!("{owner}/{name}"), commit, &file.join("/"))
        }
        (true, ["datasets", owner, name, "resolve", revision, file @ ..]) => reading::resolve(
            state,
            request,
            "datasets",
            &format!("{owner}/{name}"),
            revision,
            &file.join("/"),
        ),
        (true, [owner, name, "resolve", revision, file @ ..]) => {
            reading::resolve(state, request, "models", &format!("{owner}/{name}"), revision, &file.join("/"))
        }
        (false, [prefix @ .., owner, name, "info", "lfs", "objects", "batch"]) => {
            let kind = if prefix == ["datasets"] { "datasets" } else { "models" };
            let name = name.trim_end_matches(".git");
            storage::batch(state, request, kind, &format!("{owner}/{name}"))
        }
        _ => refuse(StatusCode::NOT_FOUND, "", "no such route"),
    }
}

/// An answer in JSON.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    let body = Body::from(value.to_string());
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

/// A refusal as the hub words it: a code and a message in headers, the message in JSON too.
pub fn refuse(status: StatusCode, code: &str, message: &str) -> Answer {
    let mut answer = json(status, &serde_json::json!({"error": message}));
    for (name, value) in [("x-error-code", code), ("x-error-message", message)] {
        if !value.is_empty() {
            answer.headers_mut().insert(name, value.parse().unwrap());
        }
    }
    answer
}
