//! Replicas that fail, panic or run short of memory: the others stop, the message says which it was, and what can go on
//! does. Fake cards stand for the devices.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use common::card::{Card, Fault};
use common::*;
use eyas_backend::Backend as _;
use eyas_train::checkpoint::find_last;
use eyas_train::recipe::{GradientCheckpointing, ResumeFrom};
use eyas_train::{Error, Event, Outcome, Recipe, Replica, Result, TrainingPlan};

/// More than any run here needs.
const LARGE: u64 = 1 << 40;

/// Micro-batches of two rows, two a step on each of two cards.
fn recipe(output: &Path) -> Recipe {
    common::recipe(output)
}

/// A run on cards of these sizes; `arm` is called with the cards before the step after the one it is given: with 0 as soon
/// as the models are loaded.
fn run_with(
    recipe: &Recipe,
    sizes: [u64; 2],
    mut arm: impl FnMut(u64, &[Card]),
) -> (Result<Outcome>, Told, Vec<Vec<TrainingPlan>>) {
    let cards = sizes.map(Card::new);
    let models = [0, 1].map(|number| random_model(&cards[number], 4));
    let before = [0, 1].map(|number| cards[number].used());
    let replica = |n: usize| Replica { label: format!("card:{n}"), backend: &cards[n], model: &models[n] };
    arm(0, &cards);
    let stop = AtomicBool::new(false);
    let mut plans = Vec::new();
    let (outcome, told) =
        run_shared(vec![replica(0), replica(1)], recipe, &rows(19), &stop, &mut |event| match event {
            Event::Started(summary) => plans.push(summary.plans.clone()),
            Event::Step(report) => arm(report.global_step, &cards),
            _ => {}
        });
    for (card, before) in cards.iter().zip(before) {
        card.release().unwrap();
        assert_eq!(card.used(), before, "something of the run is left on a device");
    }
    (outcome, told, plans)
}

/// A run in which nothing goes wrong.
fn undisturbed(recipe: &Recipe) -> (Vec<u32>, Told) {
    let (outcome, told, _) = run_with(recipe, [LARGE; 2], |_, _| {});
    (bits(&outcome.unwrap()), told)
}

/// Wherever a replica breaks, the run ends with its name, the earlier checkpoint is whole, and a resumed run ends in the
/// same bits.
#[test]
fn a_replica_that_breaks_ends_the_run() {
    let whole = tempfile::tempdir().unwrap();
    let (expected, told) = undisturbed(&recipe(whole.path()));
    for number in 0..2 {
        for (op, after) in [
            ("clear", 0),
            ("load_batch", 1),
            ("project", 7),
            ("cross_entropy", 0),
            ("project_backward", 3),
            ("offload", 0),
            ("host_values", 0),
            ("download", 0),
            // The gradients' sum to the leader, the adapter to the other.
            (["fetch", "upload"][number], 0),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut settings = recipe(folder.path());
            settings.training.save_steps = 2;
            let (outcome, seen, _) = run_with(&settings, [LARGE; 2], |step, cards| {
                if step == 3 {
                    cards[number].break_at(Fault { op, after, taken: None });
                }
            });
            let error = outcome.unwrap_err();
            assert!(
                matches!(&error, Error::OnReplica { replica, .. } if *replica == number),
                "{op}: {error:?}"
            );
            assert_eq!(error.to_string(), format!("card:{number}: card: {op} broke"));
            assert_eq!((seen.losses.len(), &seen.saved[..]), (3, &[2][..]), "{op}");
            let found = find_last(folder.path()).unwrap();
            assert_eq!((found.newest, found.damaged), (Some(folder.path().join("checkpoint-2")), Vec::new()));
            settings.training.resume_from_checkpoint = ResumeFrom::Last;
            let (resumed, seen) = undisturbed(&settings);
            assert_eq!((resumed, &seen.losses[..]), (expected.clone(), &told.losses[2..]), "{op}");
        }
    }
}

#[test]
fn a_replica_that_panics_ends_the_run() {
    for number in 0..2 {
        // The first copy of the leader is that of the adapter, when no other replica is at work yet.
        for (op, after) in
            [("load_batch", 0), ("project_backward", 9), ("offload", 1 - number), ("download", 0)]
        {
            let folder = tempfile::tempdir().unwrap();
            let (outcome, told, _) = run_with(&recipe(folder.path()), [LARGE; 2], |step, cards| {
                if step == 2 {
                    cards[number].panic_at(op, after);
                }
            });
            let message = outcome.unwrap_err().to_string();
            let expected = format!("card:{number}: a fault in the program stopped it: {op} is at fault");
            assert_eq!((message, told.losses.len()), (expected, 2));
        }
    }
}

