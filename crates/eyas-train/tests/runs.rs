//! Whole runs: the same bits twice, after stopping anywhere, with any memory plan; logs as Hugging Face writes them.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::*;
use eyas_backend::FlatBatch;
use eyas_data::Example;
use eyas_model::{LoraAdapter, LoraLayout, MemoryPlan, Retain};
use eyas_train::recipe::{GradientCheckpointing, MemoryBudget, ResumeFrom, Training};
use eyas_train::{Ending, Error, Recipe};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

/// A log without what the clock decides.
fn timeless(state: &Value) -> Vec<Value> {
    let mut log = state["log_history"].as_array().unwrap().clone();
    for entry in &mut log {
        let clocked = |key: &str| key.contains("runtime") || key.contains("per_second");
        entry.as_object_mut().unwrap().retain(|key, _| !clocked(key));
    }
    log
}

#[test]
fn the_same_seed_gives_the_same_adapter() {
    let backend = backend();
    let model = load(&backend, "llama2", Some(Default::default()));
    let once = |seed| {
        let folder = tempfile::tempdir().unwrap();
        let mut recipe = recipe(folder.path());
        recipe.training.seed = seed;
        bits(&run(&model, &backend, &recipe).unwrap().0)
    };
    let first = once(42);
    assert_eq!(first, once(42));
    assert_ne!(first, once(43));
}

#[test]
fn training_learns() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    recipe.training.max_steps = 60;
    let (outcome, _) = run(&model, &backend, &recipe).unwrap();
    let (before, after) = (outcome.first_evaluation.unwrap(), outcome.last_evaluation.unwrap());
    assert!(after < before - 1.0, "{before} to {after}");
    let saved = LoraAdapter::load(folder.path(), model.decoder()).unwrap();
    assert_eq!(saved.params, outcome.adapter.params);
    assert_eq!(saved.base_model, "tiny/llama2");
}

#[test]
fn a_run_stopped_after_any_step_ends_in_the_same_bits() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let whole = tempfile::tempdir().unwrap();
    let mut settings = recipe(whole.path());
    settings.training.eval_steps = 3;
    let (expected, told) = run(&model, &backend, &settings).unwrap();
    let expected_log = timeless(&json(&whole.path().join("trainer_state.json")));
    for k in 1..9 {
        let folder = tempfile::tempdir().unwrap();
        settings.training.output_dir = folder.path().display().to_string();
        settings.training.resume_from_checkpoint = ResumeFrom::Never;
        let (stopped, before) = run_rows(&model, &backend, &settings, &rows(19), Some(k)).unwrap();
        assert_eq!((stopped.ending, stopped.global_step), (Ending::Interrupted, k));
        assert_eq!(before.saved, [k]);
        settings.training.resume_from_checkpoint = ResumeFrom::Last;
        let (resumed, after) = run(&model, &backend, &settings).unwrap();
        assert_eq!(resumed.ending, Ending::Finished);
        assert_eq!(bits(&resumed), bits(&expected), "stopped after step {k}");
        assert_eq!([before.losses, after.losses].concat(), told.losses);
        // The evaluation of the step at which it was stopped is the only thing left out.
        let log = timeless(&json(&folder.path().join("trainer_state.json")));
        let skipped = |entry: &&Value| k % 3 == 0 && entry["step"] == k && entry.get("eval_loss").is_some();
        assert_eq!(log, expected_log.iter().filter(|entry| !skipped(entry)).cloned().collect::<Vec<_>>());
    }
}

#[test]
fn keeping_and_recomputing_give_the_same_bits() {
    let backend = backend();
    let model = load(&backend, "qwen3", Some(Default::default()));
    let with = |checkpointing| {
        let folder = tempfile::tempdir().unwrap();
        let mut recipe = recipe(folder.path());
        recipe.training.gradient_checkpointing = checkpointing;
        bits(&run(&model, &backend, &recipe).unwrap().0)
    };
    assert_eq!(with(GradientCheckpointing::Never), with(GradientCheckpointing::Always));
}

