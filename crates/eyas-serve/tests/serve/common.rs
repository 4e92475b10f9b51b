//! A server over the fake engine, and a client that speaks plain HTTP.

#![allow(dead_code)] // each test uses its part

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use eyas_serve::fake::{self, FakeEngine};
use eyas_serve::{CareMode, Config, serve};
use serde_json::{Value, json};

/// A running server; dropping it stops it.
pub struct Server {
    pub address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a test server is made of.
pub struct Setup {
    pub config: Config,
    pub slots: usize,
    pub delay: Duration,
    pub positions: usize,
}

impl Default for Setup {
    /// Fast, without care, four slots.
    fn default() -> Self {
        let mut config = Config::default();
        config.care.mode = CareMode::Off;
        Self { config, slots: 4, delay: Duration::from_millis(1), positions: 1024 }
    }
}

impl Setup {
    /// With the safety layer.
    pub fn careful(mode: CareMode) -> Self {
        let mut setup = Self::default();
        setup.config.care.mode = mode;
        // A care answer is long.
        setup.positions = 8192;
        setup
    }

    pub fn start(self) -> Server {
        let (ready, address) = channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let folder = tempfile::tempdir().unwrap();
            let tokenizer = Arc::new(fake::tokenizer(folder.path()).unwrap());
            let models = fake::models(Arc::clone(&tokenizer), self.positions).unwrap();
            let mut engine = FakeEngine::new(tokenizer, self.slots, self.delay);
            let stop = Box::pin(async { drop(stopped.await) });
            let any = ([127, 0, 0, 1], 0).into();
            serve(self.config, models, &mut engine, any, stop, |address| ready.send(address).unwrap())
                .unwrap();
        });
        Server::new(address.recv().unwrap(), stop, thread)
    }
}

impl Server {
    /// A server that runs on a thread until it is told to stop.
    pub fn new(address: SocketAddr, stop: tokio::sync::oneshot::Sender<()>, thread: JoinHandle<()>) -> Self {
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    /// Asks the server to stop, without waiting for it.
    pub fn ask_to_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has stopped.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends bytes on a connection of its own and reads until the server closes it.
    pub fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(bytes);
        Answer::read(&mut stream)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.get_with(path, "")
    }

    /// `headers` are whole lines, each with its line break.
    pub fn get_with(&self, path: &str, headers: &str) -> Answer {
        self.raw(
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")
                .as_bytes(),
        )
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.raw(&request(path, body.to_string().as_bytes(), "content-type: application/json\r\n"))
    }

    /// Asks the base one question.
    pub fn chat(&self, question: &str, more: Value) -> Answer {
        self.post("/v1/chat/completions", &question_body(question, more))
    }

    pub fn complete(&self, more: Value) -> Answer {
        self.post("/v1/completions", &merged(json!({"model": "fake"}), more))
    }

    /// A figure of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line =
            text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until a figure has a value.
    pub fn wait_for(&self, name: &str, value: f64) {
        let start = Instant::now();
        while self.metric(name) != value {
            assert!(start.elapsed() < Duration::from_secs(10), "{name} is {}", self.metric(name));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ask_to_stop();
        if !std::thread::panicking() {
            self.join();
        }
    }
}

/// The bytes of a POST.
pub fn request(path: &str, body: &[u8], headers: &str) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

pub fn question_body(question: &str, more: Value) -> Value {
    merged(json!({"model": "fake", "messages": [{"role": "user", "content": question}]}), more)
}

fn merged(mut base: Value, more: Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        base[key] = value.clone();
    }
    base
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A connection that is reset after the answer has given it all the same.
        let _ = stream.read_to_end(&mut bytes);
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or_else(|| {
            panic!("no answer: {:?}", String::from_utf8_lossy(bytes));
        });
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = bytes[end + 4..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            body = unchunk(&body);
        }
        Self { status, head, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The data of a stream's events; the last must be `[DONE]`.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("text/event-stream"), "{}", self.text());
        let text = self.text();
        let mut data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.into_iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The first answer's text, streamed or not.
    #[track_caller]
    pub fn content(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.text());
        if self.header("content-type") == Some("text/event-stream") {
            let deltas = self.events();
            let of_first = deltas.iter().filter(|event| event["choices"][0]["index"] == 0);
            return of_first.filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
        }
        self.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    /// Checks the shape of an error, its status, code and field.
    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str, param: Option<&str>) {
        assert_eq!(self.status, status, "{}", self.text());
        let error = &self.json()["error"];
        assert_eq!(error["code"], code, "{error}");
        assert_eq!(error["param"].as_str(), param, "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{error}");
        assert!(error["type"].is_string(), "{error}");
    }
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap().trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        // What was cut off is as long as it is.
        let last = (end + 2 + size).min(bytes.len());
        body.extend_from_slice(&bytes[end + 2..last]);
        bytes = &bytes[(last + 2).min(bytes.len())..];
    }
    body
}
