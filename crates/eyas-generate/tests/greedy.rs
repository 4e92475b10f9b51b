//! Greedy continuations of every tiny model, base and adapter, against transformers and PEFT, token for token.

mod common;

use common::{BASES, backend, drain, engine, json, load};
use eyas_generate::{EngineOptions, FinishReason, Request, SamplingParams};

struct Golden {
    prompt: Vec<u32>,
    /// Whether with the adapter, the penalty, the tokens.
    runs: Vec<(bool, f32, Vec<u32>)>,
}

fn golden(base: &str) -> Golden {
    let case = &json("greedy.json")["cases"][base];
    let mut runs = Vec::new();
    for (tuned, name) in [(false, "base"), (true, "adapter")] {
        for run in case[name].as_array().unwrap() {
            let ids = serde_json::from_value(run["ids"].clone()).unwrap();
            runs.push((tuned, run["repetition_penalty"].as_f64().unwrap() as f32, ids));
        }
    }
    assert_eq!(runs.len(), 4);
    Golden { prompt: serde_json::from_value(case["prompt"].clone()).unwrap(), runs }
}

/// All four runs at once, so that base and adapter alternate over one cache.
fn matches(base: &str, options: EngineOptions) {
    let backend = backend();
    let model = load(&backend, base, None);
    let (mut engine, adapter) = engine(&backend, &model, base, options);
    let Golden { prompt, runs } = golden(base);
    let ids: Vec<_> = runs
        .iter()
        .map(|(tuned, penalty, tokens)| {
            let params = SamplingParams {
                repetition_penalty: *penalty,
                max_new_tokens: tokens.len(),
                ..SamplingParams::greedy()
            };
            engine.submit(&Request::new(prompt.clone(), params, tuned.then_some(adapter))).unwrap()
        })
        .collect();
    for ((tokens, finish), (tuned, penalty, expected)) in drain(&mut engine, &ids).into_iter().zip(runs) {
        assert_eq!(tokens, expected, "{base}: adapter {tuned}, penalty {penalty}");
        assert_eq!(finish, Some(FinishReason::Length));
    }
}

#[test]
fn every_base_and_adapter_continues_as_transformers_does() {
    for base in BASES {
        matches(base, EngineOptions::new(4, 32));
    }
}

#[test]
fn prompts_read_in_small_chunks_give_the_same() {
    for base in BASES {
        matches(base, EngineOptions { prefill_chunk: 2, ..EngineOptions::new(4, 32) });
    }
}