#[test]
fn a_replica_that_breaks_in_an_evaluation_ends_the_run() {
    for number in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = recipe(folder.path());
        settings.training.per_device_eval_batch_size = 1;
        let fault = || Fault { op: "gather_targets", after: 1, taken: None };
        let (outcome, told, _) = run_with(&settings, [LARGE; 2], |step, cards| {
            if step == 0 {
                cards[number].break_at(fault());
            }
        });
        let message = outcome.unwrap_err().to_string();
        assert_eq!(message, format!("card:{number}: card: gather_targets broke"));
        assert!(told.losses.is_empty());
    }
}

/// Every plan of a card that a budget gives, the largest first, with the role that the card has.
fn plans(settings: &Recipe, number: usize) -> Vec<TrainingPlan> {
    let plan = |size: u64| {
        let mut sizes = [LARGE; 2];
        sizes[number] = size;
        let (outcome, _, plans) = run_with(settings, sizes, |_, _| {});
        outcome.ok().map(|_| plans[0][number].clone())
    };
    std::iter::successors(plan(LARGE), |larger| plan(larger.total() - 1)).collect()
}

/// Each card has a plan for its own memory; what changes no result does not change it.
#[test]
fn a_smaller_card_keeps_less_and_the_bits_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = recipe(folder.path());
    settings.training.overwrite_output_dir = true;
    settings.training.max_steps = 2;
    let (expected, _) = undisturbed(&settings);
    for number in 0..2 {
        let smaller = &plans(&settings, number)[1];
        let mut sizes = [LARGE; 2];
        sizes[number] = smaller.total();
        let (outcome, _, seen) = run_with(&settings, sizes, |_, _| {});
        assert_eq!(bits(&outcome.unwrap()), expected);
        assert!(seen[0][number].kept_blocks() < seen[0][1 - number].kept_blocks(), "{}", seen[0][number]);
    }
}

/// Memory that is taken from one card costs that card alone, as long as it changes no result.
#[test]
fn memory_taken_from_one_card_is_made_up_for_there() {
    let whole = tempfile::tempdir().unwrap();
    let mut settings = recipe(whole.path());
    settings.training.overwrite_output_dir = true;
    let (expected, told) = undisturbed(&settings);
    for number in 0..2 {
        let left = plans(&settings, number)[1].total();
        let last = ["fetch", "upload"][number];
        for (op, after) in
            [("load_batch", 1), ("project_backward", 5), ("offload", 0), ("download", 0), (last, 0)]
        {
            let (outcome, seen, _) = run_with(&settings, [LARGE; 2], |step, cards| {
                if step == 3 {
                    cards[number].break_at(Fault { op, after, taken: Some(LARGE - left) });
                }
            });
            assert_eq!(bits(&outcome.unwrap()), expected, "card:{number}, {op}");
            assert_eq!(seen.losses, told.losses, "card:{number}, {op}");
            let [warning] = &seen.warnings[..] else { panic!("{:?}", seen.warnings) };
            for part in [
                &format!("memory that had been free is taken (card:{number}: out of memory"),
                "goes on with step 4 in",
                "on all devices together, which changes no result",
            ] {
                assert!(warning.contains(part), "{warning}");
            }
        }
    }
}

