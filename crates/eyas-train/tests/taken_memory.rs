//! A device whose memory somebody else takes: the run goes on in what is left, in the same bits wherever it can.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use common::card::{Card, Fault};
use common::*;
use eyas_backend::Backend as _;
use eyas_train::checkpoint::find_last;
use eyas_train::plan::display_bytes;
use eyas_train::recipe::{MemoryBudget, ResumeFrom};
use eyas_train::{Error, Event, Outcome, Recipe, Result, TrainingPlan};
use serde_json::Value;

/// More than any run here needs.
const LARGE: u64 = 1 << 40;

/// Micro-batches of four rows, two a step.
fn recipe(output: &Path) -> Recipe {
    let mut recipe = common::recipe(output);
    recipe.training.per_device_train_batch_size = 4;
    recipe
}

/// The same rows a step, shared out otherwise.
fn shared(recipe: &Recipe, batch: usize) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.training.per_device_train_batch_size = batch;
    recipe.training.gradient_accumulation_steps = 8 / batch;
    recipe
}

/// Every plan with micro-batches of so many rows, the largest first.
fn plans(batch: usize) -> Vec<TrainingPlan> {
    let card = Card::new(LARGE);
    let folder = tempfile::tempdir().unwrap();
    common::plans(&random_model(&card, 4), &card, &shared(&recipe(folder.path()), batch))
}

/// Bytes of the least plan with micro-batches of so many rows.
fn least(batch: usize) -> u64 {
    plans(batch).last().unwrap().total()
}

/// A fault that leaves so many bytes to the run.
fn leaves(bytes: u64, op: &'static str, after: usize) -> Fault {
    Fault { op, after, taken: Some(LARGE - bytes) }
}

/// A run on a card of its own, on which something goes wrong in the step after `step`: with 0 as soon as the model
/// is loaded.
fn run_with(recipe: &Recipe, faults: Vec<(u64, Fault)>) -> (Result<Outcome>, Told) {
    let card = Card::new(LARGE);
    let model = random_model(&card, 4);
    let before = card.used();
    let mut faults = faults;
    let mut arm = |step: u64| {
        for (_, fault) in faults.extract_if(.., |(at, _)| *at == step) {
            card.break_at(fault);
        }
    };
    arm(0);
    let (stop, train) = (AtomicBool::new(false), rows(19));
    let told = run_watched(&model, &card, recipe, &train, &stop, &mut |event| {
        if let Event::Step(report) = event {
            arm(report.global_step);
        }
    });
    card.release().unwrap();
    assert_eq!(card.used(), before, "something of the run is left on the device");
    told
}

fn state(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("trainer_state.json")).unwrap()).unwrap()
}

/// The entries of the log that tell of a change.
fn changes(folder: &Path) -> Vec<Value> {
    let state = state(folder);
    let log = state["log_history"].as_array().unwrap();
    log.iter().filter(|entry| entry.get("planned_memory_bytes").is_some()).cloned().collect()
}

/// The logged losses, of training and evaluation.
fn logged(folder: &Path) -> Vec<Value> {
    let state = state(folder);
    let log = state["log_history"].as_array().unwrap();
    let losses = log.iter().filter(|entry| entry.get("loss").or(entry.get("eval_loss")).is_some());
    losses
        .map(|entry| serde_json::json!([entry["step"], entry["epoch"], entry["loss"], entry["eval_loss"]]))
        .collect()
}

