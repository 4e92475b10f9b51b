//! Measuring generation: prompts and answers of random tokens, through the engine that chat and the server use.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use eyas_backend::philox::philox4x32;
use eyas_backend::{Backend, OpTime};
use eyas_model::{LoraAdapter, LoraLayout, Model, Workspace};

use crate::engine::{Engine, EngineOptions, Event, Request, SequenceId};
use crate::sampling::SamplingParams;
use crate::{AdapterId, Result};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Steps that are counted, each of which gives every sequence a token.
    pub tokens: usize,
    /// Sequences at once.
    pub sequences: usize,
    /// Adapters in use, which the sequences take in turn; 0 for the base.
    pub adapters: usize,
    /// The most prompt tokens of a step.
    pub prefill_chunk: usize,
    /// How tokens are chosen.
    pub params: SamplingParams,
    /// Also measure what each operation of a step takes.
    pub profile: bool,
}

/// What [`generate`] measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Seconds from the submission to the first token of the last sequence.
    pub prompt_seconds: f64,
    /// Prompt tokens that were read in that time.
    pub prompt_tokens: usize,
    /// Seconds of each counted step.
    pub seconds: Vec<f64>,
    /// Tokens of each counted step.
    pub sequences: usize,
    /// Bytes planned: weights, adapters, cache, memory of a step, and the backend's own.
    pub planned: u64,
    /// The most bytes held, where the device tells.
    pub peak: Option<u64>,
    /// Bytes of weights that a step cannot but read: linear layers and head, and every adapter in use.
    pub floor_bytes: u64,
    /// What each operation took in one more step, on devices that can tell.
    pub operations: Vec<OpTime>,
}

impl Measured {
    /// Seconds of the median step.
    pub fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Answer tokens a second, of all sequences together.
    pub fn tokens_per_second(&self) -> f64 {
        (self.sequences * self.seconds.len()) as f64 / self.seconds.iter().sum::<f64>()
    }

    /// Prompt tokens a second.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        self.prompt_tokens as f64 / self.prompt_seconds
    }
}

/// Random token ids, others for each `stream`, so that nothing is found in the cache.
fn prompt(length: usize, vocab: usize, stream: u32) -> Vec<u32> {
    (0..length as u32).map(|i| philox4x32([i, stream, 0, 0], [17, 0])[0] % vocab as u32).collect()
}

/// An adapter whose `A` is as training starts and whose `B` is small noise.
fn adapter(layout: &LoraLayout, seed: u64) -> LoraAdapter {
    let mut params = layout.initialize(seed);
    for target in layout.targets() {
        let (start, len) = (target.slot.b, target.slot.r * target.linear.out_features);
        for (i, value) in params[start..start + len].iter_mut().enumerate() {
            let word = philox4x32([i as u32, start as u32, 0, 0], [seed as u32, 0])[0];
            *value = (word as f32 / u32::MAX as f32 - 0.5) * 0.01;
        }
    }
    LoraAdapter { layout: layout.clone(), params, base_model: "random".into() }
}

/// Reads random prompts and answers them, and measures both. `done` is called after each counted step; once `stop` is
/// set no further one begins.
///
/// # Errors
/// When an option is outside its range, the device has no room or fails.
pub fn generate<B: Backend>(
    backend: &B,
    model: &Model<B>,
    layout: &LoraLayout,
    options: &Options,
    stop: &AtomicBool,
    mut done: impl FnMut(usize),
) -> Result<Measured> {
    let decoder = model.decoder();
    let &Options { prompt: length, tokens, sequences, adapters, prefill_chunk, .. } = options;
    // Sequences whose prompts were read first answer while the others are still being read.
    let waiting = (length * sequences).div_ceil(prefill_chunk.max(1)) + sequences;
    let answer = tokens + waiting + 2;
    let positions = (length + answer).min(model.positions());
    let size = EngineOptions { slots: sequences, positions, prefill_chunk };
    let mut engine = Engine::new(backend, model, size)?;
    let adapters: Vec<AdapterId> = (0..adapters)
        .map(|seed| engine.add_adapter(&adapter(layout, seed as u64 + 1)))
        .collect::<Result<_>>()?;
    let adapter_bytes = (adapters.len() * layout.parameters() * 4) as u64;
    let shape = Workspace::<B>::step_shape(
        decoder,
        (!adapters.is_empty()).then_some(layout),
        &size.plan(),
        backend.compute_dtype(),
        model.footprint(),
    );
    let planned = model.footprint().total()
        + adapter_bytes
        + size.bytes::<B>(decoder, backend.compute_dtype())
        + B::scratch_bytes(&shape);

    let params = SamplingParams { max_new_tokens: answer, ignore_eos: true, ..options.params.clone() };
    let submit = |engine: &mut Engine<'_, B>, round: u32| -> Result<Vec<SequenceId>> {
        (0..sequences)
            .map(|i| {
                let prompt = prompt(length, decoder.vocab_size, round << 16 | i as u32);
                let adapter = (!adapters.is_empty()).then(|| adapters[i % adapters.len()]);
                engine.submit(&Request { stream: i as u32, ..Request::new(prompt, params.clone(), adapter) })
            })
            .collect()
    };
    // Once to warm up: kernels are compiled and products tuned.
    let ids = submit(&mut engine, 0)?;
    read_prompts(&mut engine, &ids)?;
    let mut events = Vec::new();
    for _ in 0..4 {
        step(&mut engine, &mut events)?;
    }
    for id in ids {
        engine.remove(id);
    }

    let ids = submit(&mut engine, 1)?;
    let begun = Instant::now();
    read_prompts(&mut engine, &ids)?;
    let prompt_seconds = begun.elapsed().as_secs_f64();
    let mut seconds = Vec::with_capacity(tokens);
    while seconds.len() < tokens && engine.active() == sequences && !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        step(&mut engine, &mut events)?;
        seconds.push(begun.elapsed().as_secs_f64());
        done(seconds.len());
    }
    let mut operations = Vec::new();
    if options.profile && engine.active() == sequences {
        backend.measure(true)?;
        step(&mut engine, &mut events)?;
        operations = backend.measured()?;
        backend.measure(false)?;
    }
    let footprint = model.footprint();
    let tied = decoder.tie_word_embeddings;
    Ok(Measured {
        prompt_seconds,
        prompt_tokens: length * sequences,
        seconds,
        sequences,
        planned,
        peak: backend.used_memory().map(|(_, peak)| peak),
        floor_bytes: footprint.linears + footprint.tables / if tied { 1 } else { 2 } + adapter_bytes,
        operations,
    })
}

/// A step; an error where a sequence failed.
fn step<B: Backend>(engine: &mut Engine<'_, B>, events: &mut Vec<Event>) -> Result<()> {
    events.clear();
    engine.step(events)?;
    match events.iter().position(|event| matches!(event, Event::Failed { .. })) {
        None => Ok(()),
        Some(place) => match events.swap_remove(place) {
            Event::Failed { error, .. } => Err(error),
            _ => Ok(()),
        },
    }
}

/// Runs steps until every sequence has its first token.
fn read_prompts<B: Backend>(engine: &mut Engine<'_, B>, ids: &[SequenceId]) -> Result<()> {
    let mut waiting: HashSet<SequenceId> = ids.iter().copied().collect();
    let mut events = Vec::new();
    while !waiting.is_empty() && engine.active() > 0 {
        step(engine, &mut events)?;
        for event in &events {
            if let Event::Token { sequence, .. } = event {
                waiting.remove(sequence);
            }
        }
    }
    Ok(())
}