#[test]
fn the_packing_of_micro_batches_does_not_matter() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let mut config = layout(&model).config;
    config.lora_dropout = 0.0;
    let layout = LoraLayout::new(model.decoder(), config).unwrap();
    let rows = rows(6);
    let measure = |packs: &[&[usize]]| {
        let micro_batches: Vec<FlatBatch> =
            packs.iter().map(|pack| batch_of(pack.iter().map(|&row| &rows[row]))).collect();
        let plan =
            MemoryPlan { max_tokens: 120, max_sequences: 6, logit_rows: 16, blocks: vec![Retain::Keep; 2] };
        let mut engine = engine(1, &backend, &model, layout.clone(), plan);
        engine.accumulate(&micro_batches, 0, &Training::default(), &false.into(), |_| {}).unwrap().unwrap()
    };
    let together = measure(&[&[0, 1, 2, 3, 4, 5]]);
    for packs in [
        &[&[0usize][..], &[1], &[2], &[3], &[4], &[5]][..],
        &[&[5, 4, 3], &[2, 1, 0]],
        &[&[0, 1, 2, 3], &[4, 5]],
    ] {
        let apart = measure(packs);
        assert!((apart.loss - together.loss).abs() < 1e-5 * together.loss, "{apart:?} {together:?}");
        assert!(
            (apart.grad_norm - together.grad_norm).abs() < 1e-5 * together.grad_norm,
            "{apart:?} {together:?}"
        );
    }
}

#[test]
fn the_state_has_the_keys_of_hugging_face() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    recipe.training.max_steps = 6;
    recipe.training.eval_steps = 2;
    recipe.training.save_steps = 2;
    recipe.training.logging_steps = 1;
    run_rows(&model, &backend, &recipe, &rows(10), None).unwrap();
    for ours in ["checkpoint-4", ""] {
        let reference = if ours.is_empty() { "final" } else { ours };
        let ours = json(&folder.path().join(ours).join("trainer_state.json"));
        let theirs = json(&fixture("trainer").join(reference).join("trainer_state.json"));
        assert_eq!(keys(&ours), keys(&theirs));
        for key in [
            "global_step",
            "max_steps",
            "num_train_epochs",
            "epoch",
            "stateful_callbacks",
            "train_batch_size",
        ] {
            assert_eq!(ours[key], theirs[key], "{key}");
        }
        let kinds = |state: &Value, kind: &str| -> (Vec<Value>, BTreeSet<String>) {
            let entries =
                state["log_history"].as_array().unwrap().iter().filter(|entry| entry.get(kind).is_some());
            let entries: Vec<_> = entries.filter(|entry| entry["step"] != 0).collect();
            let places =
                entries.iter().map(|entry| serde_json::json!([entry["step"], entry["epoch"]])).collect();
            (places, entries.last().map_or_else(BTreeSet::new, |entry| keys(entry)))
        };
        for kind in ["loss", "eval_loss", "train_loss"] {
            let (our_places, our_keys) = kinds(&ours, kind);
            let (their_places, mut their_keys) = kinds(&theirs, kind);
            assert_eq!(our_places, their_places, "{kind}");
            // TRL looks at every logit for these two; the loss needs none of it.
            their_keys.retain(|key| !key.ends_with("entropy") && !key.ends_with("mean_token_accuracy"));
            let more: Vec<_> = our_keys.difference(&their_keys).collect();
            assert!(our_keys.is_superset(&their_keys), "{kind}: {our_keys:?} lack some of {their_keys:?}");
            assert!(more.is_empty() || more == ["train_tokens_per_second"], "{kind}: {more:?}");
        }
    }
}

#[test]
fn the_logged_loss_is_the_mean_of_its_interval() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let folder = tempfile::tempdir().unwrap();
    let (outcome, told) = run(&model, &backend, &recipe(folder.path())).unwrap();
    let state = json(&folder.path().join("trainer_state.json"));
    let logged: Vec<f64> =
        state["log_history"].as_array().unwrap().iter().filter_map(|e| e.get("loss")?.as_f64()).collect();
    let means: Vec<f64> = told.losses.chunks_exact(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
    assert_eq!(logged, means);
    assert_eq!(outcome.train_loss, told.losses.iter().sum::<f64>() / 9.0);
}

