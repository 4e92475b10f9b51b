//! The engine: batches, chunks, slots, limits.

mod common;

use common::{BASES, backend, drain, engine, greedy, load, note, run};
use eyas_backend::{Backend, CpuBackend, DeviceTensor, FlatBatch};
use eyas_generate::{
    Engine, EngineOptions, Error, Evaluator, Event, FinishReason, Request, SamplingParams, SequenceId,
};
use eyas_model::{Cache, DeviceBatch, MemoryPlan, Model, Workspace};

/// Prompts of different lengths that all vocabularies hold.
fn prompts() -> Vec<Vec<u32>> {
    [1usize, 7, 3, 12, 5, 9]
        .iter()
        .map(|&len| (0..len).map(|i| (i * 17 + len * 5) as u32 % 90).collect())
        .collect()
}

fn requests(adapter: eyas_generate::AdapterId) -> Vec<Request> {
    prompts()
        .into_iter()
        .enumerate()
        .map(|(i, prompt)| {
            let params = SamplingParams { max_new_tokens: 6 + i, seed: 11, ..SamplingParams::recipe() };
            Request { stream: i as u32, ..Request::new(prompt, params, (i % 2 == 1).then_some(adapter)) }
        })
        .collect()
}

#[test]
fn a_batch_of_sequences_is_each_of_them_alone() {
    let backend = backend();
    for base in BASES {
        let model = load(&backend, base, None);
        let (mut alone, adapter) = engine(&backend, &model, base, EngineOptions::new(1, 40));
        let (mut together, same) = engine(&backend, &model, base, EngineOptions::new(6, 40));
        assert_eq!(adapter, same);
        let requests = requests(adapter);
        let ids: Vec<_> = requests.iter().map(|request| together.submit(request).unwrap()).collect();
        let found = drain(&mut together, &ids);
        for (request, found) in requests.iter().zip(found) {
            assert_eq!(run(&mut alone, request), found, "{base}");
        }
    }
}

#[test]
fn sequences_come_and_go_between_steps() {
    let backend = backend();
    let base = "smollm2";
    let model = load(&backend, base, None);
    let (mut alone, adapter) = engine(&backend, &model, base, EngineOptions::new(1, 40));
    let options = EngineOptions { prefill_chunk: 4, ..EngineOptions::new(2, 40) };
    let (mut busy, _) = engine(&backend, &model, base, options);
    let requests = requests(adapter);
    let mut ids: Vec<SequenceId> = Vec::new();
    let mut found = vec![(Vec::new(), None); requests.len()];
    let mut events = Vec::new();
    while found.iter().any(|(_, finish)| finish.is_none()) {
        if busy.free_slots() > 0 && ids.len() < requests.len() {
            ids.push(busy.submit(&requests[ids.len()]).unwrap());
        }
        busy.step(&mut events).unwrap();
        for event in events.drain(..) {
            note(&mut found, &ids, event);
        }
    }
    for (request, found) in requests.iter().zip(found) {
        assert_eq!(run(&mut alone, request), found);
    }
}

/// Logits after the last token of a sequence, run whole through the flat forward.
fn flat_logits(backend: &CpuBackend, model: &Model<CpuBackend>, ids: &[u32]) -> Vec<f32> {
    let plan = MemoryPlan::forward_only(ids.len(), 1, 1);
    let mut workspace = Workspace::new(backend, model.decoder(), None, plan).unwrap();
    let mut on_device = DeviceBatch::new(backend, ids.len(), 1).unwrap();
    let mut batch = FlatBatch::new();
    batch.push_causal(ids, &vec![false; ids.len()]).unwrap();
    on_device.load(backend, &batch).unwrap();
    model.forward(backend, &on_device, None, &mut workspace).unwrap();
    let mut logits = Vec::new();
    model.last_logits(backend, &on_device, &mut workspace, &mut logits).unwrap();
    logits
}

#[test]
fn cached_logits_are_those_of_the_flat_forward() {
    let backend = backend();
    for base in BASES {
        let model = load(&backend, base, None);
        let ids: Vec<u32> = (0..20).map(|i| (i * 31 + 7) % 90).collect();
        let mut cache = Cache::new(&backend, model.decoder(), 3, 24).unwrap();
        let mut workspace =
            Workspace::new(&backend, model.decoder(), None, MemoryPlan::forward_only(8, 2, 2)).unwrap();
        let mut on_device = DeviceBatch::new(&backend, 8, 2).unwrap();
        let mut logits = Vec::new();
        let mut start = 0;
        for chunk in [5, 1, 1, 6, 1, 3, 1, 1, 1] {
            let mut batch = FlatBatch::new();
            // Another sequence beside it must make no difference.
            batch.push_cached(0, start as u32, &[3, 4][..1 + start % 2]).unwrap();
            batch.push_cached(2, start as u32, &ids[start..start + chunk]).unwrap();
            start += chunk;
            on_device.load(&backend, &batch).unwrap();
            model.forward_cached(&backend, &on_device, None, &mut workspace, &mut cache).unwrap();
            model.last_logits(&backend, &on_device, &mut workspace, &mut logits).unwrap();
            let cached = &logits[model.decoder().vocab_size..];
            let flat = flat_logits(&backend, &model, &ids[..start]);
            let largest = flat.iter().fold(0.0f32, |max, logit| max.max(logit.abs()));
            for (cached, flat) in cached.iter().zip(&flat) {
                assert!((cached - flat).abs() < 1e-5 * largest, "{base} at {start}: {cached} {flat}");
            }
        }
    }
}

