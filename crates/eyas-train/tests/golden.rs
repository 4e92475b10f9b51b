//! Twenty AdamW steps equal those of transformers, PEFT and torch, for every family, on plain and on quantised bases.

mod common;

use std::sync::atomic::AtomicBool;

use common::*;
use eyas_checkpoint::Checkpoint;
use eyas_model::adapter::matrices;
use eyas_model::{LoraAdapter, MemoryPlan, Retain};
use eyas_train::engine::Update;
use eyas_train::recipe::Training;
use eyas_train::{Engine, Replica, Schedule};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    train: Train,
}

#[derive(Deserialize)]
struct Train {
    learning_rate: f64,
    lr_scheduler_type: eyas_train::LrSchedulerType,
    warmup_ratio: f64,
    max_steps: u64,
    max_grad_norm: f64,
    micro_batches: Vec<[usize; 2]>,
    f32: Steps,
    nf4: Steps,
}

#[derive(Deserialize)]
struct Steps {
    learning_rate: Vec<f64>,
    loss: Vec<f64>,
    grad_norm: Vec<f64>,
    rounding_spread: Spread,
}

#[derive(Deserialize)]
struct Spread {
    loss: f64,
    grad_norm: f64,
    weight: f64,
}

fn check(name: &str, nf4: bool) {
    let text = std::fs::read_to_string(fixture(name).join("golden.json")).unwrap();
    let Golden { train } = serde_json::from_str(&text).unwrap();
    let (expected, trained) = match nf4 {
        false => (&train.f32, "trained.f32.safetensors"),
        true => (&train.nf4, "trained.nf4.safetensors"),
    };
    let backend = backend();
    let folder = quantised(name);
    let base = if nf4 { folder.path().to_path_buf() } else { fixture(name) };
    let model = load_from(&backend, &base, None);
    let mut start = LoraAdapter::load(&fixture(name).join("adapter"), model.decoder()).unwrap();
    for (name, range, _) in matrices(&start.layout) {
        if name.contains("lora_B") {
            start.params[range].fill(0.0);
        }
    }
    let golden = Checkpoint::open(fixture(name).join("golden.safetensors")).unwrap();
    let batches: Vec<_> = (0..6).map(|m| batch(&golden, &format!("train.{m}"))).collect();
    let plan = MemoryPlan {
        max_tokens: batches.iter().map(|batch| batch.tokens()).max().unwrap(),
        max_sequences: batches.iter().map(|batch| batch.sequences()).max().unwrap(),
        logit_rows: 4,
        blocks: (0..model.decoder().blocks())
            .map(|i| if i % 2 == 0 { Retain::Keep } else { Retain::Recompute })
            .collect(),
    };
    let mut engine = Engine::new(
        &[Replica::alone(&backend, &model)],
        start.layout.clone(),
        &start.params,
        Default::default(),
        &[plan],
    )
    .unwrap();
    let training = Training { max_grad_norm: train.max_grad_norm, ..Training::default() };
    let schedule = Schedule {
        lr_scheduler_type: train.lr_scheduler_type,
        learning_rate: train.learning_rate,
        warmup_steps: Schedule::warmup_steps(train.max_steps, train.warmup_ratio),
        max_steps: train.max_steps,
    };
    for (step, &[first, second]) in train.micro_batches.iter().enumerate() {
        let micro_batches = [batches[first].clone(), batches[second].clone()];
        let measured = engine
            .accumulate(&micro_batches, 0, &training, &AtomicBool::new(false), |_| {})
            .unwrap()
            .unwrap();
        let rate = schedule.rate(step as u64);
        assert!((rate - expected.learning_rate[step]).abs() < 1e-12, "{name}, step {step}: rate {rate}");
        let (loss, norm) = (f64::from(measured.loss), f64::from(measured.grad_norm));
        let off = (loss - expected.loss[step]).abs();
        assert!(
            off < 1e-4 + expected.rounding_spread.loss,
            "{name}, step {step}: loss {loss} is off by {off}"
        );
        let off = (norm - expected.grad_norm[step]).abs() / expected.grad_norm[step].max(1.0);
        assert!(
            off < 1e-4 + expected.rounding_spread.grad_norm,
            "{name}, step {step}: norm {norm} is off by {off}"
        );
        assert_eq!(engine.update(measured, &training, rate).unwrap(), Update::Taken);
    }
    let params = engine.params().unwrap();
    let trained = Checkpoint::open(fixture(name).join(trained)).unwrap();
    let allowed = 2e-4 + 10.0 * expected.rounding_spread.weight;
    for (tensor, range, _) in matrices(&start.layout) {
        let pairs = params[range].iter().zip(floats(&trained, &tensor));
        let off = pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        assert!(off < allowed, "{name}: {tensor} is off by {off}; {allowed} is allowed");
    }
}

macro_rules! families {
    ($($test:ident: $name:literal,)+) => {
        mod plain { $( #[test] fn $test() { super::check($name, false); } )+ }
        mod nf4 { $( #[test] fn $test() { super::check($name, true); } )+ }
    };
}

families! {
    llama2: "llama2",
    llama3: "llama3",
    smollm2: "smollm2",
    mistral: "mistral",
    qwen2: "qwen2",
    qwen3: "qwen3",
    falcon_7b: "falcon-7b",
    falcon_40b: "falcon-40b",
    falcon_11b: "falcon-11b",
    falcon_rw: "falcon-rw",
}
