//! What people meet when a file or a setting is wrong: a message that says what, where and what to do, an exit code
//! that is not zero, and the checkpoints as they were.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use eyas_train::checkpoint::find_last;

const RECIPE: &str = r#"
r = 4
per_device_train_batch_size = 2
learning_rate = 1e-3
max_steps = 2
save_steps = 1
max_length = 64
eval_share = 0.0
"#;

/// A folder with a model of two blocks in four shards, a recipe, rows, and a finished run of two steps in `run`.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let model = place.path("model");
        fs::create_dir(&model).unwrap();
        for entry in fs::read_dir(fixture("qwen3")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name == "config.json" || name.starts_with("model-0") || name.ends_with(".index.json") {
                fs::copy(entry.path(), model.join(name)).unwrap();
            }
        }
        tokenizer(&model);
        place.write("recipe.toml", RECIPE);
        place.write("rows.jsonl", &rows("text", "Question one, and its answer."));
        let output = place.train(&[]);
        assert!(output.status.success(), "{}", stderr(&output));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Changes the bytes of a file.
    fn damage(&self, name: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        damage(&mut bytes);
        fs::write(self.path(name), bytes).unwrap();
    }

    fn eyas(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eyas"));
        command.current_dir(self.0.path()).args(["--device", "cpu", "--threads", "1"]).args(arguments);
        command
    }

    /// Trains, or goes on.
    fn train(&self, more: &[&str]) -> Output {
        let fixed = ["train", "recipe.toml", "--dataset", "rows.jsonl", "--output", "run", "--resume"];
        // An option may be given once, so the model of `more` comes first.
        let model: &[&str] = if more.contains(&"--model") { &[] } else { &["--model", "model"] };
        self.eyas(&[&fixed[..], model, more].concat()).output().unwrap()
    }

    /// Every file of the run.
    fn run(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.path("run")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let bytes = fs::read(&path).unwrap();
                    files.insert(path, bytes);
                }
            }
        }
        files
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../eyas-model/tests/fixtures").join(name)
}

/// A tokenizer of single characters.
fn tokenizer(folder: &Path) {
    let characters = (' '..='~').chain(['\n']).filter(|character| *character != '?').map(String::from);
    let vocab: serde_json::Map<_, _> = ["</s>".to_owned(), "?".to_owned()]
        .into_iter()
        .chain(characters)
        .enumerate()
        .map(|(id, token)| (token, id.into()))
        .collect();
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": [{
            "id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true
        }],
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false
        },
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "?"},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(folder.join("tokenizer_config.json"), r#"{"eos_token": "</s>"}"#).unwrap();
}