#[test]
fn a_longer_conversation_reuses_its_slot() {
    let backend = backend();
    let model = load(&backend, "llama3", None);
    let (mut engine, adapter) = engine(&backend, &model, "llama3", EngineOptions::new(2, 60));
    let first: Vec<u32> = (0..10).collect();
    let (answer, _) = run(&mut engine, &Request::new(first.clone(), greedy(5), None));
    assert_eq!(engine.reused_tokens(), 0);

    let longer = [&first[..], &answer, &[50, 51, 52]].concat();
    let found = run(&mut engine, &Request::new(longer.clone(), greedy(8), None));
    // The last token of an answer was chosen and never run.
    assert_eq!(engine.reused_tokens(), 10 + 4);
    let mut fresh = Engine::new(&backend, &model, EngineOptions::new(1, 60)).unwrap();
    assert_eq!(found, run(&mut fresh, &Request::new(longer.clone(), greedy(8), None)));

    // The adapter has other keys and values, and needs its own.
    let before = engine.reused_tokens();
    let tuned = run(&mut engine, &Request::new(longer.clone(), greedy(8), Some(adapter)));
    assert_eq!(engine.reused_tokens(), before);
    let (mut fresh, adapter) = common::engine(&backend, &model, "llama3", EngineOptions::new(1, 60));
    assert_eq!(tuned, run(&mut fresh, &Request::new(longer, greedy(8), Some(adapter))));
}

#[test]
fn a_prompts_log_probabilities_come_in_chunks() {
    let backend = backend();
    let base = "smollm2";
    let model = load(&backend, base, None);
    let options = EngineOptions { prefill_chunk: 4, ..EngineOptions::new(3, 40) };
    let (mut busy, adapter) = engine(&backend, &model, base, options);
    // A prompt that the cache holds is run again.
    run(&mut busy, &Request::new(prompts()[3].clone(), greedy(2), None));
    let reused = busy.reused_tokens();
    let requests: Vec<Request> = [(3, None), (1, Some(adapter)), (0, None)]
        .into_iter()
        .map(|(prompt, adapter)| Request {
            prompt_logprobs: Some(2),
            ..Request::new(prompts()[prompt].clone(), greedy(3), adapter)
        })
        .collect();
    let ids: Vec<_> = requests.iter().map(|request| busy.submit(request).unwrap()).collect();
    let mut found = vec![Vec::new(); ids.len()];
    let mut events = Vec::new();
    while busy.active() > 0 {
        busy.step(&mut events).unwrap();
        for event in events.drain(..) {
            if let Event::Prompt { sequence, logprobs } = event {
                found[ids.iter().position(|&id| id == sequence).unwrap()].extend(logprobs);
            }
        }
    }
    assert_eq!(busy.reused_tokens(), reused);
    let mut evaluator = Evaluator::new(&backend, &model, 40).unwrap();
    for (request, found) in requests.iter().zip(found) {
        let active = request.adapter.map(|adapter| busy.adapter(adapter).unwrap());
        let expected = evaluator.token_logprobs(&request.prompt, active, 2).unwrap();
        assert_eq!(found.len(), request.prompt.len() - 1);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found.logprob - expected.logprob).abs() < 1e-4, "{found:?} {expected:?}");
            assert_eq!(found.top.len(), 2);
            assert_eq!(found.top[0].0, expected.top[0].0);
        }
    }
}

#[test]
fn the_end_of_a_slot_ends_the_answer() {
    let backend = backend();
    let model = load(&backend, "smollm2", None);
    let mut engine = Engine::new(&backend, &model, EngineOptions::new(1, 8)).unwrap();
    let (tokens, finish) = run(&mut engine, &Request::new(vec![1, 2, 3], greedy(100), None));
    // Tokens 4 to 8 fit; one more is chosen and never run.
    assert_eq!((tokens.len(), finish), (6, Some(FinishReason::Length)));
    let (tokens, _) = run(&mut engine, &Request::new(vec![5; 8], greedy(100), None));
    assert_eq!(tokens.len(), 1);
    let error = engine.submit(&Request::new(vec![5; 9], greedy(1), None)).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { tokens: 9, positions: 8 }), "{error}");
}

#[test]
fn an_end_token_ends_the_answer() {
    let backend = backend();
    let model = load(&backend, "smollm2", None);
    let mut engine = Engine::new(&backend, &model, EngineOptions::new(1, 40)).unwrap();
    let prompt = vec![76, 10, 74, 101, 13];
    let (all, _) = run(&mut engine, &Request::new(prompt.clone(), greedy(10), None));
    let end = all[3];
    let first = all.iter().position(|&token| token == end).unwrap();
    let params = SamplingParams { eos_token_id: vec![103, end], ..greedy(10) };
    let (tokens, finish) = run(&mut engine, &Request::new(prompt.clone(), params.clone(), None));
    assert_eq!((tokens, finish), (all[..=first].to_vec(), Some(FinishReason::Eos)));
    let params = SamplingParams { ignore_eos: true, ..params };
    assert_eq!(run(&mut engine, &Request::new(prompt, params, None)).0, all);
}

