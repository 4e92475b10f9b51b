//! Adapters to the hub.

use std::fs;

use eyas_hub::{Account, Contents, Error, Push, PushFile, Pushed};

use super::{Bench, FaultKind, TOKEN, Told, fake, name, silent};

fn bytes(path: &str, contents: &[u8]) -> PushFile {
    PushFile { path: path.into(), contents: Contents::Bytes(contents.to_vec()) }
}

/// The files of a small adapter; its weights are a file on this machine.
fn adapter(folder: &tempfile::TempDir, weights: &[u8]) -> Vec<PushFile> {
    let path = folder.path().join("adapter_model.safetensors");
    fs::write(&path, weights).unwrap();
    vec![
        bytes("README.md", b"# tuned"),
        bytes("adapter_config.json", b"{\"r\": 8}"),
        PushFile { path: "adapter_model.safetensors".into(), contents: Contents::File(path) },
    ]
}

fn push(
    bench: &Bench,
    files: &[PushFile],
    revision: Option<&str>,
    private: bool,
) -> eyas_hub::Result<Pushed> {
    let name = name("mei/tuned");
    let push = Push { name: &name, private, revision, message: "Tuned\n\nfor an hour", files };
    bench.with_token(TOKEN).push(&push, &silent)
}

#[test]
fn an_adapter_goes_in_one_commit_its_weights_by_storage() {
    let (bench, folder) = (Bench::new(), tempfile::tempdir().unwrap());
    let pushed = push(&bench, &adapter(&folder, b"weights"), None, true).unwrap();
    assert_eq!(pushed.changed, ["README.md", "adapter_config.json", "adapter_model.safetensors"]);
    assert_eq!(pushed.sent, ["adapter_model.safetensors"]);
    assert!(pushed.url.contains(pushed.commit.as_deref().unwrap()), "{pushed:?}");
    let mut state = bench.fake.state();
    let contents = |path: &str| state.contents("models", "mei/tuned", "main", path).unwrap();
    assert_eq!(contents("adapter_model.safetensors"), b"weights");
    assert_eq!(contents("README.md"), b"# tuned");
    let repo = state.repo("models", "mei/tuned");
    assert!(repo.private);
    assert_eq!(repo.messages, ["initial commit", "Tuned"]);
}

#[test]
fn a_large_file_goes_in_parts() {
    let (bench, folder) = (Bench::new(), tempfile::tempdir().unwrap());
    let weights: Vec<u8> = (0..1_000_003u32).map(|i| (i % 253) as u8).collect();
    bench.fake.state().chunk = Some(250_000);
    push(&bench, &adapter(&folder, &weights), None, false).unwrap();
    assert_eq!(bench.fake.requests("PUT /storage/parts").len(), 5);
    let stored = bench.fake.state().contents("models", "mei/tuned", "main", "adapter_model.safetensors");
    assert_eq!(stored.unwrap(), weights);
}

#[test]
fn nothing_is_sent_twice() {
    let (bench, folder) = (Bench::new(), tempfile::tempdir().unwrap());
    let mut files = adapter(&folder, b"weights");
    push(&bench, &files, None, false).unwrap();
    let again = push(&bench, &files, None, false).unwrap();
    assert_eq!((again.commit, again.unchanged.len()), (None, 3));
    files[0] = bytes("README.md", b"# tuned again");
    let pushed = push(&bench, &files, None, false).unwrap();
    assert_eq!((pushed.changed, pushed.sent), (vec!["README.md".to_owned()], vec![]));
    assert_eq!(bench.fake.requests("PUT /storage").len(), 1);
}

#[test]
fn what_is_in_storage_already_is_committed_and_not_sent() {
    let (bench, folder) = (Bench::new(), tempfile::tempdir().unwrap());
    bench.fake.state().add("models", "other/tuned", &[("adapter_model.safetensors", b"weights")]);
    let pushed = push(&bench, &adapter(&folder, b"weights"), None, false).unwrap();
    assert_eq!(pushed.sent, [""; 0]);
    assert!(pushed.changed.contains(&"adapter_model.safetensors".to_owned()));
    assert_eq!(bench.fake.requests("PUT /storage").len(), 0);
}

#[test]
fn a_branch_is_made_where_it_is_not_there() {
    let (bench, folder) = (Bench::new(), tempfile::tempdir().unwrap());
    push(&bench, &adapter(&folder, b"weights"), Some("trial/1"), false).unwrap();
    push(&bench, &adapter(&folder, b"others"), Some("trial/1"), false).unwrap();
    let state = bench.fake.state();
    let contents = |branch: &str| state.contents("models", "mei/tuned", branch, "adapter_model.safetensors");
    assert_eq!(contents("trial/1").unwrap(), b"others");
    assert_eq!(contents("main"), None);
}