/// Six rows, the fourth with another column or text.
fn rows(column: &str, text: &str) -> String {
    let row = |number| match number {
        4 => serde_json::json!({ column: text }),
        _ => serde_json::json!({"text": format!("A row of text, the {number}th.")}),
    };
    (1..=6).map(|number| row(number).to_string() + "\n").collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// That a command failed with such a message, and that the run is as it was.
fn refused(place: &Place, before: &BTreeMap<PathBuf, Vec<u8>>, output: &Output, parts: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{parts:?}: {message}");
    let told = message.rsplit("error: ").next().unwrap();
    assert!(
        message.contains("error: ") && parts.iter().all(|part| told.contains(part)),
        "{parts:?}: {message}"
    );
    assert!(place.run() == *before, "{parts:?}: files of the run have changed");
    let found = find_last(&place.path("run")).unwrap();
    assert_eq!((found.newest, found.damaged.len()), (Some(place.path("run/checkpoint-2")), 0));
}

#[test]
fn files_and_settings_that_are_wrong() {
    let shard = "model/model-00002-of-00004.safetensors";
    let config = |from: &'static str, to: &'static str| {
        move |place: &Place| {
            place.damage("model/config.json", |bytes| {
                let text = String::from_utf8(bytes.clone()).unwrap();
                assert!(text.contains(from));
                *bytes = text.replace(from, to).into_bytes();
            });
        }
    };
    let gguf = |place: &Place| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../eyas-checkpoint/tests/fixtures/v3.gguf");
        fs::copy(source, place.path("model.gguf")).unwrap();
    };
    type Prepare<'a> = Box<dyn Fn(&Place) + 'a>;
    let cases: Vec<(Prepare<'_>, &[&str], &[&str])> = vec![
        (
            Box::new(|place| place.damage(shard, |bytes| bytes.truncate(bytes.len() - 100))),
            &[],
            &["model-00002-of-00004.safetensors", "download the file again"],
        ),
        (
            // The length of the header.
            Box::new(|place| place.damage(shard, |bytes| bytes[..8].fill(0x7f))),
            &[],
            &["model-00002-of-00004.safetensors", "header"],
        ),
        (
            Box::new(|place| fs::remove_file(place.path(shard)).unwrap()),
            &[],
            &["model-00002-of-00004.safetensors", "is missing", "download it"],
        ),
        (
            Box::new(|place| {
                gguf(place);
                place.damage("model.gguf", |bytes| bytes.truncate(bytes.len() / 2));
            }),
            &["--model", "model.gguf"],
            &["model.gguf", "download the file again"],
        ),
        (
            // The number of tensors.
            Box::new(|place| {
                gguf(place);
                place.damage("model.gguf", |bytes| bytes[8..16].fill(0x7f));
            }),
            &["--model", "model.gguf"],
            &["model.gguf", "header claims", "download the file again"],
        ),
        (
            Box::new(config(r#""model_type": "qwen3""#, r#""model_type": "mamba""#)),
            &[],
            &["config.json", "`model_type`", "mamba", "Qwen3ForCausalLM"],
        ),
        (
            Box::new(config(r#""hidden_size": 64"#, r#""hidden_size": 99999999999"#)),
            &[],
            &["config.json", "`hidden_size`", "99999999999"],
        ),
        (
            Box::new(config(r#""num_key_value_heads": 2"#, r#""num_key_value_heads": 3"#)),
            &[],
            &["config.json", "`num_key_value_heads`"],
        ),
        (
            Box::new(|place| place.write("rows.jsonl", &rows("txet", "A row."))),
            &[],
            &["rows.jsonl:line 4", "text"],
        ),
        (
            Box::new(|place| place.write("rows.jsonl", &rows("text", "  "))),
            &[],
            &["rows.jsonl:line 4", "column `text` is empty"],
        ),
        (
            Box::new(|place| place.write("recipe.toml", &format!("lerning_rate = 1.0\n{RECIPE}"))),
            &[],
            &["recipe.toml:1", "`lerning_rate`", "`learning_rate`"],
        ),
        (Box::new(|_| ()), &["--set", "max_step=9"], &["--set max_step=9", "`max_steps`"]),
        (
            Box::new(|_| ()),
            &["--set", "memory_budget=1kB"],
            &["needs at least", "may take 1.0 kB", "lower max_length", "raise memory_budget"],
        ),
    ];
    for (prepare, arguments, parts) in cases {
        let place = Place::new();
        let before = place.run();
        prepare(&place);
        let output = place.train(&[arguments, &["--set", "max_steps=4"]].concat());
        refused(&place, &before, &output, parts);
    }
}

#[test]
fn an_adapter_of_another_model() {
    let place = Place::new();
    let before = place.run();
    let adapter = fixture("llama2/adapter");
    let adapter = adapter.to_str().unwrap();
    let output =
        place.eyas(&["generate", "Hello", "--model", "model", "--adapter", adapter]).output().unwrap();
    refused(&place, &before, &output, &["llama2/adapter", "shape", "tiny/llama2"]);
}

/// Files that may not grow fail as on a full disk.
#[cfg(unix)]
#[test]
fn a_disk_that_is_full() {
    let place = Place::new();
    let before = place.run();
    let eyas = place.eyas(&["train", "recipe.toml", "--model", "model", "--dataset", "rows.jsonl"]);
    let output = Command::new("sh")
        .current_dir(place.0.path())
        .args(["-c", "trap '' XFSZ; ulimit -f 20; exec \"$0\" \"$@\""])
        .arg(eyas.get_program())
        .args(eyas.get_args())
        .args(["--output", "run", "--resume", "--set", "max_steps=4"])
        .output()
        .unwrap();
    let parts = ["step 3: the checkpoint could not be written", "File too large", "checkpoint-2"];
    refused(&place, &before, &output, &parts);
}

/// Too long is not wrong: such rows are cut, counted and told.
#[test]
fn rows_that_are_too_long() {
    let place = Place::new();
    place.write("rows.jsonl", &rows("text", &"long ".repeat(20)));
    let output =
        place.train(&["--set", "overwrite_output_dir=true", "--set", "resume_from_checkpoint=false"]);
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("truncated   1 rows, 36 tokens lost; the longest row has 100"), "{told}");
}