#[test]
fn many_passes_over_the_same_rows_are_warned_of() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    recipe.training.max_steps = 30;
    let warnings = |recipe: &Recipe, eval: &[Example]| {
        let train = rows(8);
        let job = eyas_train::Job::alone(&backend, &model, recipe, &train, eval);
        let mut warnings = Vec::new();
        let trainer = eyas_train::Trainer::new(job).unwrap();
        let mut note = |event: &eyas_train::Event<'_>| {
            if let eyas_train::Event::Warning(warning) = event {
                warnings.push((*warning).to_owned());
            }
        };
        trainer.run(&mut note, &true.into()).unwrap();
        warnings
    };
    let told = warnings(&recipe, &[]);
    assert!(told[0].contains("30 steps pass 15 times over the same 8 rows"), "{told:?}");
    assert!(warnings(&recipe, &rows(3)).is_empty());
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    recipe.training.save_steps = 1;
    recipe.training.learning_rate = 1e3;
    recipe.training.max_grad_norm = 0.0;
    recipe.training.max_steps = 400;
    recipe.training.save_total_limit = Some(1);
    recipe.lora.lora_alpha = 1e9;
    let error = run(&model, &backend, &recipe).unwrap_err();
    let Error::NotFinite { step, .. } = &error else { panic!("{error}") };
    let message = error.to_string();
    assert!(
        message.contains("Lower learning_rate") && message.contains(&format!("checkpoint-{}", step - 1)),
        "{message}"
    );
    let found = eyas_train::checkpoint::find_last(folder.path()).unwrap();
    assert_eq!(found.newest, Some(folder.path().join(format!("checkpoint-{}", step - 1))));
}

#[test]
fn a_budget_decides_how_many_blocks_are_computed_twice() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    let train = rows(19);
    let total = |recipe: &Recipe| {
        let job = eyas_train::Job::alone(&backend, &model, recipe, &train, &[]);
        eyas_train::Trainer::new(job).map(|trainer| {
            let plan = &trainer.summary().plans[0];
            (plan.total(), plan.kept_blocks())
        })
    };
    let (all, kept) = total(&recipe).unwrap();
    assert_eq!(kept, 2);
    // With one of two blocks recomputed, the shared activations take what the block's own took: the same.
    recipe.training.memory_budget = MemoryBudget::Bytes(all - 1);
    let (less, kept) = total(&recipe).unwrap();
    assert!(less < all && kept == 0, "{less} of {all}, {kept} kept");
    recipe.training.memory_budget = MemoryBudget::Bytes(1000);
    let error = total(&recipe).unwrap_err();
    assert!(matches!(error, Error::Memory { .. }));
    let message = error.to_string();
    assert!(
        message.contains("halve per_device_train_batch_size") && message.contains("optimiser"),
        "{message}"
    );
    // Where every block must keep, only the logits can shrink, and that is not enough.
    recipe.training.memory_budget = MemoryBudget::Bytes(less / 2);
    recipe.training.gradient_checkpointing = GradientCheckpointing::Never;
    let message = total(&recipe).unwrap_err().to_string();
    assert!(message.contains("gradient_checkpointing = \"auto\""), "{message}");
}

#[test]
fn rows_that_do_not_fit_the_model_are_named() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path());
    let row =
        |input_ids: Vec<u32>, counts: bool| Example { target_mask: vec![counts; input_ids.len()], input_ids };
    for (bad, part) in [
        (row(vec![1, 96], true), "row 2 of the encoded rows has the token 96; the model knows 96"),
        (row(vec![1; 65], true), "has 65 tokens; the model was loaded for 64: lower max_length"),
        (row(vec![1, 2], false), "has no token to be learned"),
    ] {
        let train = [row(vec![1, 2], true), bad];
        let message = run_rows(&model, &backend, &recipe, &train, None).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}