#[test]
fn a_fault_on_the_way_to_storage_is_sat_out() {
    let (bench, folder) = (Bench::new(), tempfile::tempdir().unwrap());
    bench.fault("/storage/objects", 2, FaultKind::Status(500, None));
    bench.fault("/preupload/", 1, FaultKind::Status(429, Some(0)));
    push(&bench, &adapter(&folder, b"weights"), None, false).unwrap();
    assert_eq!(bench.fake.requests("PUT /storage").len(), 3);
}

#[test]
fn a_push_that_failed_is_repeated_by_the_same_call() {
    let (bench, folder) = (Bench::new(), tempfile::tempdir().unwrap());
    let files = adapter(&folder, b"weights");
    bench.fault("/commit/", 1, FaultKind::Status(500, None));
    let message = push(&bench, &files, None, false).unwrap_err().to_string();
    assert!(message.contains("answered 500"), "{message}");
    assert_eq!(bench.fake.requests("/commit/").len(), 1, "a commit is not repeated by itself");
    let pushed = push(&bench, &files, None, false).unwrap();
    assert_eq!((pushed.changed.len(), pushed.sent.len()), (3, 0));
}

#[test]
fn what_was_to_be_private_is_not_put_where_all_can_see_it() {
    let (bench, folder) = (Bench::new(), tempfile::tempdir().unwrap());
    let files = adapter(&folder, b"weights");
    push(&bench, &files[..1], None, false).unwrap();
    let message = push(&bench, &files, None, true).unwrap_err().to_string();
    assert!(message.contains("is there and public") && message.contains("/settings"), "{message}");
    assert_eq!(bench.fake.requests("PUT /storage").len(), 0);
}

#[test]
fn nobody_writes_without_a_token_or_below_another_name() {
    let (bench, folder) = (Bench::new(), tempfile::tempdir().unwrap());
    let files = adapter(&folder, b"weights");
    let (own, other) = (name("mei/tuned"), name("other/tuned"));
    let to = |name| Push { name, private: false, revision: None, message: "x", files: &files };
    assert!(matches!(bench.hub().push(&to(&own), &silent), Err(Error::NoToken(_))));
    assert!(matches!(bench.offline().push(&to(&own), &silent), Err(Error::Offline(_))));
    assert_eq!(bench.fake.requests("").len(), 0);
    let message = bench.with_token(TOKEN).push(&to(&other), &silent).unwrap_err().to_string();
    assert!(message.contains("don't have the rights"), "{message}");
    let read = fake::Account { name: "mei".into(), may_write: false };
    bench.fake.state().accounts.insert("hf_read".into(), read);
    assert!(matches!(bench.with_token("hf_read").push(&to(&own), &silent), Err(Error::Refused { .. })));
}

#[test]
fn what_the_repository_ignores_is_left_out_and_told() {
    let (bench, folder) = (Bench::new(), tempfile::tempdir().unwrap());
    bench.fake.state().add("models", "mei/tuned", &[(".gitignore", b"README.md\n")]);
    let (name, files, told) = (name("mei/tuned"), adapter(&folder, b"weights"), Told::default());
    let push = Push { name: &name, private: false, revision: None, message: "x", files: &files };
    let pushed = bench.with_token(TOKEN).push(&push, &told).unwrap();
    assert!(!pushed.changed.contains(&"README.md".to_owned()));
    assert!(told.lines().contains(".gitignore"), "{}", told.lines());
}

#[test]
fn the_person_behind_a_token_has_a_name() {
    let bench = Bench::new();
    let read = fake::Account { name: "mei".into(), may_write: false };
    bench.fake.state().accounts.insert("hf_read".into(), read);
    let account = |token: &str| bench.with_token(token).account(&silent);
    assert_eq!(account(TOKEN).unwrap(), Account { name: "mei".into(), may_write: true });
    assert!(!account("hf_read").unwrap().may_write);
    assert!(matches!(bench.hub().account(&silent), Err(Error::NoToken(_))));
    assert!(matches!(account("hf_old"), Err(Error::Refused { .. })));
}

#[test]
fn a_small_file_of_a_repository_is_read_or_is_not_there() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/tuned", &[("README.md", b"# card")]);
    let hub = bench.hub();
    let read = |text: &str, file: &str| hub.read(&name(text), file, &silent).unwrap();
    assert_eq!(read("mei/tuned", "README.md").as_deref(), Some(&b"# card"[..]));
    assert_eq!(read("mei/tuned", "other.md"), None);
    assert_eq!(read("mei/nothing", "README.md"), None);
}