/// Where no such plan fits on one card, all have micro-batches of half the rows from that step on.
#[test]
fn smaller_micro_batches_are_those_of_all_replicas() {
    let place = tempfile::tempdir().unwrap();
    let mut settings = recipe(place.path());
    settings.training.overwrite_output_dir = true;
    let least = plans(&settings, 1).last().unwrap().total();

    // What follows is what a run gives that has the smaller micro-batches from the fourth step on.
    let reference = tempfile::tempdir().unwrap();
    let mut halves = recipe(reference.path());
    halves.training.save_steps = 3;
    halves.training.save_total_limit = None;
    let (outcome, ..) = run_with(&halves, [LARGE; 2], |step, cards| {
        if step == 3 {
            cards[0].break_at(Fault { op: "embed", after: 0, taken: None });
        }
    });
    outcome.unwrap_err();
    halves.training.resume_from_checkpoint = ResumeFrom::Last;
    halves.training.per_device_train_batch_size = 1;
    halves.training.gradient_accumulation_steps = 4;
    let (expected, told) = undisturbed(&halves);

    for op in ["project", "norm_backward"] {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = recipe(folder.path());
        settings.training.save_steps = 4;
        let (outcome, seen, _) = run_with(&settings, [LARGE; 2], |step, cards| match step {
            3 => cards[1].break_at(Fault { op, after: 2, taken: Some(LARGE - least + 1) }),
            5 => cards[0].break_at(Fault { op: "rope", after: 0, taken: None }),
            _ => {}
        });
        // It breaks two steps later, and goes on with the same micro-batches.
        outcome.unwrap_err();
        assert_eq!(seen.losses[3..], told.losses[..2], "{op}");
        let line =
            "per_device_train_batch_size is 1 instead of 2 and gradient_accumulation_steps 4 instead of 2";
        assert!(seen.warnings[0].contains(line), "{}", seen.warnings[0]);
        settings.training.resume_from_checkpoint = ResumeFrom::Last;
        let (bits, seen) = undisturbed(&settings);
        assert_eq!((bits, &seen.losses[..]), (expected.clone(), &told.losses[1..]), "{op}");
    }
}

#[test]
fn where_one_row_does_not_fit_the_message_names_the_card() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = recipe(folder.path());
    settings.training.gradient_checkpointing = GradientCheckpointing::Always;
    let (outcome, ..) = run_with(&settings, [LARGE; 2], |step, cards| {
        if step == 2 {
            cards[1].break_at(Fault { op: "rope", after: 0, taken: Some(LARGE) });
        }
    });
    let error = outcome.unwrap_err();
    let message = error.to_string();
    assert!(matches!(&error, Error::Memory { device: Some(device), .. } if device == "card:1"), "{message}");
    assert!(
        message.contains(" on card:1 and may take") && message.contains("step 3 was not taken"),
        "{message}"
    );
    // A new run that does not fit is refused in the same way.
    let (outcome, ..) = run_with(&settings, [LARGE, 1 << 18], |_, _| {});
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains(" on card:1 and may take"), "{message}");
}

/// The loss is scaled alike on all.
#[test]
fn loss_scaling_is_that_of_one_device() {
    let run = |count: usize| {
        let card = Card::new(LARGE).half();
        let model = random_model(&card, 4);
        let folder = tempfile::tempdir().unwrap();
        let mut settings = recipe(folder.path());
        settings.training.gradient_accumulation_steps = 2 / count;
        settings.training.save_steps = 9;
        let replica = |n: usize| Replica { label: format!("card:{n}"), backend: &card, model: &model };
        let replicas = (0..count).map(replica).collect();
        let stop = AtomicBool::new(false);
        let (outcome, told) = run_shared(replicas, &settings, &rows(19), &stop, &mut |_| {});
        let saved = std::fs::read_to_string(folder.path().join("checkpoint-9/eyas_state.json")).unwrap();
        let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
        (bits(&outcome.unwrap()), told.losses, saved["progress"]["loss_scale"].clone())
    };
    let (one, two) = (run(1), run(2));
    assert!(one.0 == two.0);
    assert_near(&one.1, &two.1);
    assert_eq!(one.2, two.2);
    assert_eq!(two.2["good_steps"], 9);
}

/// Cards that compute in different types do not go together.
#[test]
fn cards_of_two_kinds_are_refused() {
    let (a, b) = (Card::new(LARGE), Card::new(LARGE).half());
    let (model_a, model_b) = (random_model(&a, 4), random_model(&b, 4));
    let folder = tempfile::tempdir().unwrap();
    let replicas = vec![
        Replica { label: "card:0".into(), backend: &a, model: &model_a },
        Replica { label: "card:1".into(), backend: &b, model: &model_b },
    ];
    let stop = AtomicBool::new(false);
    let (outcome, _) = run_shared(replicas, &recipe(folder.path()), &rows(19), &stop, &mut |_| {});
    let message = outcome.unwrap_err().to_string();
    assert_eq!(message, "card:1 computes in F16 and card:0 computes in F32: take cards of one kind");
}
