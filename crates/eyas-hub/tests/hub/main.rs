//! Downloads and pushes against a hub on this machine with the real one's routes.

mod downloading;
mod fake;
mod pushing;
mod refusals;

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use eyas_hub::{Event, Hub, HubName, Observer, Settings, Token};
use fake::{Account, FakeHub, Fault, FaultKind};

/// Whoever may write below `mei/`.
const TOKEN: &str = "hf_mei";

/// A hub on this machine, a cache, and settings to reach the one with the other.
struct Bench {
    fake: FakeHub,
    cache: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let fake = FakeHub::start(0);
        fake.state().accounts.insert(TOKEN.into(), Account { name: "mei".into(), may_write: true });
        Self { fake, cache: tempfile::tempdir().unwrap() }
    }

    fn settings(&self) -> Settings {
        Settings {
            endpoint: self.fake.endpoint(),
            cache: self.cache.path().into(),
            token: None,
            token_for_reading: true,
            offline: false,
            first_wait: Duration::from_millis(5),
        }
    }

    /// The hub, for nobody in particular.
    fn hub(&self) -> Hub {
        Hub::new(self.settings())
    }

    fn offline(&self) -> Hub {
        Hub::new(Settings { offline: true, ..self.settings() })
    }

    fn with_token(&self, token: &str) -> Hub {
        Hub::new(Settings { token: Token::new(token), ..self.settings() })
    }

    fn fault(&self, path: &'static str, times: usize, kind: FaultKind) {
        self.fake.state().faults.push(Fault { path, times, kind });
    }
}

/// What was told on the way, as lines.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn lines(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

impl Observer for Told {
    fn event(&self, event: Event<'_>) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}

fn silent(_: Event<'_>) {}

fn name(text: &str) -> HubName {
    HubName::parse(text).unwrap()
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