/// Wherever in a step memory runs out, with a plan that keeps less the step is repeated in the same bits.
#[test]
fn a_step_is_repeated_in_the_same_bits() {
    let whole = tempfile::tempdir().unwrap();
    let (expected, told) = run_with(&recipe(whole.path()), Vec::new());
    let expected = bits(&expected.unwrap());
    // Some inputs are in host memory from the start, and more of them later.
    let plans: Vec<u64> =
        plans(4).iter().filter(|plan| plan.memory.on_host() > 0).map(TrainingPlan::total).collect();
    for (op, after) in [
        ("clear", 0),
        ("load_batch", 1),
        ("project", 5),
        ("offload", 0),
        ("cross_entropy", 1),
        ("project_backward", 12),
        ("grad_norm", 0),
        ("download", 1),
        ("adamw", 0),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = recipe(folder.path());
        settings.training.memory_budget = MemoryBudget::Bytes(plans[0]);
        let (outcome, seen) = run_with(&settings, vec![(3, leaves(plans[1], op, after))]);
        assert_eq!(bits(&outcome.unwrap()), expected, "{op}");
        assert_eq!(seen.losses, told.losses, "{op}");
        assert_eq!(logged(folder.path()), logged(whole.path()), "{op}");
        let [warning] = &seen.warnings[..] else { panic!("{op}: {:?}", seen.warnings) };
        for part in [
            "memory that had been free is taken (out of memory on card: 4096 bytes asked for",
            "goes on with step 4 in",
            "which changes no result",
        ] {
            assert!(warning.contains(part), "{op}: {warning}");
        }
        let [change] = &changes(folder.path())[..] else { panic!("{op}") };
        assert_eq!((&change["step"], &change["per_device_train_batch_size"]), (&3.into(), &4.0.into()));
        // All that the run had held was free again.
        assert_eq!(change["planned_memory_bytes"], plans[1] as f64, "{op}");
    }
}

/// Where no plan fits, micro-batches become smaller: what follows is what a run gives that has them from that step on.
#[test]
fn smaller_micro_batches_take_over_from_the_step_on() {
    for (batch, left) in [(2, least(4) - 1), (1, least(2) - 1)] {
        let reference = tempfile::tempdir().unwrap();
        let mut settings = recipe(reference.path());
        let card = Card::new(LARGE);
        let model = random_model(&card, 4);
        run_rows(&model, &card, &settings, &rows(19), Some(3)).unwrap();
        settings.training.resume_from_checkpoint = ResumeFrom::Last;
        let (expected, told) = run(&model, &card, &shared(&settings, batch)).unwrap();

        let folder = tempfile::tempdir().unwrap();
        let (outcome, seen) =
            run_with(&recipe(folder.path()), vec![(3, leaves(left, "project_backward", 7))]);
        assert_eq!(bits(&outcome.unwrap()), bits(&expected));
        assert_eq!(seen.losses[3..], told.losses);
        let line = format!(
            "per_device_train_batch_size is {batch} instead of 4 and gradient_accumulation_steps {} instead of 2: a \
             step has the same rows, sums are taken in another order and dropout draws other masks",
            8 / batch
        );
        assert_eq!(seen.warnings.len(), 1);
        assert!(seen.warnings[0].contains(&line), "{}", seen.warnings[0]);
        let [change] = &changes(folder.path())[..] else { panic!() };
        let entry =
            [&change["step"], &change["per_device_train_batch_size"], &change["gradient_accumulation_steps"]];
        assert_eq!(entry, [&Value::from(3), &(batch as f64).into(), &(8.0 / batch as f64).into()]);
        assert_eq!(state(folder.path())["train_batch_size"], batch);
    }
}

/// Without dropout the change shows in the order of sums alone.
#[test]
fn smaller_micro_batches_give_the_same_step_but_for_rounding() {
    let losses = |faults| {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = recipe(folder.path());
        settings.lora.lora_dropout = 0.0;
        let (outcome, told) = run_with(&settings, faults);
        outcome.unwrap();
        told
    };
    let whole = losses(Vec::new());
    let left = least(4) - 1;
    let changed = losses(vec![(2, leaves(left, "embed", 1))]);
    assert!(changed.warnings[0].contains("only sums are taken in another order"), "{:?}", changed.warnings);
    for (a, b) in whole.losses.iter().zip(&changed.losses) {
        assert!((a - b).abs() < 1e-4 * a, "{a} and {b}");
    }
}

