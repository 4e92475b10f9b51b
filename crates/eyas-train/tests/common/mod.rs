//! A tiny model on the CPU, rows for it, and runs.
#![allow(dead_code)]

pub mod card;
#[path = "../../../eyas-model/tests/common/golden.rs"]
pub mod golden;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use eyas_backend::{Backend, FlatBatch};
use eyas_data::Example;
use eyas_model::{LoadOptions, LoraLayout, MemoryPlan, Model};
use eyas_train::recipe::MemoryBudget;
use eyas_train::{Engine, Event, ExtraFile, Job, Outcome, Recipe, Replica, Result, Trainer, TrainingPlan};
pub use golden::*;

/// Rows of different lengths, with something to learn in them: each continues an arithmetic progression.
pub fn rows(count: usize) -> Vec<Example> {
    (0..count)
        .map(|row| {
            let length = 4 + (row * 7 + row / 3) % 13;
            let input_ids = (0..length).map(|i| ((row * 5 + i * (1 + row % 3)) % 90) as u32).collect();
            let target_mask = (0..length).map(|i| i > row % 3).collect();
            Example { input_ids, target_mask }
        })
        .collect()
}

/// A small Llama of random weights with so many blocks.
pub fn random_model<B: Backend>(backend: &B, blocks: usize) -> Model<B> {
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": {blocks}, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": false}}"#
    );
    let config = eyas_model::config::Config::parse("a test's model".into(), &config).unwrap();
    let decoder = eyas_model::family::from_config(&config).unwrap();
    let options = LoadOptions { quantize: None, positions: 64, embedding_on_host: false };
    Model::random(backend, &decoder, options, 5, &mut |_, _| {}).unwrap()
}

/// Dropout, length grouping, accumulation and an epoch that ends in a smaller step, all on.
pub fn recipe(output: &Path) -> Recipe {
    let mut recipe = Recipe::parse(
        "test",
        r#"
        r = 4
        lora_alpha = 8
        lora_dropout = 0.1
        per_device_train_batch_size = 2
        gradient_accumulation_steps = 2
        learning_rate = 5e-3
        lr_scheduler_type = "cosine"
        warmup_steps = 2
        max_grad_norm = 0.3
        weight_decay = 0.01
        max_steps = 9
        save_steps = 0
        logging_steps = 2
        group_by_length = true
        "#,
    )
    .unwrap();
    recipe.model.model_name_or_path = Some("tiny/llama2".into());
    recipe.training.output_dir = output.display().to_string();
    recipe
}

/// The layout of that recipe's adapter.
pub fn layout<B: Backend>(model: &Model<B>) -> LoraLayout {
    LoraLayout::new(model.decoder(), recipe(Path::new("x")).lora.config()).unwrap()
}

/// So many replicas of a model, each with this plan, at an adapter that is not zero.
pub fn engine<'a, B: Backend>(
    replicas: usize,
    backend: &'a B,
    model: &'a Model<B>,
    layout: LoraLayout,
    plan: MemoryPlan,
) -> Engine<'a, B> {
    let params: Vec<f32> = (0..layout.parameters()).map(|i| (i as f32 * 0.37).sin() * 0.05).collect();
    let (all, plans) = (vec![Replica::alone(backend, model); replicas], vec![plan; replicas]);
    Engine::new(&all, layout, &params, Default::default(), &plans).unwrap()
}

/// A batch of these rows.
pub fn batch_of<'a>(rows: impl IntoIterator<Item = &'a Example>) -> FlatBatch {
    let mut batch = FlatBatch::new();
    for row in rows {
        batch.push_causal(&row.input_ids, &row.target_mask).unwrap();
    }
    batch
}

/// What a run told.
#[derive(Debug, Default)]
pub struct Told {
    pub warnings: Vec<String>,
    pub saved: Vec<u64>,
    pub losses: Vec<f64>,
}

/// A run over 19 rows with 5 held out.
pub fn run<B: Backend>(model: &Model<B>, backend: &B, recipe: &Recipe) -> Result<(Outcome, Told)> {
    run_rows(model, backend, recipe, &rows(19), None)
}

/// As [`run`]; stops when `stop_after` steps were taken.
pub fn run_rows<B: Backend>(
    model: &Model<B>,
    backend: &B,
    recipe: &Recipe,
    train: &[Example],
    stop_after: Option<u64>,
) -> Result<(Outcome, Told)> {
    let stop = AtomicBool::new(false);
    let (outcome, told) = run_watched(model, backend, recipe, train, &stop, &mut |event| match event {
        Event::Step(report) if Some(report.global_step) == stop_after => {
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        _ => {}
    });
    Ok((outcome?, told))
}

/// As [`run`], with somebody who watches; tells what was told of a run that failed too.
pub fn run_watched<B: Backend>(
    model: &Model<B>,
    backend: &B,
    recipe: &Recipe,
    train: &[Example],
    stop: &AtomicBool,
    watch: &mut dyn FnMut(&Event<'_>),
) -> (Result<Outcome>, Told) {
    run_shared(vec![Replica::alone(backend, model)], recipe, train, stop, watch)
}

/// The same on several replicas.
pub fn run_shared<B: Backend>(
    replicas: Vec<Replica<'_, B>>,
    recipe: &Recipe,
    train: &[Example],
    stop: &AtomicBool,
    watch: &mut dyn FnMut(&Event<'_>),
) -> (Result<Outcome>, Told) {
    let eval = &rows(24)[19..];
    let mut told = Told::default();
    let extra_files = vec![ExtraFile { name: "recipe.toml".into(), contents: recipe.to_toml().into_bytes() }];
    let job = Job { replicas, recipe, train, eval, extra_files };
    let mut observer = |event: &Event<'_>| {
        match event {
            Event::Warning(warning) => told.warnings.push((*warning).into()),
            Event::Saved { step, .. } => told.saved.push(*step),
            Event::Step(report) => told.losses.push(report.loss),
            _ => {}
        }
        watch(event);
    };
    let outcome = Trainer::new(job).and_then(|trainer| trainer.run(&mut observer, stop));
    (outcome, told)
}

/// Every plan that budgets give a run, the largest first.
pub fn plans<B: Backend>(model: &Model<B>, backend: &B, recipe: &Recipe) -> Vec<TrainingPlan> {
    let (train, eval) = (&rows(19), &rows(24)[19..]);
    let mut recipe = recipe.clone();
    let mut plan = |budget: MemoryBudget| {
        recipe.training.memory_budget = budget;
        let job = Job::alone(backend, model, &recipe, train, eval);
        Trainer::new(job).ok().map(|trainer| trainer.summary().plans[0].clone())
    };
    let first = plan(MemoryBudget::Auto);
    std::iter::successors(first, |larger| plan(MemoryBudget::Bytes(larger.total() - 1))).collect()
}

/// The bits of an adapter.
pub fn bits(outcome: &Outcome) -> Vec<u32> {
    outcome.adapter.params.iter().map(|value| value.to_bits()).collect()
}

/// Losses that differ by the order of sums alone.
pub fn assert_near(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5 * a), "{a:?} and {b:?}");
}
