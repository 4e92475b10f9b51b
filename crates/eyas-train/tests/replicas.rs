//! Several replicas are one run: the micro-batches of one device, dealt out. A replica on the CPU stands for a card.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use eyas_backend::{Backend as _, CpuBackend};
use eyas_model::Model;
use eyas_train::bench::{self, Lengths, Options};
use eyas_train::checkpoint::find_last;
use eyas_train::recipe::{Optim, ResumeFrom};
use eyas_train::{Ending, Error, Event, Outcome, Recipe, Replica, Result};

/// So many replicas of one model.
fn replicas<'a>(
    count: usize,
    backend: &'a CpuBackend,
    model: &'a Model<CpuBackend>,
) -> Vec<Replica<'a, CpuBackend>> {
    (0..count).map(|number| Replica { label: format!("cpu:{number}"), backend, model }).collect()
}

/// A run on so many replicas. Stops when `stop_after` steps were taken.
fn run_on(count: usize, recipe: &Recipe, stop_after: Option<u64>) -> (Result<Outcome>, Told) {
    let backend = backend();
    let model = random_model(&backend, 3);
    let stop = AtomicBool::new(false);
    run_shared(replicas(count, &backend, &model), recipe, &rows(19), &stop, &mut |event| match event {
        Event::Step(report) if Some(report.global_step) == stop_after => stop.store(true, Ordering::Relaxed),
        _ => {}
    })
}

/// A recipe with so many micro-batches a step of each replica, and evaluations on the way.
fn accumulating(output: &Path, accumulation: usize) -> Recipe {
    let mut recipe = recipe(output);
    recipe.training.gradient_accumulation_steps = accumulation;
    recipe.training.eval_steps = 3;
    recipe
}

/// What was logged, but for times.
fn log(folder: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join("trainer_state.json")).unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut entries = state["log_history"].as_array_mut().unwrap().clone();
    for entry in &mut entries {
        let metrics = entry.as_object_mut().unwrap();
        metrics.retain(|name, _| !name.contains("runtime") && !name.contains("per_second"));
    }
    entries
}

/// Where each replica has one micro-batch a step, the gradient's sum is that of one device that accumulates over as many: the
/// same bits, with dropout, grouped lengths, evaluations, clipping, and an epoch that ends in a step with fewer
/// micro-batches than replicas. Only the reported loss is added up in other pieces.
#[test]
fn replicas_with_a_micro_batch_each_give_the_bits_of_one_device() {
    for count in [2, 3, 4] {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (one, told_one) = run_on(1, &accumulating(folders[0].path(), count), None);
        let (several, told_several) = run_on(count, &accumulating(folders[1].path(), 1), None);
        assert_eq!(bits(&several.unwrap()), bits(&one.unwrap()), "{count} replicas");
        assert_near(&told_several.losses, &told_one.losses);
        let without_loss = |folder: &Path| {
            let mut entries = log(folder);
            entries.iter_mut().filter_map(|entry| entry.as_object_mut()).for_each(|entry| {
                entry.retain(|name, _| name != "loss" && name != "train_loss");
            });
            entries
        };
        assert_eq!(without_loss(folders[1].path()), without_loss(folders[0].path()), "{count} replicas");
    }
}

/// With more micro-batches each, only the order of the sum differs. Twice the same run gives the same bits.
#[test]
fn replicas_that_accumulate_differ_by_the_order_of_the_sum() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let (one, told_one) = run_on(1, &accumulating(folders[0].path(), 6), None);
    let one = one.unwrap();
    let (several, told_several) = run_on(3, &accumulating(folders[1].path(), 2), None);
    let several = several.unwrap();
    assert_near(&told_one.losses, &told_several.losses);
    let off = one.adapter.params.iter().zip(&several.adapter.params).map(|(a, b)| (a - b).abs());
    assert!(off.fold(0.0, f32::max) < 1e-4);
    // The first evaluation comes before any sum.
    assert_eq!(several.first_evaluation, one.first_evaluation);
    let (again, told_again) = run_on(3, &accumulating(folders[2].path(), 2), None);
    assert_eq!((bits(&again.unwrap()), told_again.losses), (bits(&several), told_several.losses));
}

