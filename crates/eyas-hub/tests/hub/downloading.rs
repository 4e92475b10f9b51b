//! Models, adapters and data sets into the cache.

use std::fs;

use eyas_hub::Error;

use super::{Bench, FaultKind, Told, name, names, silent};

const SHARDS: &[(&str, &[u8])] = &[
    ("README.md", b"# a model"),
    ("config.json", b"{}"),
    ("tokenizer.json", b"{\"model\": {}}"),
    (
        "model.safetensors.index.json",
        br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#,
    ),
    ("model-00001-of-00002.safetensors", b"the first half"),
    ("model-00002-of-00002.safetensors", b"the second half"),
    ("pytorch_model.bin", b"a pickle"),
];

/// A file of weights that does not come in one read.
fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i % 251) as u8).collect()
}

#[test]
fn what_is_needed_comes_page_by_page_and_lies_as_python_has_it() {
    let bench = Bench::new();
    let commit = bench.fake.state().add("models", "mei/model", SHARDS);
    bench.fake.state().page = 2;
    let folder = bench.hub().model(&name("mei/model"), &silent).unwrap();
    assert_eq!(folder, bench.cache.path().join("models--mei--model/snapshots").join(&commit));
    let expected = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(names(&folder), expected);
    assert_eq!(fs::read(folder.join("model-00002-of-00002.safetensors")).unwrap(), b"the second half");
    let root = bench.cache.path().join("models--mei--model");
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), commit);
    assert_eq!(names(&root.join("blobs")).len(), expected.len());
    assert_eq!(names(&root), ["blobs", "refs", "snapshots"]);
}

#[test]
fn nothing_is_fetched_twice() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", SHARDS);
    let first = bench.hub().model(&name("mei/model"), &silent).unwrap();
    let before = bench.fake.requests("resolve").len();
    assert_eq!(bench.hub().model(&name("mei/model"), &silent).unwrap(), first);
    assert_eq!(bench.fake.requests("resolve").len(), before);
}

#[test]
fn a_new_commit_fetches_what_changed_and_keeps_the_rest() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", SHARDS);
    let old = bench.hub().model(&name("mei/model"), &silent).unwrap();
    let mut changed = SHARDS.to_vec();
    changed[1] = ("config.json", b"{\"new\": 1}");
    bench.fake.state().add("models", "mei/model", &changed);
    let before = bench.fake.requests("GET /mei/model/resolve").len();
    let new = bench.hub().model(&name("mei/model"), &silent).unwrap();
    assert_ne!(old, new);
    assert_eq!(bench.fake.requests("GET /mei/model/resolve").len(), before + 1);
    assert_eq!(fs::read(new.join("config.json")).unwrap(), b"{\"new\": 1}");
    assert_eq!(fs::read(old.join("config.json")).unwrap(), b"{}");
}