#[test]
fn a_start_that_finds_less_than_was_free_begins_with_smaller_micro_batches() {
    let reference = tempfile::tempdir().unwrap();
    let (expected, told) = run_with(&shared(&recipe(reference.path()), 2), Vec::new());
    let expected = bits(&expected.unwrap());
    let left = least(4) - 1;
    for (op, after) in [("reserve", 0), ("zeros", 0), ("zeros", 20), ("new_moments", 0), ("upload", 0)] {
        for budget in [MemoryBudget::Auto, MemoryBudget::Bytes(LARGE)] {
            let folder = tempfile::tempdir().unwrap();
            let mut settings = recipe(folder.path());
            settings.training.memory_budget = budget;
            let (outcome, seen) = run_with(&settings, vec![(0, leaves(left, op, after))]);
            assert_eq!(bits(&outcome.unwrap()), expected, "{op}");
            assert_eq!(seen.losses, told.losses, "{op}");
            assert!(seen.warnings[0].contains("goes on with step 1 in"), "{op}: {:?}", seen.warnings);
            assert_eq!(changes(folder.path())[0]["step"], 0, "{op}");
        }
    }
}

#[test]
fn an_evaluation_is_repeated() {
    let with = |faults| {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = recipe(folder.path());
        settings.training.eval_steps = 3;
        let (outcome, told) = run_with(&settings, faults);
        (bits(&outcome.unwrap()), told, logged(folder.path()), changes(folder.path()))
    };
    let (expected, _, log, _) = with(Vec::new());
    let left = plans(4)[2].total();
    // Before the first step, between two, and after the last.
    for (step, op) in [(0, "load_batch"), (3, "embed"), (6, "cross_entropy"), (9, "download")] {
        let (bits, told, seen, changes) = with(vec![(step, leaves(left, op, 0))]);
        assert_eq!((bits, seen), (expected.clone(), log.clone()), "{op}");
        assert_eq!((told.warnings.len(), &changes[0]["step"]), (1, &step.into()), "{op}");
    }
}

/// The scale of the loss is not begun anew.
#[test]
fn loss_scaling_goes_on() {
    let card = Card::new(LARGE).half();
    let model = random_model(&card, 4);
    let folder = tempfile::tempdir().unwrap();
    let mut settings = recipe(folder.path());
    settings.training.save_steps = 9;
    let left = common::plans(&model, &card, &settings)[1].total();
    let (stop, train) = (AtomicBool::new(false), rows(19));
    let (outcome, told) = run_watched(&model, &card, &settings, &train, &stop, &mut |event| match event {
        Event::Step(report) if report.global_step == 4 => card.break_at(leaves(left, "project_backward", 3)),
        _ => {}
    });
    outcome.unwrap();
    assert_eq!((told.warnings.len(), told.losses.len()), (1, 9));
    let saved = std::fs::read_to_string(folder.path().join("checkpoint-9/eyas_state.json")).unwrap();
    let saved: Value = serde_json::from_str(&saved).unwrap();
    assert_eq!(saved["progress"]["loss_scale"]["good_steps"], 9);
}

/// Memory goes in three bites. Each time the run goes on in what is left.
#[test]
fn memory_may_be_taken_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let [four, two] = [4, 2].map(least);
    let faults = vec![
        (1, leaves(four, "project", 3)),
        (3, leaves(four - 1, "norm_backward", 2)),
        (5, leaves(two - 1, "attention", 1)),
    ];
    let (outcome, told) = run_with(&recipe(folder.path()), faults);
    assert_eq!((outcome.unwrap().global_step, told.losses.len()), (9, 9));
    let batches: Vec<Value> =
        changes(folder.path()).iter().map(|entry| entry["per_device_train_batch_size"].clone()).collect();
    assert_eq!(batches, [4.0, 2.0, 1.0]);
}

