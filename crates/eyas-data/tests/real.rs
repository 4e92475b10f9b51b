//! Real vocabularies and templates that are not kept with the project. Each test is passed over, and says so, unless the
//! variable that names its files is set:
//!
//! - `EYAS_SHARED_DATA`: a folder with `falcon-tokenizer.json` and the vectors `falcon-tokenizer.vectors.inp` and
//!   `.out`: texts separated by `__ggml_vocab_test__` lines, and the ids of each on a line.
//! - `EYAS_SMOLLM2_GGUF`: the SmolLM2-135M-Instruct GGUF file; and `EYAS_SMOLLM2_GOLDEN`: what
//!   `tools/golden_data.py --smollm2 FILE.gguf --out FILE.json` wrote for it.
//! - `EYAS_TEMPLATES_GOLDEN`: what `tools/golden_data.py --templates FILE.json` wrote.

mod common;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use common::ids;
use eyas_checkpoint::Checkpoint;
use eyas_data::{ChatTemplate, Role, Tokenizer, Turn};

fn variable(name: &str) -> Option<PathBuf> {
    let value = env::var_os(name);
    if value.is_none() {
        eprintln!("passed over: {name} is not set");
    }
    value.map(PathBuf::from)
}

#[test]
fn falcon_encodes_its_published_vectors() {
    let Some(shared) = variable("EYAS_SHARED_DATA") else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::copy(shared.join("falcon-tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), r#"{"eos_token": "<|endoftext|>"}"#).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!((tokenizer.eos().unwrap(), tokenizer.vocab_size()), (11, 65024));
    let texts = fs::read_to_string(shared.join("falcon-tokenizer.vectors.inp")).unwrap();
    let expected = fs::read_to_string(shared.join("falcon-tokenizer.vectors.out")).unwrap();
    const SEPARATOR: &str = "\n__ggml_vocab_test__\n";
    let texts: Vec<&str> = texts.trim_end_matches(SEPARATOR).split(SEPARATOR).collect();
    let expected: Vec<&str> = expected.lines().collect();
    assert_eq!(texts.len(), expected.len());
    for (text, line) in texts.into_iter().zip(expected) {
        let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text, true).unwrap(), expected, "{text:?}");
    }
}

fn smollm2() -> Option<(PathBuf, Checkpoint)> {
    let path = variable("EYAS_SMOLLM2_GGUF")?;
    let checkpoint = Checkpoint::open(&path).unwrap();
    Some((path, checkpoint))
}

#[test]
fn smollm2_encodes_as_the_library_does() {
    let Some((path, checkpoint)) = smollm2() else { return };
    let Some(golden) = variable("EYAS_SMOLLM2_GOLDEN") else { return };
    let tokenizer = Tokenizer::from_gguf(&path, checkpoint.gguf_metadata().unwrap()).unwrap();
    let cases = common::read_json(Path::new(&golden));
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let found = tokenizer.encode(text, true).unwrap();
        assert_eq!(found, ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.decode(&found, false).unwrap(), text);
    }
}

#[test]
fn smollm2_has_its_template_and_special_tokens() {
    let Some((path, checkpoint)) = smollm2() else { return };
    let metadata = checkpoint.gguf_metadata().unwrap();
    let tokenizer = Tokenizer::from_gguf(&path, metadata).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos().unwrap()), (49152, 2));
    let template = ChatTemplate::from_gguf(metadata).unwrap().unwrap();
    let prompt = template.render(&[Turn::new(Role::User, "Hi")], true).unwrap();
    let system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
    let expected = format!(
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(prompt, expected);
    assert_eq!(tokenizer.encode(&prompt, false).unwrap().iter().filter(|&&id| id == 2).count(), 2);
}

#[test]
fn published_templates_render_as_transformers_renders_them() {
    let Some(path) = variable("EYAS_TEMPLATES_GOLDEN") else { return };
    let golden = common::read_json(&path);
    let special =
        [("bos_token", "<|im_start|>"), ("eos_token", "<|im_end|>")].map(|(k, v)| (k.into(), v.into()));
    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let source = golden["templates"][case["template"].as_str().unwrap()].as_str().unwrap();
        let turns = common::turns(&golden["chats"][case["chat"].as_str().unwrap()]);
        let rendered = ChatTemplate::new(source, special.clone().into())
            .and_then(|template| template.render(&turns, case["add_generation_prompt"].as_bool().unwrap()));
        let right = match (&rendered, case["rendered"].as_str()) {
            (Ok(found), Some(expected)) => found == expected,
            (Err(_), None) => true,
            _ => false,
        };
        let share = case.get("assistant").map(|expected| {
            let rendered =
                ChatTemplate::new(source, special.clone().into()).unwrap().render_marked(&turns).unwrap();
            let found: Vec<&str> =
                rendered.assistant.iter().map(|span| &rendered.text[span.clone()]).collect();
            serde_json::json!(found) == *expected
        });
        if !right || share == Some(false) {
            wrong.push(format!("{case}\n    {rendered:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
