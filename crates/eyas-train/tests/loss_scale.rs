//! Loss scaling: it changes no bit where nothing overflows, and leaves a step out where something does.

mod common;

use common::*;
use eyas_backend::{CpuBackend, FlatBatch};
use eyas_model::{MemoryPlan, Model, Retain};
use eyas_train::Engine;
use eyas_train::checkpoint::Progress;
use eyas_train::engine::{Measured, Update};
use eyas_train::loss_scale::LossScale;
use eyas_train::recipe::Training;

fn engine<'a>(backend: &'a CpuBackend, model: &'a Model<CpuBackend>) -> Engine<'a, CpuBackend> {
    engine_of(1, backend, model)
}

/// The same on so many replicas.
fn engine_of<'a>(
    replicas: usize,
    backend: &'a CpuBackend,
    model: &'a Model<CpuBackend>,
) -> Engine<'a, CpuBackend> {
    let plan = MemoryPlan { max_tokens: 60, max_sequences: 4, logit_rows: 16, blocks: vec![Retain::Keep; 2] };
    common::engine(replicas, backend, model, layout(model), plan)
}

fn micro_batch() -> FlatBatch {
    batch_of(&rows(4))
}

fn scaled(scale: f32) -> Option<LossScale> {
    Some(LossScale { scale, ..LossScale::default() })
}

#[test]
fn a_scaled_loss_gives_the_same_bits() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let batches = [micro_batch()];
    let train = |scale: Option<LossScale>| {
        let mut engine = engine(&backend, &model);
        assert_eq!(engine.loss_scale, None, "the CPU computes in full precision");
        engine.loss_scale = scale;
        let training = Training { max_grad_norm: 0.3, weight_decay: 0.01, ..Training::default() };
        let measured: Vec<_> = (0..3)
            .map(|step| {
                let measured =
                    engine.accumulate(&batches, step, &training, &false.into(), |_| {}).unwrap().unwrap();
                assert_eq!(engine.update(measured, &training, 1e-3).unwrap(), Update::Taken);
                measured
            })
            .collect();
        (measured, engine.params().unwrap())
    };
    assert_eq!(train(None), train(scaled(65536.0)));
}

#[test]
fn an_overflow_leaves_the_step_out_and_halves_the_scale() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let mut engine = engine(&backend, &model);
    // The gradient of so large a loss is beyond f32, as that of 65536 times the loss may be beyond half precision.
    engine.loss_scale = scaled(2f32.powi(127));
    let training = Training::default();
    let before = engine.optimizer_state().unwrap();
    let mut skipped = 0;
    loop {
        let measured =
            engine.accumulate(&[micro_batch()], 0, &training, &false.into(), |_| {}).unwrap().unwrap();
        assert!(measured.loss.is_finite());
        let update = engine.update(measured, &training, 1e-3).unwrap();
        if measured.grad_norm.is_finite() {
            assert_eq!(update, Update::Taken);
            break;
        }
        skipped += 1;
        assert_eq!(update, Update::LeftOut { loss_scale: 2f32.powi(127 - skipped as i32) });
        assert_eq!(engine.optimizer_state().unwrap(), before);
    }
    let scale = engine.loss_scale.unwrap();
    assert!(skipped > 0, "nothing overflowed");
    assert_eq!((scale.skipped, scale.scale, scale.good_steps), (skipped, 2f32.powi(127 - skipped as i32), 1));
    assert_eq!(engine.optimizer_state().unwrap().step, 1);
}

/// What overflows on one replica leaves the step out on all.
#[test]
fn an_overflow_on_one_replica_leaves_the_step_out() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let mut engine = engine_of(2, &backend, &model);
    // Only one of the replicas has a target in its micro-batch, so that no gradient comes from the other.
    let mut idle = FlatBatch::new();
    idle.push_causal(&[1, 2, 3], &[false; 3]).unwrap();
    for batches in [[micro_batch(), idle.clone()], [idle.clone(), micro_batch()]] {
        let mut measure = |scale: f32| {
            engine.loss_scale = scaled(scale);
            let before = engine.params().unwrap();
            let measured =
                engine.accumulate(&batches, 0, &Training::default(), &false.into(), |_| {}).unwrap().unwrap();
            let update = engine.update(measured, &Training::default(), 1e-3).unwrap();
            assert_eq!(engine.params().unwrap() == before, update != Update::Taken);
            update
        };
        assert_eq!(measure(2f32.powi(127)), Update::LeftOut { loss_scale: 2f32.powi(126) });
        assert_eq!(measure(65536.0), Update::Taken);
    }
}

#[test]
fn a_gradient_that_is_not_finite_for_another_reason_is_told() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let broken = Measured { loss: 1.0, grad_norm: f32::NAN };
    for scale in [None, scaled(1.0)] {
        let mut engine = engine(&backend, &model);
        engine.loss_scale = scale;
        assert_eq!(engine.update(broken, &Training::default(), 1e-3).unwrap(), Update::Impossible);
        assert_eq!((engine.loss_scale, engine.optimizer_state().unwrap().step), (scale, 0));
    }
}

#[test]
fn updates_are_the_steps_that_were_not_left_out() {
    let mut progress = Progress { global_step: 7, ..Progress::default() };
    assert_eq!(progress.updates(), 7);
    assert!(!serde_json::to_string(&progress).unwrap().contains("loss_scale"));
    progress.loss_scale = Some(LossScale { scale: 512.0, good_steps: 3, skipped: 2 });
    assert_eq!(progress.updates(), 5);
    let text = serde_json::to_string(&progress).unwrap();
    assert_eq!(serde_json::from_str::<Progress>(&text).unwrap(), progress);
}
