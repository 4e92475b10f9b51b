//! A merged model is the base with its adapter, for every layout of every family.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use eyas_backend::Dtype;
use eyas_backend::spec::QuantConfig;
use eyas_checkpoint::Checkpoint;
use eyas_model::config::Config;
use eyas_model::{LoraAdapter, MergeOptions, Merged, ModelSource, Result, merge};

const PLAIN: MergeOptions =
    MergeOptions { dtype: Some(Dtype::F32), max_shard_size: u64::MAX, quantize: None };

fn merge_fixture(base: &str, adapter: &str, folder: &Path, options: MergeOptions) -> Result<Merged> {
    let source = ModelSource::open(&fixture(base)).unwrap();
    let adapter = LoraAdapter::load(&fixture(adapter), source.decoder()).unwrap();
    merge(&source, &adapter, folder, options, &mut |_, _| {})
}

fn golden(base: &str) -> Checkpoint {
    Checkpoint::open(fixture(base).join("golden.safetensors")).unwrap()
}

fn config(folder: &Path) -> Config {
    Config::read(&folder.join("config.json")).unwrap()
}

#[test]
fn logits_are_those_of_the_base_with_its_adapter() {
    let backend = backend();
    for base in BASES {
        let folder = tempfile::tempdir().unwrap();
        merge_fixture(base, &format!("{base}/adapter"), folder.path(), PLAIN).unwrap();
        let model = load_from(&backend, folder.path(), None);
        let golden = golden(base);
        let actual = logits(&backend, &model, &batch(&golden, "flat"), None);
        assert_close(base, &actual, &floats(&golden, "logits.adapter"), 1e-5);
    }
}

#[test]
fn merged_into_quantised_weights_logits_are_those_that_training_saw() {
    let backend = backend();
    for base in BASES {
        let folder = tempfile::tempdir().unwrap();
        let quantize = Some(QuantConfig::default());
        merge_fixture(base, &format!("{base}/adapter"), folder.path(), MergeOptions { quantize, ..PLAIN })
            .unwrap();
        let merged = load_from(&backend, folder.path(), None);
        let trained = load_from(&backend, &fixture(base), quantize);
        let adapter = LoraAdapter::load(&fixture(base).join("adapter"), trained.decoder()).unwrap();
        let asked = batch(&golden(base), "flat");
        let expected = logits(&backend, &trained, &asked, Some(&adapter));
        assert_close(base, &logits(&backend, &merged, &asked, None), &expected, 1e-5);
    }
}

#[test]
fn a_base_that_is_stored_in_4_bits_is_merged_as_it_is_read() {
    let backend = backend();
    let folder = tempfile::tempdir().unwrap();
    merge_fixture("mistral-bnb-nf4", "mistral/adapter", folder.path(), PLAIN).unwrap();
    assert!(config(folder.path()).get(&["quantization_config"]).is_none());
    let (merged, trained) =
        (load_from(&backend, folder.path(), None), load_from(&backend, &fixture("mistral-bnb-nf4"), None));
    let adapter = LoraAdapter::load(&fixture("mistral/adapter"), trained.decoder()).unwrap();
    let asked = batch(&golden("mistral"), "flat");
    let expected = logits(&backend, &trained, &asked, Some(&adapter));
    assert_close("mistral-bnb-nf4", &logits(&backend, &merged, &asked, None), &expected, 1e-5);
}

#[test]
fn a_first_falcon_checkpoint_gets_the_names_of_today() {
    let backend = backend();
    let folder = tempfile::tempdir().unwrap();
    merge_fixture("falcon-refinedweb", "falcon-7b/adapter", folder.path(), PLAIN).unwrap();
    let config = config(folder.path());
    assert_eq!(config.text("model_type").unwrap(), Some("falcon"));
    assert_eq!(config.texts("architectures").unwrap(), ["FalconForCausalLM"]);
    assert_eq!(config.size(&["num_attention_heads"], 100).unwrap(), 7);
    assert!(config.get(&["auto_map"]).is_none());
    let golden = golden("falcon-7b");
    let actual = logits(&backend, &load_from(&backend, folder.path(), None), &batch(&golden, "flat"), None);
    assert_close("falcon-refinedweb", &actual, &floats(&golden, "logits.adapter"), 1e-5);
}

#[test]
fn the_sum_is_rounded_once_to_the_base_s_own_type() {
    let (exact, rounded) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    merge_fixture("qwen2", "qwen2/adapter", exact.path(), PLAIN).unwrap();
    let own = MergeOptions { dtype: None, ..PLAIN };
    let merged = merge_fixture("qwen2", "qwen2/adapter", rounded.path(), own).unwrap();
    assert_eq!((merged.dtype, merged.targets), (Dtype::Bf16, 14));
    assert!(config(rounded.path()).text("dtype").unwrap() == Some("bfloat16"));
    let (exact, rounded) =
        (Checkpoint::open(exact.path()).unwrap(), Checkpoint::open(rounded.path()).unwrap());
    for info in exact.tensors() {
        let expected: Vec<f32> = floats(&exact, &info.name)
            .into_iter()
            .map(|value| half::bf16::from_f32(value).to_f32())
            .collect();
        assert_eq!(floats(&rounded, &info.name), expected, "{}", info.name);
    }
}

#[test]
fn shards_hold_the_same_model_and_no_head_that_is_the_embedding() {
    let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    merge_fixture("smollm2", "smollm2/adapter", one.path(), PLAIN).unwrap();
    let small = MergeOptions { max_shard_size: 100_000, ..PLAIN };
    let merged = merge_fixture("smollm2", "smollm2/adapter", many.path(), small).unwrap();
    assert!(merged.files.len() > 2, "{:?}", merged.files);
    assert!(merged.files.iter().all(|name| many.path().join(name).is_file()));
    let (one, many) = (Checkpoint::open(one.path()).unwrap(), Checkpoint::open(many.path()).unwrap());
    assert!(one.tensors().eq(many.tensors()) && !one.contains("lm_head.weight"));
    for info in one.tensors() {
        assert_eq!(one.read_bytes(&info.name).unwrap(), many.read_bytes(&info.name).unwrap());
    }
}

#[test]
fn a_value_that_the_type_cannot_hold_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = ModelSource::open(&fixture("llama2")).unwrap();
    let mut adapter = LoraAdapter::load(&fixture("llama2/adapter"), source.decoder()).unwrap();
    adapter.params.iter_mut().for_each(|value| *value *= 1e4);
    let half = MergeOptions { dtype: Some(Dtype::F16), ..PLAIN };
    let error = merge(&source, &adapter, folder.path(), half, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("model.layers.0.") && error.contains("write bf16 or f32"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn progress_ends_at_all_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let source = ModelSource::open(&fixture("llama2")).unwrap();
    let adapter = LoraAdapter::load(&fixture("llama2/adapter"), source.decoder()).unwrap();
    let mut told = Vec::new();
    let merged =
        merge(&source, &adapter, folder.path(), PLAIN, &mut |done, of| told.push((done, of))).unwrap();
    assert!(told.is_sorted());
    assert_eq!(told.last(), Some(&(merged.bytes, merged.bytes)));
}
