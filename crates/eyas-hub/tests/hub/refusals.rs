//! What the hub, the network and the disk refuse, and what a person is told.

use std::time::{Duration, Instant};

use eyas_hub::{Error, Hub, Settings};

use super::{Bench, FaultKind, TOKEN, Told, name, silent};

const MODEL: &[(&str, &[u8])] = &[("config.json", b"{}"), ("model.safetensors", b"weights")];

fn refused(hub: &Hub, text: &str) -> String {
    hub.model(&name(text), &silent).unwrap_err().to_string()
}

#[test]
fn a_repository_that_is_not_there() {
    let bench = Bench::new();
    let message = refused(&bench.hub(), "nobody/nothing");
    assert!(message.contains("no such model") && message.contains("hf auth login"), "{message}");
    let message = refused(&bench.with_token(TOKEN), "nobody/nothing");
    assert!(message.contains("your token gives no access"), "{message}");
}

#[test]
fn a_private_repository_is_its_owners() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/secret", MODEL);
    bench.fake.state().repo("models", "mei/secret").private = true;
    assert!(matches!(bench.hub().model(&name("mei/secret"), &silent), Err(Error::NoRepository { .. })));
    // The storage refuses any request that carries a token, so this also shows that it stays with the hub.
    assert!(bench.with_token(TOKEN).model(&name("mei/secret"), &silent).is_ok());
    let settings = Settings { token_for_reading: false, ..bench.with_token(TOKEN).settings().clone() };
    let message = refused(&Hub::new(settings), "mei/secret@main");
    assert!(message.contains("no such model"), "{message}");
}

#[test]
fn a_gated_repository_names_the_page_of_its_terms() {
    let bench = Bench::new();
    bench.fake.state().add("models", "meta/llama", MODEL);
    bench.fake.state().repo("models", "meta/llama").gated = true;
    let message = refused(&bench.hub(), "meta/llama");
    let page = format!("accept its terms at {}/meta/llama", bench.fake.endpoint());
    assert!(message.contains(&page) && message.contains("hf auth login"), "{message}");
    assert!(bench.with_token(TOKEN).model(&name("meta/llama"), &silent).is_ok());
}

#[test]
fn a_token_that_has_expired() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", MODEL);
    let message = refused(&bench.with_token("hf_old"), "mei/model");
    assert!(message.contains("refused the access token (Invalid credentials"), "{message}");
    assert!(!message.contains("hf_old"), "{message}");
}

#[test]
fn a_token_without_the_permission() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", MODEL);
    bench.fault("/api/models/mei", 1, FaultKind::Status(403, None));
    let message = refused(&bench.with_token(TOKEN), "mei/model");
    assert!(message.contains("a fault on demand") && message.contains("settings/tokens"), "{message}");
}

#[test]
fn a_revision_or_a_file_that_is_not_there() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", MODEL);
    let message = refused(&bench.hub(), "mei/model@v2");
    assert!(message.contains("no branch, tag or commit `v2`"), "{message}");
    let message = refused(&bench.hub(), "mei/model/x.gguf");
    assert!(message.contains("no file `x.gguf` in revision main"), "{message}");
}

#[test]
fn the_pause_that_the_hub_asks_for_is_made() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", MODEL);
    bench.fault("/revision/", 1, FaultKind::Status(429, Some(1)));
    let (told, begun) = (Told::default(), Instant::now());
    bench.hub().model(&name("mei/model"), &told).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(told.lines().contains("wait: 1s"), "{}", told.lines());
}

#[test]
fn a_pause_that_nobody_waits_for_is_an_error() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", MODEL);
    bench.fault("/revision/", 1, FaultKind::Status(429, Some(7200)));
    let message = refused(&bench.hub(), "mei/model");
    assert!(message.contains("for 7200 s") && message.contains("higher limit"), "{message}");
}

#[test]
fn a_fault_of_the_server_passes() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", MODEL);
    bench.fault("/api/models", 2, FaultKind::Status(503, None));
    bench.fault("/storage/", 2, FaultKind::Status(500, None));
    assert!(bench.hub().model(&name("mei/model"), &silent).is_ok());
    bench.fault("/tree/", 99, FaultKind::Status(502, None));
    let other = Bench { cache: tempfile::tempdir().unwrap(), fake: bench.fake.clone() };
    let message = refused(&other.hub(), "mei/model");
    assert!(message.contains("answered 502"), "{message}");
}

#[test]
fn without_a_network_the_cache_does() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", MODEL);
    let folder = bench.hub().model(&name("mei/model"), &silent).unwrap();
    // Nobody listens at the port of a listener that is gone.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nowhere = Hub::new(Settings { endpoint: format!("http://{free}"), ..bench.settings() });
    let told = Told::default();
    assert_eq!(nowhere.model(&name("mei/model"), &told).unwrap(), folder);
    assert!(told.lines().contains("What the cache holds is used instead"), "{}", told.lines());
    let message = refused(&nowhere, "mei/other");
    assert!(message.contains("cannot be reached") && message.contains("HF_ENDPOINT"), "{message}");
}

#[test]
fn offline_asks_nothing_of_the_network() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", MODEL);
    let message = refused(&bench.offline(), "mei/model");
    assert!(message.contains("HF_HUB_OFFLINE") && message.contains("not in the cache"), "{message}");
    assert_eq!(bench.fake.requests("").len(), 0);
}

#[test]
fn a_disk_that_is_too_small_shows_before_the_first_byte() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", MODEL);
    bench.fake.state().claimed_size = Some(1 << 60);
    let error = bench.hub().model(&name("mei/model"), &silent).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("HF_HOME"), "{error}");
    assert_eq!(bench.fake.requests("resolve").len(), 0);
}

#[test]
fn what_is_no_hub_is_told_from_one() {
    let bench = Bench::new();
    // As a page that asks to log in to a network.
    bench.fault("/api/", 1, FaultKind::Status(200, None));
    let message = refused(&bench.hub(), "mei/model");
    assert!(message.contains("does HF_ENDPOINT name a hub?"), "{message}");
}