#[test]
fn a_commit_by_its_hash_needs_no_network_once_it_is_here() {
    let bench = Bench::new();
    let commit = bench.fake.state().add("models", "mei/model", SHARDS);
    let pinned = name(&format!("mei/model@{commit}"));
    let folder = bench.hub().model(&pinned, &silent).unwrap();
    let before = bench.fake.requests("").len();
    assert_eq!(bench.hub().model(&pinned, &silent).unwrap(), folder);
    assert_eq!(bench.fake.requests("").len(), before);
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let bench = Bench::new();
    let weights = weights();
    bench.fake.state().add("models", "mei/model", &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    bench.fault("storage/objects", 1, FaultKind::Cut(100_000));
    bench.fault("storage/objects", 1, FaultKind::Cut(150_000));
    let told = Told::default();
    let folder = bench.hub().model(&name("mei/model"), &told).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    let ranges = bench.fake.requests("GET /storage");
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert!(ranges[1].contains("[bytes=100000-]") && ranges[2].contains("[bytes=250000-]"), "{ranges:?}");
    assert!(told.lines().contains("the connection broke at byte 100000"), "{}", told.lines());
}

#[test]
fn what_a_killed_process_left_is_taken_up() {
    let bench = Bench::new();
    let weights = weights();
    bench.fake.state().add("models", "mei/model", &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let folder = bench.hub().model(&name("mei/model"), &silent).unwrap();
    let blob = fs::canonicalize(folder.join("model.safetensors")).unwrap();
    let partial = blob.with_file_name(format!("{}.incomplete", blob.file_name().unwrap().to_str().unwrap()));
    fs::remove_file(&blob).unwrap();
    fs::write(&partial, &weights[..123_456]).unwrap();
    bench.hub().model(&name("mei/model"), &silent).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert!(bench.fake.requests("GET /storage").last().unwrap().contains("[bytes=123456-]"));
    assert!(!partial.exists());
}

#[test]
fn what_was_left_spoilt_is_fetched_anew() {
    let bench = Bench::new();
    let weights = weights();
    bench.fake.state().add("models", "mei/model", &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let folder = bench.hub().model(&name("mei/model"), &silent).unwrap();
    let blob = fs::canonicalize(folder.join("model.safetensors")).unwrap();
    fs::rename(&blob, blob.with_extension("incomplete")).unwrap();
    fs::write(blob.with_extension("incomplete"), vec![7; 1000]).unwrap();
    let told = Told::default();
    bench.hub().model(&name("mei/model"), &told).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert!(told.lines().contains("is damaged; fetching it anew"), "{}", told.lines());
}

#[test]
fn a_server_that_knows_no_ranges_sends_it_all_again() {
    let bench = Bench::new();
    let weights = weights();
    bench.fake.state().add("models", "mei/model", &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    bench.fault("storage/objects", 1, FaultKind::Cut(100_000));
    bench.fault("storage/objects", 9, FaultKind::IgnoreRange);
    let folder = bench.hub().model(&name("mei/model"), &silent).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
}

#[test]
fn a_wrong_checksum_leaves_nothing_behind() {
    for (file, entry) in [("model.safetensors", "storage/objects"), ("config.json", "resolve-cache")] {
        let bench = Bench::new();
        let files: &[(&str, &[u8])] = &[("config.json", b"{\"a\": 1}"), ("model.safetensors", b"weights")];
        bench.fake.state().add("models", "mei/model", files);
        bench.fault(entry, 9, FaultKind::Corrupt);
        let error = bench.hub().model(&name("mei/model"), &silent).unwrap_err();
        assert!(matches!(&error, Error::Damaged { file: damaged, .. } if damaged.contains(file)), "{error}");
        let root = bench.cache.path().join("models--mei--model");
        let etag = bench.fake.state().etag("models", "mei/model", "main", file);
        assert!(!names(&root.join("blobs")).iter().any(|blob| blob.starts_with(&etag)));
        assert!(!root.join("refs").exists());
        assert!(bench.offline().model(&name("mei/model"), &silent).is_err());
        bench.fake.state().faults.clear();
        let folder = bench.hub().model(&name("mei/model"), &silent).unwrap();
        assert_eq!(names(&folder), ["config.json", "model.safetensors"]);
    }
}

#[test]
fn an_interrupted_download_is_no_model_offline() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", SHARDS);
    let folder = bench.hub().model(&name("mei/model"), &silent).unwrap();
    assert_eq!(bench.offline().model(&name("mei/model"), &silent).unwrap(), folder);
    fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    let message = bench.offline().model(&name("mei/model"), &silent).unwrap_err().to_string();
    assert!(message.contains("in part only") && message.contains("00002-of-00002"), "{message}");
}

#[test]
fn a_description_comes_without_weights_and_takes_none_away() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", SHARDS);
    let config = bench.hub().config(&name("mei/model"), &silent).unwrap().unwrap();
    assert_eq!(names(config.parent().unwrap()), ["config.json"]);
    let whole = bench.hub().model(&name("mei/model"), &silent).unwrap();
    let mut changed = SHARDS.to_vec();
    changed[1] = ("config.json", b"{\"new\": 1}");
    bench.fake.state().add("models", "mei/model", &changed);
    let config = bench.hub().config(&name("mei/model"), &silent).unwrap().unwrap();
    assert_eq!(fs::read(config).unwrap(), b"{\"new\": 1}");
    assert_eq!(bench.offline().model(&name("mei/model"), &silent).unwrap(), whole);
    bench.fake.state().add("models", "mei/gguf", &[("m.gguf", b"all of it")]);
    assert_eq!(bench.hub().config(&name("mei/gguf"), &silent).unwrap(), None);
    assert_eq!(bench.fake.requests("GET /mei/gguf/resolve").len(), 0);
}

#[test]
fn an_adapter_comes_with_its_recipe_and_without_its_pickle() {
    let bench = Bench::new();
    bench.fake.state().add(
        "models",
        "mei/tuned",
        &[
            ("adapter_config.json", b"{}"),
            ("adapter_model.safetensors", b"weights"),
            ("adapter_model.bin", b"pickle"),
            ("recipe.toml", b""),
            ("trainer_state.json", b"{}"),
        ],
    );
    let folder = bench.hub().adapter(&name("mei/tuned"), &silent).unwrap();
    assert_eq!(names(&folder), ["adapter_config.json", "adapter_model.safetensors", "recipe.toml"]);
    let message = bench.hub().model(&name("mei/tuned"), &silent).unwrap_err().to_string();
    assert!(message.contains("--adapter"), "{message}");
}

#[test]
fn a_path_that_leads_out_of_the_cache_is_passed_over() {
    let bench = Bench::new();
    let files: &[(&str, &[u8])] =
        &[("../../../escaped.gguf", b"x"), ("a/../../../escaped.gguf", b"x"), ("m.gguf", b"weights")];
    bench.fake.state().add("models", "mei/model", files);
    let path = bench.hub().model(&name("mei/model"), &silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"weights");
    assert_eq!(bench.fake.requests("escaped").len(), 0);
}

#[test]
fn one_gguf_file_of_several_comes_alone() {
    let bench = Bench::new();
    let files: &[(&str, &[u8])] =
        &[("m.Q4_0.gguf", b"small"), ("m.Q8_0.gguf", b"large"), ("config.json", b"{}")];
    bench.fake.state().add("models", "mei/model", files);
    let path = bench.hub().model(&name("mei/model/m.Q8_0.gguf"), &silent).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"large");
    assert_eq!(names(path.parent().unwrap()), ["m.Q8_0.gguf"]);
}

#[test]
fn the_rows_to_train_on_are_chosen_and_reported() {
    let bench = Bench::new();
    bench.fake.state().add(
        "datasets",
        "mei/rows",
        &[
            ("README.md", b"# rows"),
            ("data/train-00001-of-00002.parquet", b"second"),
            ("data/train-00000-of-00002.parquet", b"first"),
            ("data/test-00000-of-00001.parquet", b"test"),
        ],
    );
    let rows = bench.hub().dataset(&name("mei/rows"), &silent).unwrap();
    let contents: Vec<Vec<u8>> = rows.files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert_eq!(contents, [b"first".to_vec(), b"second".to_vec()]);
    assert_eq!(
        rows.report,
        "mei/rows: rows of data/train-00000-of-00002.parquet, data/train-00001-of-00002.parquet; \
         not used: data/test.parquet (named mei/rows/data/test.parquet, for instance)"
    );
    assert!(rows.files[0].starts_with(bench.cache.path().join("datasets--mei--rows/snapshots")));
    assert_eq!(bench.offline().dataset(&name("mei/rows"), &silent).unwrap().files, rows.files);
}

#[test]
fn a_revision_is_another_snapshot() {
    let bench = Bench::new();
    bench.fake.state().add("models", "mei/model", &[("config.json", b"{}"), ("model.safetensors", b"new")]);
    let entries = {
        let mut state = bench.fake.state();
        state.add("models", "other/model", &[("config.json", b"{}"), ("model.safetensors", b"old")]);
        let repo = state.repo("models", "other/model");
        repo.commits.values().next().unwrap().clone()
    };
    bench.fake.state().commit("models", "mei/model", "refs/pr/1", entries, "old");
    let folder = bench.hub().model(&name("mei/model@refs/pr/1"), &silent).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), b"old");
    let folder = bench.offline().model(&name("mei/model@refs/pr/1"), &silent).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), b"old");
    assert!(bench.offline().model(&name("mei/model"), &silent).is_err());
}

