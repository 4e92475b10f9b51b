//! Measures decoding: `decode MODEL [--adapter FOLDER] [--sequences N] [--tokens N] [--dense] [PROMPT]`.
//!
//! MODEL is a Hugging Face folder or a GGUF file; its linear layers are quantised to NF4 with double quantisation unless
//! `--dense` says otherwise. Prints the answer and, on standard error, tokens a second for reading and for writing,
//! and what the engine adds to the model's own time.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use eyas_backend::spec::QuantConfig;
use eyas_backend::{CpuBackend, CpuOptions, FlatBatch};
use eyas_data::Tokenizer;
use eyas_generate::{Engine, EngineOptions, Generator, Request, SamplingParams, TextEvent};
use eyas_model::{Cache, DeviceBatch, LoadOptions, LoraAdapter, MemoryPlan, Model, ModelSource, Workspace};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

struct Arguments {
    model: PathBuf,
    adapter: Option<PathBuf>,
    sequences: usize,
    tokens: usize,
    dense: bool,
    prompt: String,
}

fn arguments() -> Result<Arguments> {
    let mut words = std::env::args().skip(1);
    let mut found = Arguments {
        model: words.next().ok_or("which model? Give a folder or a GGUF file")?.into(),
        adapter: None,
        sequences: 1,
        tokens: 256,
        dense: false,
        prompt: "<HUMAN>: How can I prevent anxiety and depression?\n<ASSISTANT>:".into(),
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--adapter" => found.adapter = Some(value()?.into()),
            "--sequences" => found.sequences = value()?.parse()?,
            "--tokens" => found.tokens = value()?.parse()?,
            "--dense" => found.dense = true,
            _ => found.prompt = word,
        }
    }
    Ok(found)
}

fn tokenizer(source: &ModelSource, path: &Path) -> Result<Tokenizer> {
    Ok(match source.checkpoint().gguf_metadata() {
        Some(metadata) => Tokenizer::from_gguf(path, metadata)?,
        None => Tokenizer::from_folder(path)?,
    })
}

/// The times of the model's own steps after the prompt, without anything around them.
fn model_alone(
    backend: &CpuBackend,
    model: &Model<CpuBackend>,
    prompt: &[u32],
    tokens: usize,
) -> eyas_model::Result<Vec<Duration>> {
    let mut cache = Cache::new(backend, model.decoder(), 1, prompt.len() + tokens)?;
    let plan = MemoryPlan::forward_only(prompt.len(), 1, 1);
    let mut workspace = Workspace::new(backend, model.decoder(), None, plan)?;
    let mut on_device = DeviceBatch::new(backend, prompt.len(), 1)?;
    let mut batch = FlatBatch::new();
    let mut logits = Vec::new();
    let mut times = Vec::new();
    for step in 0..=tokens {
        batch.clear();
        match step {
            0 => batch.push_cached(0, 0, prompt)?,
            _ => batch.push_cached(0, (prompt.len() + step - 1) as u32, &prompt[..1])?,
        }
        let start = Instant::now();
        on_device.load(backend, &batch)?;
        model.forward_cached(backend, &on_device, None, &mut workspace, &mut cache)?;
        model.last_logits(backend, &on_device, &mut workspace, &mut logits)?;
        times.extend((step > 0).then(|| start.elapsed()));
    }
    Ok(times)
}

/// Milliseconds of the median and of the fastest tenth: on a machine with other work the latter says more.
fn summary(times: &[Duration]) -> (f64, f64) {
    let mut times: Vec<f64> = times.iter().map(|time| 1e3 * time.as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() / 10])
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let source = ModelSource::open(&arguments.model)?;
    let tokenizer = tokenizer(&source, &arguments.model)?;
    let prompt = tokenizer.encode(&arguments.prompt, true)?;
    let positions = prompt.len() + arguments.tokens;
    let backend = CpuBackend::new(CpuOptions::default())?;
    let start = Instant::now();
    let quantize = (!arguments.dense).then(QuantConfig::default);
    let model = source.load(
        &backend,
        LoadOptions { quantize, positions, embedding_on_host: false },
        &mut |_, _| {},
    )?;
    eprintln!(
        "loaded in {:.2} s, {:.1} MB of weights",
        start.elapsed().as_secs_f64(),
        model.footprint().total() as f64 / 1e6
    );

    let mut engine = Engine::new(&backend, &model, EngineOptions::new(arguments.sequences, positions))?;
    let adapter = match &arguments.adapter {
        Some(folder) => Some(engine.add_adapter(&LoraAdapter::load(folder, model.decoder())?)?),
        None => None,
    };
    let mut generator = Generator::new(engine, &tokenizer)?;
    let params =
        SamplingParams { max_new_tokens: arguments.tokens, ignore_eos: true, ..SamplingParams::recipe() };
    let requests: Vec<Request> = (0..arguments.sequences as u32)
        .map(|stream| Request { stream, ..Request::new(prompt.clone(), params.clone(), adapter) })
        .collect();
    let mut text = String::new();
    let mut steps = Vec::new();
    let mut events = Vec::new();
    let start = Instant::now();
    let ids = requests
        .into_iter()
        .map(|request| generator.submit(request))
        .collect::<eyas_generate::Result<Vec<_>>>()?;
    let mut reading = Duration::ZERO;
    while generator.engine().active() > 0 {
        let step = Instant::now();
        generator.step(&mut events)?;
        let is_reading = reading.is_zero();
        if !is_reading {
            steps.push(step.elapsed());
        }
        for event in events.drain(..) {
            if let TextEvent::Token { sequence, text: piece, .. } = event {
                reading = if is_reading { start.elapsed() } else { reading };
                text += if sequence == ids[0] { &piece } else { "" };
            }
        }
    }
    println!("{text}");
    let read = prompt.len() * arguments.sequences;
    let (median, fast) = summary(&steps);
    eprintln!(
        "read {read} tokens at {:.0} a second; a step of {} tokens: {median:.2} ms, {fast:.2} ms the fastest tenth: \
         {:.1} and {:.1} tokens a second",
        read as f64 / reading.as_secs_f64(),
        arguments.sequences,
        1e3 * arguments.sequences as f64 / median,
        1e3 * arguments.sequences as f64 / fast
    );
    if arguments.sequences == 1 && adapter.is_none() {
        // In the pool, as the engine's steps are.
        let alone = rayon::scope(|_| model_alone(&backend, &model, &prompt, steps.len()));
        let (median_alone, fast_alone) = summary(&alone?);
        eprintln!(
            "the model alone: {median_alone:.2} ms, {fast_alone:.2} ms the fastest tenth; the engine adds {:.1}%",
            100.0 * (fast / fast_alone - 1.0)
        );
    }
    Ok(())
}
