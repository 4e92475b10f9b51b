//! Prompts that start alike are read once, and the answers are those of each alone.

mod common;

use common::{BASES, backend, drain, engine, greedy, load, run};
use eyas_backend::CpuBackend;
use eyas_generate::{AdapterId, Engine, EngineOptions, Event, Request, SamplingParams};

/// A start of `common` tokens, then an end of `own` that depends on `number`.
fn prompt(common: usize, own: usize, number: usize) -> Vec<u32> {
    let start = (0..common).map(|i| (i * 31 + 7) as u32 % 90);
    start.chain((0..own).map(|i| (i * 13 + number * 29 + 1) as u32 % 90)).collect()
}

fn request(prompt: Vec<u32>, stream: u32, adapter: Option<AdapterId>) -> Request {
    let params = SamplingParams { max_new_tokens: 6, seed: 3, ..SamplingParams::recipe() };
    Request { stream, ..Request::new(prompt, params, adapter) }
}

/// Runs them together and each alone, expects the same, and returns how many prompt tokens were read together.
fn read_together(base: &str, options: EngineOptions, wanted: &dyn Fn(AdapterId) -> Vec<Request>) -> usize {
    let backend = backend();
    let model = load(&backend, base, None);
    let (mut together, adapter) = engine(&backend, &model, base, options);
    let requests = wanted(adapter);
    let ids: Vec<_> = requests.iter().map(|request| together.submit(request).unwrap()).collect();
    let found = drain(&mut together, &ids);
    for (number, (request, found)) in requests.iter().zip(&found).enumerate() {
        let (mut alone, _) = engine(&backend, &model, base, EngineOptions::new(1, options.positions));
        assert_eq!(&run(&mut alone, request), found, "{base}: request {number}");
    }
    let prompts: usize = requests.iter().map(|request| request.prompt.len()).sum();
    prompts - together.reused_tokens() as usize
}

#[test]
fn answers_to_one_prompt_read_it_once() {
    for base in BASES {
        for prefill_chunk in [256, 7] {
            let options = EngineOptions { prefill_chunk, ..EngineOptions::new(4, 60) };
            let read = read_together(base, options, &|_| {
                (0..4).map(|stream| request(prompt(40, 0, 0), stream, None)).collect()
            });
            // The prompt, and its last token for each other answer: their first tokens are drawn from its logits.
            assert_eq!(read, 40 + 3, "{base}");
        }
    }
}

#[test]
fn conversations_under_one_system_prompt_read_it_once() {
    let options = EngineOptions { prefill_chunk: 8, ..EngineOptions::new(5, 60) };
    let read = read_together("smollm2", options, &|_| {
        (0..5).map(|number| request(prompt(30, 4 + number, number), 0, None)).collect()
    });
    assert_eq!(read, 30 + 4 + 5 + 6 + 7 + 8);
}

#[test]
fn an_adapter_shares_with_itself_only() {
    let read = read_together("llama3", EngineOptions::new(4, 60), &|adapter| {
        [None, Some(adapter), None, Some(adapter)]
            .into_iter()
            .enumerate()
            .map(|(stream, adapter)| request(prompt(40, 0, 0), stream as u32, adapter))
            .collect()
    });
    assert_eq!(read, 2 * (40 + 1));
}

/// The sequences that got a token in a step.
fn step(engine: &mut Engine<'_, CpuBackend>) -> usize {
    let mut events = Vec::new();
    engine.step(&mut events).unwrap();
    events.iter().filter(|event| matches!(event, Event::Token { .. })).count()
}

#[test]
fn nobody_waits_for_a_few_tokens_in_common() {
    let backend = backend();
    let model = load(&backend, "smollm2", None);
    let mut engine = Engine::new(&backend, &model, EngineOptions::new(2, 60)).unwrap();
    for number in 0..2 {
        engine.submit(&request(prompt(15, 9, number), 0, None)).unwrap();
    }
    assert_eq!((step(&mut engine), engine.reused_tokens()), (2, 0));

    let mut engine = Engine::new(&backend, &model, EngineOptions::new(2, 60)).unwrap();
    for number in 0..2 {
        engine.submit(&request(prompt(16, 9, number), 0, None)).unwrap();
    }
    assert_eq!((step(&mut engine), engine.reused_tokens()), (1, 0));
    assert_eq!((step(&mut engine), engine.reused_tokens()), (2, 16));
}

#[test]
fn a_prompt_waits_no_longer_than_for_what_it_shares() {
    let backend = backend();
    let model = load(&backend, "smollm2", None);
    let options = EngineOptions { prefill_chunk: 20, ..EngineOptions::new(2, 64) };
    let mut engine = Engine::new(&backend, &model, options).unwrap();
    engine.submit(&request(prompt(20, 40, 0), 0, None)).unwrap();
    engine.submit(&request(prompt(20, 1, 1), 0, None)).unwrap();
    assert_eq!((step(&mut engine), engine.reused_tokens()), (0, 0));
    // The other one has 40 tokens to read still.
    assert_eq!((step(&mut engine), engine.reused_tokens()), (1, 20));
}

#[test]
fn who_waits_reads_for_itself_when_the_first_goes() {
    let backend = backend();
    let model = load(&backend, "smollm2", None);
    let options = EngineOptions { prefill_chunk: 10, ..EngineOptions::new(3, 60) };
    let mut engine = Engine::new(&backend, &model, options).unwrap();
    let requests: Vec<_> = (0..3).map(|stream| request(prompt(40, 0, 0), stream, None)).collect();
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request).unwrap()).collect();
    assert_eq!(step(&mut engine), 0);
    assert!(engine.remove(ids[0]));
    let found = drain(&mut engine, &ids[1..]);
    // What the first had read is not lost.
    assert_eq!(engine.reused_tokens(), 10 + 39);
    for (request, found) in requests[1..].iter().zip(found) {
        let mut alone = Engine::new(&backend, &model, EngineOptions::new(1, 60)).unwrap();
        assert_eq!(run(&mut alone, request), found);
    }
}

#[test]
fn a_prompt_is_copied_from_one_that_is_being_answered() {
    let backend = backend();
    let model = load(&backend, "mistral", None);
    let mut engine = Engine::new(&backend, &model, EngineOptions::new(2, 60)).unwrap();
    let first = engine.submit(&Request::new(prompt(30, 0, 0), greedy(20), None)).unwrap();
    assert_eq!(step(&mut engine), 1);
    let other = request(prompt(30, 5, 1), 0, None);
    let second = engine.submit(&other).unwrap();
    let found = drain(&mut engine, &[first, second]);
    assert_eq!(engine.reused_tokens(), 30);
    let mut alone = Engine::new(&backend, &model, EngineOptions::new(1, 60)).unwrap();
    assert_eq!(run(&mut alone, &other), found[1]);
}

#[test]
fn a_scored_prompt_is_read_whole() {
    let backend = backend();
    let model = load(&backend, "smollm2", None);
    let mut engine = Engine::new(&backend, &model, EngineOptions::new(3, 60)).unwrap();
    for stream in 0..3 {
        let request = Request { prompt_logprobs: Some(0), ..request(prompt(40, 0, 0), stream, None) };
        engine.submit(&request).unwrap();
    }
    assert_eq!((step(&mut engine), engine.reused_tokens()), (3, 0));
}