#[test]
fn several_processes_fetch_a_file_once() {
    let bench = Bench::new();
    bench.fake.state().add(
        "models",
        "mei/model",
        &[("config.json", b"{}"), ("model.safetensors", &weights())],
    );
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| bench.hub().model(&name("mei/model"), &silent).unwrap());
        }
    });
    assert_eq!(bench.fake.requests("GET /storage").len(), 1);
}

#[test]
fn the_bar_ends_at_the_bytes_that_were_announced() {
    let bench = Bench::new();
    let weights = weights();
    bench.fake.state().add("models", "mei/model", &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    bench.fault("storage/objects", 1, FaultKind::Cut(100_000));
    bench.fault("storage/objects", 1, FaultKind::IgnoreRange);
    let moved = std::sync::atomic::AtomicI64::new(0);
    let announced = std::sync::atomic::AtomicU64::new(0);
    let observer = |event: eyas_hub::Event<'_>| match event {
        eyas_hub::Event::Moved(bytes) => _ = moved.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed),
        eyas_hub::Event::Started { bytes, .. } => {
            announced.store(bytes, std::sync::atomic::Ordering::Relaxed)
        }
        _ => {}
    };
    bench.hub().model(&name("mei/model"), &observer).unwrap();
    let total = weights.len() as u64 + 2;
    assert_eq!((announced.into_inner(), moved.into_inner()), (total, total as i64));
}