#[test]
fn where_not_even_one_row_fits_the_message_says_what_would_and_the_checkpoint_is_whole() {
    let whole = tempfile::tempdir().unwrap();
    let (expected, _) = run_with(&recipe(whole.path()), Vec::new());
    let least = least(1);
    let folder = tempfile::tempdir().unwrap();
    let mut settings = recipe(folder.path());
    settings.training.save_steps = 1;
    let (outcome, told) = run_with(&settings, vec![(3, leaves(least - 1, "rope", 3))]);
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::Memory { needed, budget, .. } if (needed, budget) == (least, least - 1)));
    let message = error.to_string();
    for part in [
        &format!("needs at least {}", display_bytes(least)),
        "step 4 was not taken, and ",
        "checkpoint-3 is whole: go on from it with resume_from_checkpoint = true once so much is free",
        "lower max_length",
        "raise memory_budget",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(told.saved, [1, 2, 3]);
    let found = find_last(folder.path()).unwrap();
    assert_eq!((found.newest, found.damaged), (Some(folder.path().join("checkpoint-3")), Vec::new()));
    // With the memory back the run ends as if nothing had been.
    settings.training.resume_from_checkpoint = ResumeFrom::Last;
    assert_eq!(bits(&run_with(&settings, Vec::new()).0.unwrap()), bits(&expected.unwrap()));
}

/// The smaller micro-batches are part of what a checkpoint saves: dropout and the order of sums go by them.
#[test]
fn a_run_that_breaks_after_it_goes_on_with_the_same_micro_batches() {
    let left = least(4) - 1;
    let taken = || (2, leaves(left, "project", 9));
    let whole = tempfile::tempdir().unwrap();
    let (expected, told) = run_with(&recipe(whole.path()), vec![taken()]);

    let folder = tempfile::tempdir().unwrap();
    let mut settings = recipe(folder.path());
    settings.training.save_steps = 2;
    let broken = Fault { op: "attention_backward", after: 5, taken: None };
    let (outcome, _) = run_with(&settings, vec![taken(), (5, broken)]);
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains("attention_backward broke"), "{message}");
    assert_eq!(find_last(folder.path()).unwrap().newest, Some(folder.path().join("checkpoint-4")));
    settings.training.resume_from_checkpoint = ResumeFrom::Last;
    let (outcome, seen) = run_with(&settings, Vec::new());
    assert_eq!(bits(&outcome.unwrap()), bits(&expected.unwrap()));
    assert_eq!(seen.losses, told.losses[4..]);
    assert!(seen.warnings.is_empty(), "{:?}", seen.warnings);
    assert_eq!(state(folder.path())["train_batch_size"], 2);
    assert_eq!(changes(folder.path()).len(), 1);
}

#[test]
fn a_run_resumed_on_a_smaller_card_goes_on_with_smaller_micro_batches() {
    let stopped = || {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = recipe(folder.path());
        let card = Card::new(LARGE);
        let model = random_model(&card, 4);
        run_rows(&model, &card, &settings, &rows(19), Some(4)).unwrap();
        settings.training.resume_from_checkpoint = ResumeFrom::Last;
        (folder, settings)
    };
    let (_reference, settings) = stopped();
    let (expected, _) = run_with(&shared(&settings, 2), Vec::new());
    let expected = bits(&expected.unwrap());
    let left = least(4) - 1;

    let (folder, settings) = stopped();
    let card = Card::new(left);
    let model = random_model(&card, 4);
    let (outcome, told) = run(&model, &card, &settings).unwrap();
    assert_eq!(bits(&outcome), expected);
    assert!(told.warnings[0].contains("are needed and"), "{:?}", told.warnings);
    assert!(
        told.warnings[0].contains("per_device_train_batch_size is 2 instead of 4"),
        "{:?}",
        told.warnings
    );
    assert_eq!(changes(folder.path())[0]["step"], 4);

    // Counted as free and then taken.
    let (_folder, settings) = stopped();
    let (outcome, _) = run_with(&settings, vec![(0, leaves(left, "write_moments", 0))]);
    assert_eq!(bits(&outcome.unwrap()), expected);
}

/// A run that is new is the user's to change, whatever is free.
#[test]
fn a_new_run_that_cannot_fit_says_what_to_change() {
    let least = least(4);
    let card = Card::new(least - 1);
    let model = random_model(&card, 4);
    let folder = tempfile::tempdir().unwrap();
    let error = run(&model, &card, &recipe(folder.path())).unwrap_err();
    assert!(matches!(error, Error::Memory { needed, .. } if needed == least));
    let message = error.to_string();
    let advice = "halve per_device_train_batch_size and double gradient_accumulation_steps";
    assert!(message.contains(advice), "{message}");
}
