//! Generation on a card: recorded steps against steps that are queued one by one. Without a card the tests say so and pass.

use std::collections::HashMap;

use eyas_backend::{Backend, Dtype};
use eyas_cuda::{CudaBackend, CudaOptions};
use eyas_generate::{Engine, EngineOptions, Event, Request, SamplingParams};
use eyas_model::{LoadOptions, LoraAdapter, LoraConfig, LoraLayout, Model, shapes};
use eyas_quant::QuantConfig;

/// Tokens and log-probabilities of every sequence, by its number.
type Answers = HashMap<usize, Vec<(u32, u32)>>;

fn backend() -> Option<CudaBackend> {
    match CudaBackend::new(CudaOptions { compute_dtype: Some(Dtype::Bf16), ..CudaOptions::default() }) {
        Ok(backend) => Some(backend),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn model(backend: &CudaBackend) -> Model<CudaBackend> {
    let decoder = shapes::published("smollm2-135m").unwrap();
    let options =
        LoadOptions { quantize: Some(QuantConfig::default()), positions: 600, embedding_on_host: false };
    Model::random(backend, &decoder, options, 3, &mut |_, _| {}).unwrap()
}

/// An adapter that changes every layer.
fn adapter(model: &Model<CudaBackend>, r: usize) -> LoraAdapter {
    let layout = LoraLayout::new(model.decoder(), LoraConfig { r, ..LoraConfig::default() }).unwrap();
    let mut params = layout.initialize(r as u64);
    for (i, value) in params.iter_mut().enumerate() {
        *value += ((i * 7919 % 1013) as f32 / 1013.0 - 0.5) * 0.02;
    }
    LoraAdapter { layout, params, base_model: "random".into() }
}

/// Sequences of different lengths, which end one after another; with `adapters` every second and third uses one.
fn answers(backend: &CudaBackend, model: &Model<CudaBackend>, sequences: usize, adapters: bool) -> Answers {
    let mut engine = Engine::new(backend, model, EngineOptions::on::<CudaBackend>(sequences, 600)).unwrap();
    let ids: Vec<_> = [4, 20].map(|r| engine.add_adapter(&adapter(model, r)).unwrap()).into();
    let mut numbers = HashMap::new();
    for i in 0..sequences {
        let prompt = (0..10 + 37 * i as u32 % 300).map(|t| (t * 31 + i as u32 * 997) % 49152).collect();
        let params = SamplingParams {
            max_new_tokens: 8 + 3 * i,
            ignore_eos: true,
            logprobs: Some(0),
            ..SamplingParams::default()
        };
        let adapter = if adapters { [None, Some(ids[0]), Some(ids[1])][i % 3] } else { None };
        numbers.insert(engine.submit(&Request::new(prompt, params, adapter)).unwrap(), i);
    }
    let mut answers = Answers::new();
    let mut events = Vec::new();
    while engine.active() > 0 {
        events.clear();
        engine.step(&mut events).unwrap();
        for event in &events {
            match event {
                Event::Token { sequence, token, logprobs, .. } => {
                    let logprob = logprobs.as_ref().unwrap().logprob.to_bits();
                    answers.entry(numbers[sequence]).or_default().push((*token, logprob));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    answers
}

/// While operations are measured, nothing is replayed.
#[test]
fn recorded_steps_give_the_same_bits() {
    let Some(backend) = backend() else { return };
    let model = model(&backend);
    for (sequences, adapters) in [(1, false), (5, false), (5, true), (20, true)] {
        let recorded = answers(&backend, &model, sequences, adapters);
        backend.measure(true).unwrap();
        let one_by_one = answers(&backend, &model, sequences, adapters);
        backend.measure(false).unwrap();
        assert_eq!(recorded, one_by_one, "{sequences} sequences, adapters: {adapters}");
        assert_eq!(recorded, answers(&backend, &model, sequences, adapters), "a second time");
    }
}

/// A recording whose scratch memory has gone is not replayed.
#[test]
fn a_recording_does_not_outlive_its_memory() {
    let Some(backend) = backend() else { return };
    let mut x = backend.zeros(Dtype::Bf16, 4, 64).unwrap();
    let mut y = backend.zeros(Dtype::Bf16, 4, 64).unwrap();
    backend.upload(&[1.5; 256], &mut x).unwrap();
    let mut add = || backend.add(4, &x, &mut y);
    add().unwrap();
    let recording = backend.record(&mut add).unwrap().expect("the driver records");
    assert!(backend.replay(&recording).unwrap());
    let mut values = vec![0.0; 256];
    backend.download(&y, &mut values).unwrap();
    assert_eq!(values, [4.5; 256]);
    backend.release().unwrap();
    assert!(!backend.replay(&recording).unwrap());
    backend.download(&y, &mut values).unwrap();
    assert_eq!(values, [4.5; 256]);
}

/// What waits for the card cannot be recorded: it runs as it is, once.
#[test]
fn work_that_cannot_be_recorded_runs_all_the_same() {
    let Some(backend) = backend() else { return };
    let mut y = backend.zeros(Dtype::F32, 1, 8).unwrap();
    let recording = backend.record(|| backend.upload(&[2.0; 8], &mut y)).unwrap();
    assert!(recording.is_none());
    let mut values = [0.0; 8];
    backend.download(&y, &mut values).unwrap();
    assert_eq!(values, [2.0; 8]);
}
