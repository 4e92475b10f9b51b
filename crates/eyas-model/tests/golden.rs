//! Logits, losses and gradients equal those of transformers and PEFT, for every layout of every family.

mod common;

use common::*;
use eyas_backend::spec::QuantConfig;
use eyas_checkpoint::Checkpoint;
use eyas_model::{AdapterSettings, LoraAdapter, ModelSource, Retain};
use serde_json::Value;

const LOGITS: f64 = 1e-5;
const GRADIENTS: f64 = 1e-4;

fn golden(base: &str) -> Checkpoint {
    Checkpoint::open(fixture(base).join("golden.safetensors")).unwrap()
}

fn json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(path)).unwrap()).unwrap()
}

#[test]
fn logits_of_the_base() {
    let backend = backend();
    for base in BASES {
        let golden = golden(base);
        let model = load(&backend, base, None);
        let actual = logits(&backend, &model, &batch(&golden, "flat"), None);
        assert_close(base, &actual, &floats(&golden, "logits.base"), LOGITS);
    }
}

#[test]
fn logits_of_the_base_as_bitsandbytes_quantised_it() {
    let backend = backend();
    for base in BASES {
        let golden = golden(base);
        let folder = quantised(base);
        let model = load_from(&backend, folder.path(), None);
        let actual = logits(&backend, &model, &batch(&golden, "flat"), None);
        assert_close(base, &actual, &floats(&golden, "logits.nf4"), LOGITS);
    }
}

/// Our own nested scales may be one code away from bitsandbytes', whose paths disagree by as much.
#[test]
fn logits_of_the_base_as_we_quantise_it() {
    let backend = backend();
    for base in BASES {
        let golden = golden(base);
        let model = load(&backend, base, Some(QuantConfig::default()));
        let actual = logits(&backend, &model, &batch(&golden, "flat"), None);
        assert_close(base, &actual, &floats(&golden, "logits.nf4"), 3e-3);
    }
}

#[test]
fn logits_with_an_adapter_of_peft() {
    let backend = backend();
    for base in BASES {
        let golden = golden(base);
        let model = load(&backend, base, None);
        let adapter = LoraAdapter::load(&fixture(base).join("adapter"), model.decoder()).unwrap();
        let actual = logits(&backend, &model, &batch(&golden, "flat"), Some(&adapter));
        assert_close(base, &actual, &floats(&golden, "logits.adapter"), LOGITS);
    }
}

#[test]
fn loss_and_every_gradient_of_an_adapter() {
    let backend = backend();
    for base in BASES {
        let golden = golden(base);
        let model = load(&backend, base, None);
        let adapter = LoraAdapter::load(&fixture(base).join("adapter"), model.decoder()).unwrap();
        let flat = batch(&golden, "flat");
        let (loss, gradient) =
            loss_and_gradient(&backend, &model, &flat, &adapter.layout, &adapter.params, Retain::Keep);
        let expected = json(&format!("{base}/golden.json"))["loss"]["adapter"].as_f64().unwrap();
        assert!((f64::from(loss) / expected - 1.0).abs() < 1e-6, "{base}: loss {loss}, expected {expected}");

        let expected = Checkpoint::open(fixture(base).join("gradients.safetensors")).unwrap();
        for target in adapter.layout.targets() {
            let (linear, slot) = (&target.linear, &target.slot);
            let matrices = [
                ("lora_A", slot.a, slot.r * linear.in_features),
                ("lora_B", slot.b, slot.r * linear.out_features),
            ];
            for (matrix, offset, len) in matrices {
                let name = format!("base_model.model.{}.{matrix}.weight", linear.path);
                let actual = &gradient[offset..offset + len];
                assert_close(&format!("{base}: {name}"), actual, &floats(&expected, &name), GRADIENTS);
            }
        }
    }
}

#[test]
fn recomputed_blocks_give_the_same_bits() {
    let backend = backend();
    for base in BASES {
        let golden = golden(base);
        let model = load(&backend, base, Some(QuantConfig::default()));
        let adapter = LoraAdapter::load(&fixture(base).join("adapter"), model.decoder()).unwrap();
        let flat = batch(&golden, "flat");
        let run =
            |retain| loss_and_gradient(&backend, &model, &flat, &adapter.layout, &adapter.params, retain);
        let kept = run(Retain::Keep);
        assert_eq!(kept, run(Retain::Recompute), "{base}");
        assert_eq!(kept, run(Retain::RecomputeFromHost), "{base}");
    }
}

#[test]
fn each_sequence_alone_gives_what_it_gives_in_the_batch() {
    let backend = backend();
    for base in BASES {
        let golden = golden(base);
        let model = load(&backend, base, None);
        let flat = batch(&golden, "flat");
        let together = logits(&backend, &model, &flat, None);
        let vocab = model.decoder().vocab_size;
        for range in flat.ranges() {
            let mut alone = eyas_backend::FlatBatch::new();
            alone.push(&flat.input_ids()[range.clone()], &flat.targets()[range.clone()]).unwrap();
            let actual = logits(&backend, &model, &alone, None);
            let expected = &together[range.start * vocab..range.end * vocab];
            assert_close(&format!("{base}, tokens {range:?}"), &actual, expected, 1e-6);
        }
    }
}

