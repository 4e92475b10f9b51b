//! What people see when a model or an adapter is not what it should be.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use eyas_model::{LoraAdapter, LoraConfig, LoraLayout, ModelSource, Modules};
use tempfile::TempDir;

/// A copy of a fixture that a test may damage.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

fn edit(folder: &Path, file: &str, from: &str, to: &str) {
    let path = folder.join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} lacks {from}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[track_caller]
fn refused(folder: &Path, parts: &[&str]) {
    let message = ModelSource::open(folder).unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn an_unknown_architecture() {
    let folder = copy("llama2");
    edit(folder.path(), "config.json", r#""model_type": "llama""#, r#""model_type": "mamba""#);
    refused(folder.path(), &["config.json", "`model_type`", "mamba", "LlamaForCausalLM", "falcon, "]);
}

#[test]
fn sizes_that_cannot_be() {
    for (from, to, key) in [
        (r#""hidden_size": 72"#, r#""hidden_size": 0"#, "`hidden_size`"),
        (r#""hidden_size": 72"#, r#""hidden_size": 99999999999999"#, "`hidden_size`"),
        (r#""num_key_value_heads": 6"#, r#""num_key_value_heads": 4"#, "`num_key_value_heads`"),
        (r#""num_hidden_layers": 2"#, r#""num_hidden_layers": -1"#, "`num_hidden_layers`"),
        (r#""vocab_size": 96"#, r#""vocab_size": "many""#, "`vocab_size`"),
    ] {
        let folder = copy("llama2");
        edit(folder.path(), "config.json", from, to);
        refused(folder.path(), &["config.json", key]);
    }
}

#[test]
fn weights_of_another_shape_than_the_configuration() {
    let folder = copy("llama2");
    edit(folder.path(), "config.json", r#""intermediate_size": 100"#, r#""intermediate_size": 104"#);
    refused(folder.path(), &["model.layers.0.mlp.gate_proj.weight", "[100, 72]", "[104, 72]"]);
}

#[test]
fn more_layers_than_there_are_weights_for() {
    let folder = copy("llama2");
    edit(folder.path(), "config.json", r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 3"#);
    refused(folder.path(), &["model.layers.2.self_attn.q_proj.weight", "incomplete"]);
}

#[test]
fn a_missing_shard() {
    let folder = copy("qwen3");
    fs::remove_file(folder.path().join("model-00003-of-00004.safetensors")).unwrap();
    refused(folder.path(), &["model-00003-of-00004.safetensors"]);
}

#[test]
fn a_truncated_shard() {
    let folder = copy("qwen3");
    let path = folder.path().join("model-00002-of-00004.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    refused(folder.path(), &["model-00002-of-00004.safetensors"]);
}

#[test]
fn a_folder_without_configuration() {
    let folder = copy("llama2");
    fs::remove_file(folder.path().join("config.json")).unwrap();
    refused(folder.path(), &["config.json"]);
}

#[test]
fn an_adapter_for_another_model() {
    let source = ModelSource::open(&fixture("llama3")).unwrap();
    let message = LoraAdapter::load(&fixture("llama2/adapter"), source.decoder()).unwrap_err().to_string();
    assert!(message.contains("llama2/adapter") && message.contains("shape"), "{message}");

    let source = ModelSource::open(&fixture("falcon-7b")).unwrap();
    let message = LoraAdapter::load(&fixture("llama2/adapter"), source.decoder()).unwrap_err().to_string();
    assert!(message.contains("matches no linear layer") && message.contains("tiny/llama2"), "{message}");
}

#[test]
fn an_adapter_with_settings_that_would_change_the_result() {
    let source = ModelSource::open(&fixture("llama2")).unwrap();
    for (from, to, key) in [
        (r#""use_dora": false"#, r#""use_dora": true"#, "`use_dora`"),
        (r#""bias": "none""#, r#""bias": "all""#, "`bias`"),
        (r#""modules_to_save": null"#, r#""modules_to_save": ["lm_head"]"#, "`modules_to_save`"),
        (r#""peft_type": "LORA""#, r#""peft_type": "IA3""#, "`peft_type`"),
    ] {
        let folder = copy("llama2/adapter");
        edit(folder.path(), "adapter_config.json", from, to);
        let message = LoraAdapter::load(folder.path(), source.decoder()).unwrap_err().to_string();
        assert!(message.contains("adapter_config.json") && message.contains(key), "{message}");
    }
}

#[test]
fn target_modules_that_match_nothing() {
    let source = ModelSource::open(&fixture("llama2")).unwrap();
    let config = LoraConfig {
        target_modules: Modules::Names(vec!["query_key_value".into()]),
        ..LoraConfig::default()
    };
    let message = LoraLayout::new(source.decoder(), config).unwrap_err().to_string();
    assert!(
        message.contains("query_key_value") && message.contains("model.layers.0.self_attn.q_proj"),
        "{message}"
    );
}

#[test]
fn the_head_as_a_target() {
    let source = ModelSource::open(&fixture("llama2")).unwrap();
    let config =
        LoraConfig { target_modules: Modules::Names(vec!["lm_head".into()]), ..LoraConfig::default() };
    let message = LoraLayout::new(source.decoder(), config).unwrap_err().to_string();
    assert!(message.contains("lm_head"), "{message}");
}
