//! Recipes: the ready ones, overrides, and what people see when one is wrong.

use std::path::{Path, PathBuf};

use eyas_backend::Dtype;
use eyas_model::Modules;
use eyas_train::recipe::{GradientCheckpointing, KEYS, MemoryBudget, ResumeFrom};
use eyas_train::{LrSchedulerType, Recipe};
use proptest::prelude::*;

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes")
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    let error = Recipe::parse("run.toml", text).and_then(|recipe| recipe.validate()).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

#[test]
fn every_ready_recipe_is_valid() {
    let mut count = 0;
    for entry in std::fs::read_dir(recipes()).unwrap() {
        let path = entry.unwrap().path();
        let recipe = Recipe::read(&path).unwrap();
        recipe.validate().unwrap();
        assert_eq!(Recipe::parse("again", &recipe.to_toml()).unwrap(), recipe, "{}", path.display());
        count += 1;
    }
    assert!(count >= 3);
}

#[test]
fn the_published_recipe_has_the_published_values() {
    let recipe = Recipe::read(&recipes().join("mental-health.toml")).unwrap();
    assert_eq!((recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.lora_dropout), (32, 32.0, 0.05));
    let names = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"];
    assert_eq!(recipe.lora.target_modules, Modules::Names(names.map(String::from).to_vec()));
    let training = &recipe.training;
    assert_eq!((training.per_device_train_batch_size, training.gradient_accumulation_steps), (16, 4));
    assert_eq!((training.learning_rate, training.warmup_ratio, training.max_grad_norm), (2e-4, 0.03, 0.3));
    assert_eq!((training.max_steps, training.save_steps, training.logging_steps), (320, 10, 10));
    assert_eq!(training.lr_scheduler_type, LrSchedulerType::Cosine);
    assert!(training.group_by_length);
    assert_eq!(String::from(training.optim), "paged_adamw_32bit");
    assert_eq!(recipe.compute_dtype(), Some(Dtype::Bf16));
    assert_eq!(recipe.quantization.config(), Some(eyas_quant::QuantConfig::default()));
    assert_eq!(recipe.data.max_length, 1024);
    let generation = &recipe.generation;
    assert_eq!((generation.temperature, generation.top_p, generation.repetition_penalty), (0.4, 0.6, 1.3));
    assert!(generation.do_sample);
    // The original's repository was public; whoever trains on people's conversations decides that anew.
    assert!(training.push_to_hub && training.hub_private_repo);
}

#[test]
fn keys_stand_in_their_section_or_without_one() {
    let flat = Recipe::parse("a", "r = 16\nmax_steps = 7\nlr_scheduler_type = \"constant\"").unwrap();
    let sections = "[lora]\nr = 16\n[training]\nmax_steps = 7\nlr_scheduler_type = \"constant\"";
    assert_eq!(flat, Recipe::parse("b", sections).unwrap());
    assert_eq!(flat.training.lr_scheduler_type, LrSchedulerType::Constant);
}

