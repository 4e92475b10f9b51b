//! Tokenizers built from GGUF files and folders, beside what the reference packages make of the same vocabulary.

mod common;

use std::fs;
use std::path::Path;

use common::{golden, ids, json};
use eyas_checkpoint::gguf::GgufFile;
use eyas_data::{ChatTemplate, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;

fn from_gguf(name: &str) -> Tokenizer {
    let path = golden(&format!("gguf/{name}.gguf"));
    let file = GgufFile::parse(&path, &fs::read(&path).unwrap()).unwrap();
    Tokenizer::from_gguf(&path, &file.metadata).unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.stream(skip_special);
    let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    text.push_str(&stream.finish().unwrap());
    text
}

#[test]
fn a_tokenizer_of_a_gguf_file_is_read_back_from_its_written_files() {
    for name in ["gpt-2", "smollm", "falcon", "llama-bpe", "qwen2", "llama"] {
        let tokenizer = from_gguf(name);
        let folder = tempfile::tempdir().unwrap();
        let template = ChatTemplate::new("{{ messages[0].content }}", Default::default()).unwrap();
        let generation = ("generation_config.json", tokenizer.generation_config());
        for (file, text) in tokenizer.to_files(Some(&template)).unwrap().into_iter().chain([generation]) {
            fs::write(folder.path().join(file), text).unwrap();
        }
        let saved = Tokenizer::from_folder(folder.path()).unwrap();
        assert_eq!(saved.special(), tokenizer.special(), "{name}");
        for case in json(&format!("gguf/{name}.json")).as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let encode = |tokenizer: &Tokenizer| tokenizer.encode_with_offsets(text, true).unwrap();
            let (before, after) = (encode(&tokenizer), encode(&saved));
            assert_eq!(after, before, "{name}: {text:?}");
            let decode = |tokenizer: &Tokenizer| tokenizer.decode(&before.ids, false).unwrap();
            assert_eq!(decode(&saved), decode(&tokenizer), "{name}: {text:?}");
        }
        let read = ChatTemplate::from_folder(folder.path()).unwrap().unwrap();
        assert_eq!(read.source(), template.source());
    }
}

#[test]
fn byte_level_vocabularies_encode_as_the_library_does() {
    for name in ["gpt-2", "smollm", "falcon", "llama-bpe", "qwen2"] {
        let tokenizer = from_gguf(name);
        for case in json(&format!("gguf/{name}.json")).as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let tokens = tokenizer.encode_with_offsets(text, true).unwrap();
            assert_eq!(tokens.ids, ids(&case["ids"]), "{name}: {text:?}");
            let offsets: Vec<Value> =
                tokens.offsets.iter().map(|o| serde_json::json!([o.start, o.end])).collect();
            // Text that normalisation changes, or characters of several tokens, have offsets of their own in
            // characters; the others are compared in bytes.
            if text.is_ascii() {
                assert_eq!(Value::from(offsets), case["offsets"], "{name}: {text:?}");
            }
            assert_eq!(tokenizer.decode(&tokens.ids, true).unwrap(), case["decoded"].as_str().unwrap());
            assert_eq!(
                tokenizer.decode(&tokens.ids, false).unwrap(),
                case["decoded_whole"].as_str().unwrap()
            );
            assert_eq!(streamed(&tokenizer, &tokens.ids, true), case["decoded"].as_str().unwrap());
        }
    }
}

#[test]
fn sentence_piece_vocabularies_encode_as_sentencepiece_does() {
    let tokenizer = from_gguf("llama");
    for case in json("gguf/llama.json").as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let found = tokenizer.encode(text, true).unwrap();
        assert_eq!(found, ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.decode(&found, true).unwrap(), text);
        assert_eq!(streamed(&tokenizer, &found, true), text);
    }
    assert_eq!(tokenizer.special().bos, Some(1));
    assert_eq!(tokenizer.eos_ids(), [2]);
}

#[test]
fn a_stream_gives_out_whole_characters_only() {
    let tokenizer = from_gguf("gpt-2");
    let text = "日本 🤗!";
    let ids = tokenizer.encode(text, true).unwrap();
    assert!(ids.len() > text.chars().count());
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    assert_eq!(pieces.concat(), text);
    // An unfinished character is told at the end, and one that never ends does not hold the rest back.
    let mut stream = tokenizer.stream(true);
    assert_eq!(stream.push(ids[0]).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    let mut stream = tokenizer.stream(true);
    let told: String = std::iter::repeat_n(ids[0], 20).map(|id| stream.push(id).unwrap()).collect();
    assert!(told.starts_with('\u{fffd}'));
}

#[test]
fn gguf_names_end_tokens() {
    let tokenizer = from_gguf("smollm");
    assert_eq!(tokenizer.eos().unwrap(), 2);
    assert_eq!(tokenizer.eos_ids(), [2, 0]);
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(50));
    assert_eq!(tokenizer.id_to_token(2).unwrap(), "<|im_end|>");
    assert_eq!(tokenizer.token_to_id("<|im_start|>"), Some(1));
    assert_eq!(tokenizer.vocab_size(), 420);
}

