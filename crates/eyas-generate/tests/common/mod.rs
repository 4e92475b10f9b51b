//! The tiny models of the golden files.

#![allow(dead_code)] // each test uses its part

use eyas_backend::CpuBackend;
use eyas_generate::{
    AdapterId, Engine, EngineOptions, Event, FinishReason, Request, SamplingParams, SequenceId,
};
use eyas_model::{LoraAdapter, Model};
use serde_json::Value;

#[path = "../../../eyas-model/tests/common/golden.rs"]
mod golden;
pub use golden::*;

pub fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

pub fn adapter(base: &str, model: &Model<CpuBackend>) -> LoraAdapter {
    LoraAdapter::load(&fixture(base).join("adapter"), model.decoder()).unwrap()
}

/// An engine with the base's adapter.
pub fn engine<'m>(
    backend: &'m CpuBackend,
    model: &'m Model<CpuBackend>,
    base: &str,
    options: EngineOptions,
) -> (Engine<'m, CpuBackend>, AdapterId) {
    let mut engine = Engine::new(backend, model, options).unwrap();
    let id = engine.add_adapter(&adapter(base, model)).unwrap();
    (engine, id)
}

/// Tokens and the finish reason of each sequence.
pub type Outcome = (Vec<u32>, Option<FinishReason>);

/// Steps until nothing is left and returns what the sequences produced, in the order of `ids`.
pub fn drain(engine: &mut Engine<'_, CpuBackend>, ids: &[SequenceId]) -> Vec<Outcome> {
    let mut found: Vec<Outcome> = vec![(Vec::new(), None); ids.len()];
    let mut events = Vec::new();
    while engine.active() > 0 {
        engine.step(&mut events).unwrap();
        for event in events.drain(..) {
            note(&mut found, ids, event);
        }
    }
    found
}

pub fn note(found: &mut [Outcome], ids: &[SequenceId], event: Event) {
    match event {
        Event::Token { sequence, token, finish, .. } => {
            let place = ids.iter().position(|&id| id == sequence).unwrap();
            assert!(found[place].1.is_none(), "a token after the end");
            found[place].0.push(token);
            found[place].1 = finish;
        }
        Event::Prompt { .. } => panic!("nobody asked for it"),
        Event::Failed { error, .. } => panic!("{error}"),
    }
}

pub fn run(engine: &mut Engine<'_, CpuBackend>, request: &Request) -> Outcome {
    let id = engine.submit(request).unwrap();
    drain(engine, &[id]).remove(0)
}

pub fn greedy(max_new_tokens: usize) -> SamplingParams {
    SamplingParams { max_new_tokens, ..SamplingParams::greedy() }
}