#[test]
fn the_same_seed_gives_the_same_tokens() {
    let backend = backend();
    let model = load(&backend, "qwen3", None);
    let tokens = |seed, stream| {
        let mut engine = Engine::new(&backend, &model, EngineOptions::new(1, 60)).unwrap();
        let params = SamplingParams { seed, max_new_tokens: 40, ..SamplingParams::default() };
        run(&mut engine, &Request { stream, ..Request::new(vec![1, 2, 3], params, None) }).0
    };
    assert_eq!(tokens(1, 0), tokens(1, 0));
    assert_ne!(tokens(1, 0), tokens(2, 0));
    assert_ne!(tokens(1, 0), tokens(1, 1));
}

#[test]
fn a_removed_sequence_frees_its_slot() {
    let backend = backend();
    let model = load(&backend, "smollm2", None);
    let mut engine = Engine::new(&backend, &model, EngineOptions::new(1, 40)).unwrap();
    let request = Request::new(vec![1, 2, 3], greedy(30), None);
    let id = engine.submit(&request).unwrap();
    assert!(matches!(engine.submit(&request), Err(Error::Full { slots: 1 })));
    engine.step(&mut Vec::new()).unwrap();
    assert!(engine.remove(id));
    assert!(!engine.remove(id));
    assert_eq!((engine.active(), engine.free_slots()), (0, 1));
    engine.submit(&request).unwrap();
}

#[test]
fn adapters_are_let_go_when_nobody_uses_them() {
    let backend = backend();
    let model = load(&backend, "smollm2", None);
    let (mut engine, adapter) = engine(&backend, &model, "smollm2", EngineOptions::new(1, 40));
    let request = Request::new(vec![1, 2, 3], greedy(30), Some(adapter));
    let id = engine.submit(&request).unwrap();
    assert!(engine.remove_adapter(adapter).is_err());
    engine.remove(id);
    engine.remove_adapter(adapter).unwrap();
    assert!(matches!(engine.submit(&request), Err(Error::Adapter { .. })));
    assert!(engine.remove_adapter(adapter).is_err());
}

#[test]
fn a_damaged_adapter_fails_alone() {
    let backend = backend();
    let model = load(&backend, "smollm2", None);
    let mut engine = Engine::new(&backend, &model, EngineOptions::new(2, 40)).unwrap();
    let mut damaged = common::adapter("smollm2", &model);
    damaged.params.fill(f32::NAN);
    let damaged = engine.add_adapter(&damaged).unwrap();
    let good = engine.submit(&Request::new(vec![1, 2, 3], greedy(3), None)).unwrap();
    let bad = engine.submit(&Request::new(vec![1, 2, 3], greedy(3), Some(damaged))).unwrap();
    let mut events = Vec::new();
    engine.step(&mut events).unwrap();
    let failed = |event: &Event| matches!(event, Event::Failed { sequence, .. } if *sequence == bad);
    assert!(events.iter().any(failed), "{events:?}");
    assert_eq!(engine.active(), 1);
    assert_eq!(drain(&mut engine, &[good])[0].0.len(), 2);
}

#[test]
fn what_cannot_run_is_refused() {
    let backend = backend();
    let model = load(&backend, "smollm2", None);
    for options in [
        EngineOptions::new(0, 8),
        EngineOptions::new(1, 0),
        EngineOptions::new(1, 65),
        EngineOptions { prefill_chunk: 0, ..EngineOptions::new(1, 8) },
    ] {
        assert!(matches!(Engine::new(&backend, &model, options), Err(Error::Setting { .. })), "{options:?}");
    }
    let mut engine = Engine::new(&backend, &model, EngineOptions::new(1, 8)).unwrap();
    let cases = [
        (Request::new(vec![], greedy(1), None), "no tokens"),
        (Request::new(vec![104], greedy(1), None), "token 104"),
        (Request::new(vec![1], SamplingParams { top_p: 2.0, ..greedy(1) }, None), "top_p"),
    ];
    for (request, expected) in cases {
        let error = engine.submit(&request).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(engine.active(), 0);
    }
}

#[test]
fn the_memory_is_what_was_said() {
    let backend = backend();
    let model = load(&backend, "smollm2", None);
    let options = EngineOptions::new(3, 40);
    let cache = Cache::<CpuBackend>::bytes(model.decoder(), 3, 40, backend.compute_dtype());
    assert!(options.bytes::<CpuBackend>(model.decoder(), backend.compute_dtype()) > cache);
    let tensor = backend.zeros(backend.compute_dtype(), 3 * 40, 24).unwrap();
    let (rows, cols) = tensor.shape();
    assert_eq!(cache, (2 * model.decoder().blocks() * rows * cols * 4) as u64);
}