/// The bytes of a GGUF file without tensors.
fn gguf(keys: &[(&str, GgufValue)]) -> Vec<u8> {
    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        text(&mut bytes, &format!("tokenizer.ggml.{key}"));
        let (kind, count): (u32, Option<(u32, usize)>) = match value {
            GgufValue::Text(_) => (8, None),
            GgufValue::Id(_) => (4, None),
            GgufValue::Texts(list) => (9, Some((8, list.len()))),
            GgufValue::Kinds(list) => (9, Some((5, list.len()))),
            GgufValue::Scores(list) => (9, Some((6, list.len()))),
        };
        bytes.extend(kind.to_le_bytes());
        if let Some((item, count)) = count {
            bytes.extend(item.to_le_bytes());
            bytes.extend((count as u64).to_le_bytes());
        }
        match value {
            GgufValue::Text(value) => text(&mut bytes, value),
            GgufValue::Id(id) => bytes.extend(id.to_le_bytes()),
            GgufValue::Texts(list) => list.iter().for_each(|value| text(&mut bytes, value)),
            GgufValue::Kinds(list) => list.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
            GgufValue::Scores(list) => list.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
        }
    }
    bytes
}

#[derive(Clone)]
enum GgufValue {
    Text(&'static str),
    Id(u32),
    Texts(Vec<&'static str>),
    Kinds(Vec<i32>),
    Scores(Vec<f32>),
}

#[test]
fn metadata_that_contradict_themselves_say_where() {
    use GgufValue::{Id, Kinds, Scores, Text, Texts};
    let base = |model| {
        vec![
            ("model", Text(model)),
            ("pre", Text("gpt-2")),
            ("tokens", Texts(vec!["a", "b", "ab", "<s>"])),
            ("merges", Texts(vec!["a b"])),
            ("token_type", Kinds(vec![1, 1, 1, 3])),
            ("scores", Scores(vec![-1.0, -2.0, -3.0, 0.0])),
            ("eos_token_id", Id(3)),
        ]
    };
    let load = |keys: &[(&str, GgufValue)]| {
        let path = Path::new("model.gguf");
        let file = GgufFile::parse(path, &gguf(keys)).unwrap();
        Tokenizer::from_gguf(path, &file.metadata)
    };
    for model in ["gpt2", "llama"] {
        let tokenizer = load(&base(model)).unwrap();
        assert_eq!(tokenizer.encode("ab<s>", false).unwrap().last(), Some(&3));
    }
    for (model, key, value, expected) in [
        (
            "gpt2",
            "merges",
            Texts(vec!["a b", "b a"]),
            "`tokenizer.ggml.merges` entry 1, \"b a\": \"ba\" is not in the vocabulary",
        ),
        (
            "gpt2",
            "merges",
            Texts(vec!["a x"]),
            "`tokenizer.ggml.merges` entry 0, \"a x\": \"x\" is not in the vocabulary",
        ),
        ("gpt2", "merges", Texts(vec!["ab"]), "`tokenizer.ggml.merges` entry 0, \"ab\": is not two tokens"),
        ("gpt2", "pre", Text("novel"), "`tokenizer.ggml.pre` is \"novel\"; known are gpt-2"),
        ("gpt2", "tokens", Texts(vec![]), "`tokenizer.ggml.tokens` is empty"),
        ("gpt2", "token_type", Kinds(vec![1]), "`tokenizer.ggml.token_type` has 1 entries for 4 tokens"),
        ("gpt2", "eos_token_id", Id(4), "`tokenizer.ggml.eos_token_id` is 4, outside the vocabulary of 4"),
        ("llama", "scores", Scores(vec![1.0]), "`tokenizer.ggml.scores` has 1 entries for 4 tokens"),
        (
            "llama",
            "scores",
            Scores(vec![1.0, f32::NAN, 0.0, 0.0]),
            "`tokenizer.ggml.scores` entry 1 is not a number",
        ),
        ("bert", "pre", Text("x"), "`tokenizer.ggml.model` is \"bert\"; `gpt2` and `llama` are supported"),
    ] {
        let mut keys = base(model);
        keys.iter_mut().find(|(name, _)| *name == key).unwrap().1 = value;
        let message = load(&keys).unwrap_err().to_string();
        assert!(message.contains("model.gguf") && message.contains(expected), "{message}");
    }
    for missing in ["tokens", "merges", "model"] {
        let keys: Vec<_> = base("gpt2").into_iter().filter(|(name, _)| *name != missing).collect();
        assert!(load(&keys).unwrap_err().to_string().contains(&format!("tokenizer.ggml.{missing}")));
    }
}

#[test]
fn folders_load_as_transformers_loads_them() {
    let expected = json("folders/expected.json");
    for (name, case) in expected.as_object().unwrap() {
        let tokenizer = Tokenizer::from_folder(&golden("folders").join(name)).unwrap();
        let id = |key: &str| case[key].as_u64().map(|id| id as u32);
        let special = tokenizer.special();
        let found = (special.bos, special.eos, special.pad, special.unk);
        assert_eq!(found, (id("bos"), id("eos"), id("pad"), id("unk")), "{name}");
        assert_eq!(tokenizer.vocab_size() as u64, case["size"].as_u64().unwrap(), "{name}");
        for text in case["texts"].as_array().unwrap() {
            let found = tokenizer.encode(text["text"].as_str().unwrap(), true).unwrap();
            assert_eq!(found, ids(&text["ids"]), "{name}: {}", text["text"]);
        }
    }
    let stop = |name: &str| Tokenizer::from_folder(&golden("folders").join(name)).unwrap().eos_ids().to_vec();
    assert_eq!(stop("chatml"), [2, 0]);
    assert_eq!(stop("bos"), [2, 0]);
    assert_eq!(stop("bos_eos"), [2]);
}

fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(golden("folders").join(name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

fn refused(folder: &Path) -> String {
    Tokenizer::from_folder(folder).unwrap_err().to_string()
}

#[test]
fn a_folder_that_cannot_be_used_says_why() {
    let empty = tempfile::tempdir().unwrap();
    assert!(refused(empty.path()).contains("tokenizer.json: does not exist"));
    fs::write(empty.path().join("tokenizer.model"), "x").unwrap();
    assert!(refused(empty.path()).contains("only the older tokenizer.model"));

    let folder = copy("bos");
    let path = folder.path().join("tokenizer.json");
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(refused(folder.path()).contains("tokenizer.json: cannot be used"));
    // A merge of two tokens whose union is longer than any token.
    let mut json: Value = serde_json::from_str(&whole).unwrap();
    let longest = "b".repeat(100);
    json["model"]["vocab"][&longest] = 419.into();
    json["model"]["merges"].as_array_mut().unwrap().push(serde_json::json!([longest, longest]));
    fs::write(&path, json.to_string()).unwrap();
    assert!(refused(folder.path()).contains("tokenizer.json: "));
    fs::write(&path, &whole).unwrap();

    let config = folder.path().join("tokenizer_config.json");
    fs::write(&config, r#"{"eos_token": "<nowhere>"}"#).unwrap();
    let message = refused(folder.path());
    assert!(message.contains("`eos_token` is \"<nowhere>\", which is not in the vocabulary"), "{message}");
    fs::write(&config, r#"{"eos_token": {"id": 3}}"#).unwrap();
    assert!(refused(folder.path()).contains("`eos_token` has no text in `content`"));
    fs::write(&config, r#"{"added_tokens_decoder": {"7": {"content": "<|im_end|>"}}}"#).unwrap();
    assert!(refused(folder.path()).contains("whose id in tokenizer.json is 2"));
    fs::write(&config, r#"{"added_tokens_decoder": {"9000": {"content": "<new>"}}}"#).unwrap();
    assert!(refused(folder.path()).contains("leaves a gap"));
    fs::write(&config, "[1]").unwrap();
    assert!(refused(folder.path()).contains("tokenizer_config.json: is not a JSON object"));
    fs::write(&config, "{}").unwrap();
    fs::remove_file(folder.path().join("config.json")).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert!(tokenizer.eos().unwrap_err().to_string().contains("names no end-of-sequence token"));
    fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": ["x"]}"#).unwrap();
    assert!(refused(folder.path()).contains("`eos_token_id` must be an id or a list, not \"x\""));
}

#[test]
fn special_tokens_may_come_from_their_own_map() {
    let folder = copy("bos");
    fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    let map = r#"{"eos_token": {"content": "<|im_end|>", "lstrip": false}, "pad_token": null}"#;
    fs::write(folder.path().join("special_tokens_map.json"), map).unwrap();
    assert_eq!(Tokenizer::from_folder(folder.path()).unwrap().eos().unwrap(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_text_comes_back(text in "\\PC{0,40}|[a-z \n\t'.,0-9]{0,60}") {
        for name in ["smollm", "llama-bpe", "llama"] {
            // The texts of special tokens are taken for them.
            prop_assume!(!text.contains("<|") && !text.contains("<s>") && !text.contains("</s>") && !text.contains("<unk>"));
            prop_assume!(name != "llama" || !text.contains('\u{2581}'));
            let tokenizer = from_gguf(name);
            let ids = tokenizer.encode(&text, true).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids, true).unwrap(), &text);
            prop_assert_eq!(&streamed(&tokenizer, &ids, true), &text);
        }
    }

    #[test]
    fn a_damaged_tokenizer_file_is_an_error_or_a_tokenizer(at in 0.0..1.0, byte: u8) {
        let folder = copy("bos");
        let path = folder.path().join("tokenizer.json");
        let mut bytes = fs::read(&path).unwrap();
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] = byte;
        fs::write(&path, bytes).unwrap();
        if let Ok(tokenizer) = Tokenizer::from_folder(folder.path()) {
            let _ = tokenizer.encode("Worry isn't 12 habits, 🤗", true);
        }
    }
}