#[test]
fn every_optimiser_is_that_of_one_device() {
    for optim in [Optim::AdamwTorch, Optim::Adamw8bit, Optim::PagedAdamw, Optim::PagedAdamw8bit] {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let run = |count: usize, folder: usize| {
            let mut recipe = accumulating(folders[folder].path(), 2 / count);
            recipe.training.optim = optim;
            recipe.training.save_steps = 9;
            bits(&run_on(count, &recipe, None).0.unwrap())
        };
        assert_eq!(run(2, 0), run(1, 1), "{optim:?}");
        let moments = |folder: usize| {
            std::fs::read(folders[folder].path().join("checkpoint-9/optimizer.safetensors")).unwrap()
        };
        assert!(moments(0) == moments(1), "{optim:?}");
    }
}

#[test]
fn a_run_that_was_stopped_ends_in_the_same_bits() {
    let whole = tempfile::tempdir().unwrap();
    let (expected, told) = run_on(2, &accumulating(whole.path(), 2), None);
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = accumulating(folder.path(), 2);
    let (stopped, _) = run_on(2, &recipe, Some(4));
    assert_eq!(stopped.unwrap().ending, Ending::Interrupted);
    recipe.training.resume_from_checkpoint = ResumeFrom::Last;
    let (resumed, seen) = run_on(2, &recipe, None);
    assert_eq!(bits(&resumed.unwrap()), bits(&expected.unwrap()));
    assert_eq!(seen.losses, told.losses[4..]);
    assert!(seen.warnings.is_empty(), "{:?}", seen.warnings);
    assert_eq!(log(folder.path()), log(whole.path()));
}

/// With as many rows a step a run may go on on another number of devices. It is told; dropout goes on as it was.
#[test]
fn a_run_goes_on_on_another_number_of_devices() {
    let whole = tempfile::tempdir().unwrap();
    let (expected, told) = run_on(1, &accumulating(whole.path(), 4), None);
    for (before, after) in [(1, 4), (4, 1), (2, 4), (4, 2)] {
        let folder = tempfile::tempdir().unwrap();
        run_on(before, &accumulating(folder.path(), 4 / before), Some(4)).0.unwrap();
        let mut recipe = accumulating(folder.path(), 4 / after);
        recipe.training.resume_from_checkpoint = ResumeFrom::Last;
        let (resumed, seen) = run_on(after, &recipe, None);
        let [warning] = &seen.warnings[..] else { panic!("{:?}", seen.warnings) };
        let line =
            format!("the run began on {before} devices and goes on on {after}, with as many rows a step");
        assert!(warning.starts_with(&line), "{warning}");
        let resumed = resumed.unwrap();
        if before.min(after) == 1 {
            // Four micro-batches in turn or on four replicas: the same sum.
            assert_eq!(bits(&resumed), bits(expected.as_ref().unwrap()));
        }
        assert_near(&told.losses[4..], &seen.losses);
    }
}

#[test]
fn another_number_of_rows_a_step_is_another_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = accumulating(folder.path(), 2);
    run_on(1, &recipe, Some(3)).0.unwrap();
    recipe.training.resume_from_checkpoint = ResumeFrom::Last;
    let error = run_on(2, &recipe, None).0.unwrap_err();
    assert!(matches!(error, Error::OtherRun { .. }), "{error}");
    assert!(error.to_string().contains("devices was 1 and is now 2"), "{error}");
}

/// Wherever in a step the stop comes, the last whole step is saved.
#[test]
fn a_stop_on_the_way_of_a_step_leaves_the_step_before() {
    let backend = backend();
    let model = random_model(&backend, 3);
    for at in 1..4 {
        let folder = tempfile::tempdir().unwrap();
        let recipe = accumulating(folder.path(), 3);
        let stop = AtomicBool::new(false);
        let mut step = 0;
        let (outcome, told) =
            run_shared(replicas(2, &backend, &model), &recipe, &rows(19), &stop, &mut |event| match event {
                Event::Step(report) => step = report.global_step,
                Event::MicroBatch { done, .. } if step == 2 && *done >= at => {
                    stop.store(true, Ordering::Relaxed)
                }
                _ => {}
            });
        let outcome = outcome.unwrap();
        assert_eq!(outcome.ending, Ending::Interrupted);
        // The other replica may have been through with its share already.
        assert!((2..=3).contains(&outcome.global_step), "{}", outcome.global_step);
        assert_eq!(told.saved, [outcome.global_step]);
        assert!(find_last(folder.path()).unwrap().damaged.is_empty());
    }
}

