//! The server over a tiny model with random weights: what it answers is what the engine says without a server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::channel;

use eyas_backend::{CpuBackend, CpuOptions, MatmulKernel};
use eyas_data::{PromptFormat, Tokenizer};
use eyas_generate::{Engine, EngineOptions, Evaluator, Generator, Request, SamplingParams};
use eyas_model::{LoadOptions, LoraAdapter, Model, ModelSource};
use eyas_serve::{CareMode, Config, EngineAnswerer, Models, ServedModel, serve};
use serde_json::{Value, json};

use crate::common::Server;

const POSITIONS: usize = 64;

fn fixture(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../eyas-model/tests/fixtures").join(name)
}

/// As many tokens as the tiny model has: each is a letter.
fn tokenizer() -> Tokenizer {
    let letters = (0x20..0x7f).chain(0xa1..).filter_map(char::from_u32).take(104);
    let vocab: serde_json::Map<String, Value> =
        letters.enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
    let description = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": " "},
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), description.to_string()).unwrap();
    Tokenizer::from_folder(folder.path()).unwrap()
}

fn load(backend: &CpuBackend) -> Model<CpuBackend> {
    let options = LoadOptions { quantize: None, positions: POSITIONS, embedding_on_host: false };
    ModelSource::open(&fixture("smollm2")).unwrap().load(backend, options, &mut |_, _| {}).unwrap()
}

fn backend() -> CpuBackend {
    CpuBackend::new(CpuOptions { matmul: Some(MatmulKernel::F32) }).unwrap()
}

fn adapter(model: &Model<CpuBackend>) -> LoraAdapter {
    LoraAdapter::load(&fixture("smollm2/adapter"), model.decoder()).unwrap()
}

/// A server of the base and its adapter.
fn start() -> Server {
    let (ready, address) = channel::<SocketAddr>();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let backend = backend();
        let model = load(&backend);
        let mut engine = Engine::new(&backend, &model, EngineOptions::new(3, POSITIONS)).unwrap();
        let tuned = engine.add_adapter(&adapter(&model)).unwrap();
        let tokenizer = Arc::new(tokenizer());
        let served = |id: &str, base: Option<&str>| ServedModel {
            id: id.into(),
            base: base.map(str::to_owned),
            format: PromptFormat::human_assistant(),
            defaults: SamplingParams::recipe(),
        };
        let list = vec![served("base", None), served("tuned", Some("base"))];
        let models = Models::new(list, Arc::clone(&tokenizer), POSITIONS, 104).unwrap();
        let generator = Generator::new(engine, &tokenizer).unwrap();
        let mut answerer = EngineAnswerer::new(generator, vec![None, Some(tuned)]);
        let mut config = Config::default();
        config.care.mode = CareMode::Off;
        let stop = Box::pin(async { drop(stopped.await) });
        let any = ([127, 0, 0, 1], 0).into();
        serve(config, models, &mut answerer, any, stop, |address| ready.send(address).unwrap()).unwrap();
    });
    Server::new(address.recv().unwrap(), stop, thread)
}

fn prompt(number: u32) -> Vec<u32> {
    (0..5 + number).map(|i| (i * 17 + number * 5) % 90).collect()
}

#[test]
fn base_and_adapter_answer_side_by_side_as_each_does_alone() {
    let (backend, tokenizer) = (backend(), tokenizer());
    let model = load(&backend);
    let mut engine = Engine::new(&backend, &model, EngineOptions::new(1, POSITIONS)).unwrap();
    let tuned = engine.add_adapter(&adapter(&model)).unwrap();
    let mut generator = Generator::new(engine, &tokenizer).unwrap();
    let server = start();
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8u32)
            .map(|number| {
                let server = &server;
                let name = if number % 2 == 0 { "base" } else { "tuned" };
                scope.spawn(move || {
                    let more = json!({"model": name, "prompt": prompt(number), "max_tokens": 12, "seed": 7,
                        "temperature": 0.8, "ignore_eos": true});
                    server.post("/v1/completions", &more).json()["choices"][0]["text"].clone()
                })
            })
            .collect();
        let mut texts = Vec::new();
        for (number, asked) in asked.into_iter().enumerate() {
            let params = SamplingParams {
                max_new_tokens: 12,
                seed: 7,
                temperature: 0.8,
                ignore_eos: true,
                ..SamplingParams::default()
            };
            let adapter = (number % 2 == 1).then_some(tuned);
            let request = Request::new(prompt(number as u32), params, adapter);
            let alone = generator.generate(request, &mut |_| {}).unwrap();
            let text = asked.join().unwrap();
            assert_eq!(text, alone.text, "{number}");
            texts.push(alone.text);
        }
        texts.dedup();
        assert!(texts.len() > 4, "{texts:?}");
    });
}

#[test]
fn answers_to_one_prompt_read_it_once() {
    let server = start();
    let more = json!({"model": "tuned", "prompt": prompt(30), "max_tokens": 12, "seed": 7, "temperature": 0.8,
        "ignore_eos": true, "n": 3});
    let answer = server.post("/v1/completions", &more).json();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 3);
    assert_eq!(server.metric("eyas_prompt_tokens_total"), 3.0 * 35.0);
    // All but the last token of it, whose logits the first tokens of the others are drawn from.
    assert_eq!(server.metric("eyas_reused_prompt_tokens_total"), 2.0 * 34.0);
}

#[test]
fn prompts_are_scored_as_the_evaluator_does() {
    let backend = backend();
    let model = load(&backend);
    let ids = prompt(30);
    let server = start();
    let more =
        json!({"model": "base", "prompt": [ids, prompt(2)], "max_tokens": 1, "echo": true, "logprobs": 1});
    let answer = server.post("/v1/completions", &more).json();
    let mut evaluator = Evaluator::new(&backend, &model, POSITIONS).unwrap();
    for (choice, ids) in answer["choices"].as_array().unwrap().iter().zip([prompt(30), prompt(2)]) {
        let expected = evaluator.token_logprobs(&ids, None, 1).unwrap();
        let found = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        assert_eq!(found.len(), ids.len() + 1);
        assert!(found[0].is_null());
        for (found, expected) in found[1..ids.len()].iter().zip(&expected) {
            assert!(
                (found.as_f64().unwrap() - f64::from(expected.logprob)).abs() < 1e-4,
                "{found} {expected:?}"
            );
        }
    }
}
