//! Blocks whose input goes to host memory give the same bits.

mod common;

use std::sync::atomic::AtomicBool;

use common::card::Card;
use common::*;
use eyas_model::{MemoryPlan, Retain};
use eyas_train::Event;
use eyas_train::engine::Update;
use eyas_train::recipe::{MemoryBudget, Training};

/// No backward follows an evaluation, so nothing has to be kept for one.
#[test]
fn an_evaluation_moves_nothing_to_host_memory() {
    let card = Card::new(1 << 40);
    let model = random_model(&card, 4);
    let folder = tempfile::tempdir().unwrap();
    let mut settings = recipe(folder.path());
    settings.training.eval_steps = 1;
    let plan = plans(&model, &card, &settings).into_iter().find(|plan| plan.memory.on_host() == 3).unwrap();
    settings.training.memory_budget = MemoryBudget::Bytes(plan.total());
    let moved = || ["offload", "fetch"].map(|op| card.calls(op));
    let (mut before, mut evaluations) = (moved(), 0);
    let (stop, train) = (AtomicBool::new(false), rows(19));
    let (outcome, _) = run_watched(&model, &card, &settings, &train, &stop, &mut |event| match event {
        Event::Step(_) => before = moved(),
        Event::Evaluated(_) => {
            assert_eq!(moved(), before);
            evaluations += 1;
        }
        _ => {}
    });
    outcome.unwrap();
    assert_eq!(evaluations, 10);
    assert!(before.iter().all(|calls| *calls > 0), "{before:?}");
}

#[test]
fn inputs_in_host_memory_change_no_bit() {
    use Retain::{Keep, Recompute, RecomputeFromHost as Host};
    let backend = backend();
    let model = random_model(&backend, 5);
    // Of different lengths, so that what is left of a longer batch would show.
    let batches = [6, 3, 5].map(|count| batch_of(&rows(count)));
    let train = |blocks: [Retain; 5]| {
        let plan = MemoryPlan { max_tokens: 80, max_sequences: 6, logit_rows: 16, blocks: blocks.to_vec() };
        let mut engine = engine(1, &backend, &model, layout(&model), plan);
        let training = Training::default();
        let mut measured = Vec::new();
        for step in 0..2 {
            let first = step * batches.len() as u32;
            let told = engine.accumulate(&batches, first, &training, &false.into(), |_| {}).unwrap().unwrap();
            assert_eq!(engine.update(told, &training, 1e-2).unwrap(), Update::Taken);
            // A forward that no backward follows.
            let loss = engine.evaluate(&batches[..2], &false.into(), |_| {}).unwrap().unwrap();
            measured.push((told.loss.to_bits(), told.grad_norm.to_bits(), loss.to_bits()));
        }
        (measured, engine.params().unwrap())
    };
    let kept = train([Keep; 5]);
    for blocks in [
        [Host; 5],
        [Host, Host, Host, Recompute, Keep],
        [Host, Host, Host, Keep, Keep],
        [Keep, Host, Recompute, Host, Host],
    ] {
        assert!(train(blocks) == kept, "{blocks:?}");
    }
}