#[test]
fn every_key_is_unique_and_explained() {
    let mut names: Vec<&str> =
        KEYS.iter().flat_map(|key| std::iter::once(key.name).chain(key.aliases.iter().copied())).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    let reference = Recipe::reference();
    for key in KEYS {
        assert!(key.doc().len() > 10, "{}", key.name);
        assert!(reference.contains(&format!("| `{}` |", key.name)), "{}", key.name);
    }
    assert!(reference.contains("| `learning_rate` | `0.0002` | Peak of the learning rate. |"), "{reference}");
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_one() {
    refused(
        "# mine\n[training]\nlearning_rat = 1e-3",
        "run.toml:3: unknown key `learning_rat`; did you mean `learning_rate`?",
    );
    refused(
        "gradient_acumulation = 4",
        "run.toml:1: unknown key `gradient_acumulation`; did you mean `gradient_accumulation_steps`?",
    );
    refused("[lorra]\nr = 4", "run.toml:1: unknown key `lorra`; did you mean `lora`?");
}

#[test]
fn a_key_in_another_section_is_sent_home() {
    refused("[lora]\nmax_steps = 3", "run.toml:2: `max_steps` does not belong to [lora] but to [training]");
}

#[test]
fn a_key_set_twice_is_refused() {
    refused(
        "max_length = 3\n[data]\nmax_seq_length = 4",
        "run.toml:3: `max_length` is set already, at run.toml:1; keep one of the two",
    );
}

#[test]
fn a_value_of_another_type_names_its_key() {
    refused("r = \"many\"", "run.toml:1: `r` is \"many\": invalid type: string \"many\", expected usize");
    refused(
        "\nlr_scheduler_type = \"cosin\"",
        "run.toml:2: `lr_scheduler_type` is \"cosin\": unknown variant `cosin`, expected one of `linear`, `cosine`, \
         `constant`, `constant_with_warmup`",
    );
    let error = Recipe::parse("run.toml", "report_to = [\"mlflow\"]").unwrap_err().to_string();
    assert!(error.contains("`mlflow` is not supported") && error.contains("trainer_state.json"), "{error}");
    let error = Recipe::parse("run.toml", "optim = \"lion_8bit\"").unwrap_err().to_string();
    assert!(error.contains("`lion_8bit` is not supported"), "{error}");
}

#[test]
fn what_is_no_toml_names_its_line() {
    let error = Recipe::parse("run.toml", "[lora]\nr = = 4\n").unwrap_err().to_string();
    assert!(error.starts_with("run.toml:2: not valid TOML: "), "{error}");
}

#[test]
fn values_that_make_no_sense_name_their_key_and_place() {
    for (text, part) in [
        ("lora_dropout = 1.0", "run.toml:1: `lora_dropout` is 1; at least 0 and below 1"),
        ("eval_share = -0.1", "`eval_share` is -0.1"),
        ("learning_rate = 0", "`learning_rate` is 0; above 0"),
        ("learning_rate = nan", "`learning_rate` is NaN"),
        ("max_steps = 0", "`max_steps` is 0"),
        ("r = 0", "`r` is 0; at least 1"),
        ("bias = \"all\"", "`bias` is `all`"),
        ("task_type = \"SEQ_CLS\"", "`task_type` is `SEQ_CLS`"),
        ("bnb_4bit_blocksize = 48", "`bnb_4bit_blocksize` is 48; a power of two"),
        ("bf16 = true\nfp16 = true", "run.toml:2: `fp16` and `bf16` are both true"),
        ("bf16 = true\nbnb_4bit_compute_dtype = \"float16\"", "`bnb_4bit_compute_dtype` and `bf16`"),
        ("save_total_limit = 0", "`save_total_limit` is 0"),
        ("top_p = 0", "`top_p` is 0"),
        ("[rank_pattern]\nq_proj = 0", "`rank_pattern` gives `q_proj` the rank 0"),
    ] {
        let error = Recipe::parse("run.toml", text).unwrap().validate().unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn arguments_override_the_file() {
    let mut recipe = Recipe::parse("run.toml", "max_steps = 3").unwrap();
    for assignment in [
        "max_steps=20",
        "training.learning_rate=1e-3",
        "target_modules=[\"q_proj\", \"v_proj\"]",
        "dataset=rows.jsonl",
        "model_name_or_path=123",
        "gradient_checkpointing=true",
        "memory_budget=1.5 GB",
        "resume_from_checkpoint=true",
        "lora.rank_pattern={ q_proj = 4 }",
    ] {
        recipe.set(assignment).unwrap();
    }
    assert_eq!((recipe.training.max_steps, recipe.training.learning_rate), (20, 1e-3));
    assert_eq!(recipe.lora.target_modules, Modules::Names(vec!["q_proj".into(), "v_proj".into()]));
    assert_eq!(recipe.data.dataset.as_deref(), Some("rows.jsonl"));
    assert_eq!(recipe.model.model_name_or_path.as_deref(), Some("123"));
    assert_eq!(recipe.training.gradient_checkpointing, GradientCheckpointing::Always);
    assert_eq!(recipe.training.memory_budget, MemoryBudget::Bytes(1_500_000_000));
    assert_eq!(recipe.training.resume_from_checkpoint, ResumeFrom::Last);
    assert_eq!(recipe.lora.rank_pattern["q_proj"], 4);
    assert_eq!(Recipe::parse("again", &recipe.to_toml()).unwrap(), recipe);
}

#[test]
fn wrong_arguments_are_named() {
    let mut recipe = Recipe::default();
    for (assignment, expected) in [
        ("max_steps", "--set max_steps: has no `=`; write `key=value`"),
        ("max_step=3", "--set max_step=3: unknown key `max_step`; did you mean `max_steps`?"),
        (
            "lora.max_steps=3",
            "--set lora.max_steps=3: `max_steps` does not belong to [lora] but to [training]",
        ),
        (
            "max_steps=many",
            "--set max_steps=many: `max_steps` is \"many\": invalid type: string \"many\", expected i64",
        ),
    ] {
        assert_eq!(recipe.set(assignment).unwrap_err().to_string(), expected);
    }
    recipe.set("r=0").unwrap();
    assert_eq!(recipe.validate().unwrap_err().to_string(), "--set r=0: `r` is 0; at least 1 was expected");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,40}|[a-z_\\[\\]=. \"\n0-9-]{0,80}") {
        let _ = Recipe::parse("x", &text).map(|recipe| recipe.validate());
        let _ = Recipe::default().set(&text);
    }
}