#[test]
fn every_micro_batch_is_counted_and_every_device_told() {
    let backend = backend();
    let model = random_model(&backend, 3);
    let folder = tempfile::tempdir().unwrap();
    let (mut last, mut steps, mut names) = ((0, 0), Vec::new(), Vec::new());
    let stop = AtomicBool::new(false);
    let recipe = accumulating(folder.path(), 2);
    let (outcome, _) =
        run_shared(replicas(2, &backend, &model), &recipe, &rows(19), &stop, &mut |event| match event {
            Event::Started(summary) => {
                names.clone_from(&summary.replicas);
                assert_eq!(summary.device, format!("2 x {}", backend.name()));
                assert_eq!((summary.plans.len(), summary.steps_per_epoch), (2, 3));
                // The gradient of each and the adapter go by host memory; only the first has moments.
                let vector = 4 * summary.trainable_parameters;
                assert_eq!([0, 1].map(|n| summary.plans[n].exchange), [2 * vector, vector]);
                assert_eq!(summary.plans[0].total() - summary.plans[1].total(), 2 * vector + 4);
            }
            Event::MicroBatch { done, of } => {
                assert!(*done > last.0 || last.0 == last.1, "{done} after {last:?}");
                last = (*done, *of);
            }
            Event::Step(report) => {
                assert_eq!(last.0, last.1);
                steps.push((last.1, report.memory.len()));
            }
            _ => {}
        });
    outcome.unwrap();
    assert_eq!(names, ["cpu:0", "cpu:1"]);
    // 19 rows: four micro-batches of two, four, and two.
    let of = backend.used_memory().map_or(0, |_| 2);
    assert_eq!(steps, [4, 4, 2].repeat(3).into_iter().map(|batches| (batches, of)).collect::<Vec<_>>());
}

#[test]
fn a_benchmark_measures_the_steps_of_all_replicas() {
    let backend = backend();
    let model = random_model(&backend, 2);
    let measure = |count: usize, accumulation: usize| {
        let mut recipe = recipe(Path::new("x"));
        recipe.training.gradient_accumulation_steps = accumulation;
        let options = Options { lengths: Lengths::Fixed(8), steps: 2, seed: 3 };
        let never = AtomicBool::new(false);
        bench::train(&replicas(count, &backend, &model), &recipe, options, &never, |_| {}).unwrap()
    };
    let (one, two) = (measure(1, 2), measure(2, 1));
    assert_eq!((two.plans.len(), &two.tokens[..]), (2, &[32, 32][..]));
    assert_eq!(one.tokens, two.tokens);
    let losses = |losses: &[f32]| losses.iter().map(|&loss| loss.into()).collect::<Vec<f64>>();
    assert_near(&losses(&one.losses), &losses(&two.losses));
}

#[test]
fn replicas_of_different_models_are_refused() {
    let backend = backend();
    let model = random_model(&backend, 3);
    let folder = tempfile::tempdir().unwrap();
    let recipe = accumulating(folder.path(), 1);
    let refused = |other: &Model<CpuBackend>| {
        let mut replicas = replicas(2, &backend, &model);
        replicas[1].model = other;
        let stop = AtomicBool::new(false);
        run_shared(replicas, &recipe, &rows(19), &stop, &mut |_| {}).0.unwrap_err().to_string()
    };
    assert_eq!(refused(&random_model(&backend, 4)), "cpu:1 holds another model than cpu:0");
    let options = eyas_model::LoadOptions { quantize: None, positions: 64, embedding_on_host: false };
    let other = Model::random(&backend, model.decoder(), options, 6, &mut |_, _| {}).unwrap();
    assert_eq!(refused(&other), "cpu:1 holds other weights than cpu:0");
    let stop = AtomicBool::new(false);
    let none = run_shared::<CpuBackend>(Vec::new(), &recipe, &rows(19), &stop, &mut |_| {}).0.unwrap_err();
    assert_eq!(none.to_string(), "there is no device to train on");
}