#[test]
fn configurations_in_older_spellings_describe_the_same_decoder() {
    for base in BASES {
        let old = fixture(base).join("config.old.json");
        if !old.exists() {
            continue;
        }
        let describe = |name: &str| {
            let config = eyas_model::config::Config::read(&fixture(base).join(name)).unwrap();
            eyas_model::family::from_config(&config).unwrap()
        };
        let (new, mut old) = (describe("config.json"), describe("config.old.json"));
        // Falcon's first configurations do not say how long a context is.
        old.max_positions = new.max_positions;
        assert_eq!(old, new, "{base}");
    }
}

#[test]
fn the_first_falcon_checkpoints_in_bin_shards() {
    let backend = backend();
    let golden = golden("falcon-7b");
    let model = load(&backend, "falcon-refinedweb", None);
    let actual = logits(&backend, &model, &batch(&golden, "flat"), None);
    assert_close("falcon-refinedweb", &actual, &floats(&golden, "logits.base"), LOGITS);
}

#[test]
fn a_checkpoint_that_bitsandbytes_quantised() {
    let backend = backend();
    let golden = golden("mistral");
    let model = load(&backend, "mistral-bnb-nf4", None);
    let actual = logits(&backend, &model, &batch(&golden, "flat"), None);
    assert_close("mistral-bnb-nf4", &actual, &floats(&golden, "logits.nf4"), LOGITS);
}

#[test]
fn adapters_in_all_their_variants() {
    let backend = backend();
    for variant in ["lora-rslora", "lora-patterns", "lora-regex", "lora-all-linear", "lora-all-linear-names"]
    {
        let about = json(&format!("{variant}/golden.json"));
        let base = about["base"].as_str().unwrap();
        let model = load(&backend, base, None);
        let adapter = LoraAdapter::load(&fixture(variant), model.decoder()).unwrap();

        let modules = about["modules"].as_object().unwrap();
        assert_eq!(adapter.layout.targets().len(), modules.len(), "{variant}");
        for target in adapter.layout.targets() {
            let module = &modules[&target.linear.path];
            assert_eq!(module["r"], target.slot.r, "{variant}: {}", target.linear.path);
            let scaling = module["scaling"].as_f64().unwrap() as f32;
            assert!((scaling - target.slot.scaling).abs() < 1e-6, "{variant}: {}", target.linear.path);
        }
        let golden_base = golden(base);
        let golden = Checkpoint::open(fixture(variant).join("golden.safetensors")).unwrap();
        let actual = logits(&backend, &model, &batch(&golden_base, "flat"), Some(&adapter));
        assert_close(variant, &actual, &floats(&golden, "logits.adapter"), LOGITS);
    }
}

#[test]
fn all_linear_is_what_peft_makes_of_it() {
    for base in BASES {
        let source = ModelSource::open(&fixture(base)).unwrap();
        let layout = eyas_model::LoraLayout::new(source.decoder(), Default::default()).unwrap();
        let about = json(&format!("{base}/golden.json"));
        let listed: Vec<&str> =
            about["all_linear"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        for target in layout.targets() {
            let path = &target.linear.path;
            let named = listed.iter().any(|l| path == l || path.ends_with(&format!(".{l}")));
            assert!(named, "{base}: {path} is no target in PEFT");
        }
        let adapter = LoraAdapter::load(&fixture(base).join("adapter"), source.decoder()).unwrap();
        assert_eq!(about["trainable_parameters"], adapter.layout.parameters(), "{base}");
    }
}

#[test]
fn a_saved_adapter_is_read_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let source = ModelSource::open(&fixture("qwen2")).unwrap();
    let adapter = LoraAdapter::load(&fixture("lora-patterns"), source.decoder()).unwrap();
    adapter.save(folder.path()).unwrap();
    assert_eq!(LoraAdapter::load(folder.path(), source.decoder()).unwrap(), adapter);
}

#[test]
fn saved_weights_equal_the_file_that_peft_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let source = ModelSource::open(&fixture("llama2")).unwrap();
    let adapter = LoraAdapter::load(&fixture("llama2/adapter"), source.decoder()).unwrap();
    adapter.save(folder.path()).unwrap();
    let read = |folder: &std::path::Path| std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    assert!(read(folder.path()) == read(&fixture("llama2/adapter")));
}

#[test]
fn the_settings_of_an_adapter_name_its_base() {
    let folder = tempfile::tempdir().unwrap();
    let settings = AdapterSettings::read(&fixture("llama2/adapter")).unwrap();
    assert_eq!(settings.base_model, "tiny/llama2");
    let file = folder.path().join("adapter_config.json");
    for (name, expected) in [("", ""), ("owner/base", "owner/base@v1")] {
        let text = format!(
            r#"{{"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "revision": "v1",
                "base_model_name_or_path": "{name}"}}"#
        );
        std::fs::write(&file, text).unwrap();
        let settings = AdapterSettings::read(folder.path()).unwrap();
        assert_eq!(settings.base_model, expected);
        assert_eq!((settings.lora.r, settings.lora.lora_alpha), (4, 8.0));
    }
}
