//! Decoding of several sequences at once over one base model.
//!
//! Sequences come and go between steps (continuous batching, Yu et al. 2022). A step runs one token of every
//! sequence that is being answered and a share of the prompts that are still being read, on one flat axis and
//! without padding; sequences that use the same adapter share a pass over the weights. A slot of the cache outlives
//! its sequence: the next prompt that starts with the same tokens is read from where they part. Prompts that come
//! while another one with the same start is being read wait for it and copy what it left in the cache.

mod adapters;
mod request;
mod sequence;
mod sharing;
mod slots;

use eyas_backend::{Backend, FlatBatch, IGNORE_INDEX};
use eyas_model::{
    ActiveAdapter, Cache, DeviceBatch, LoraAdapter, LoraLayout, MemoryPlan, Model, Recordings, Workspace,
};
use rayon::prelude::*;

use crate::sampling::{Sampler, SamplerScratch, TokenLogprobs};
use crate::{Error, Result};
pub use adapters::AdapterId;
use adapters::Adapters;
pub use request::{Event, FinishReason, Request, SequenceId};
use sequence::Sequence;
use slots::Slots;

/// The size of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Sequences at once.
    pub slots: usize,
    /// The longest sequence, prompt and answer together.
    pub positions: usize,
    /// The most prompt tokens that a step reads, so that long prompts do not hold up other answers for long.
    pub prefill_chunk: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { slots: 1, positions: 2048, prefill_chunk: 256 }
    }
}

/// Rows of logits at a time where a prompt's log-probabilities are wanted.
const PROMPT_ROWS: usize = 16;

impl EngineOptions {
    /// For `slots` sequences of at most `positions` tokens.
    pub fn new(slots: usize, positions: usize) -> Self {
        Self { slots, positions, ..Self::default() }
    }

    /// For `slots` sequences of at most `positions` tokens on a device, whose prompts are read as it does best.
    pub fn on<B: Backend>(slots: usize, positions: usize) -> Self {
        Self { prefill_chunk: B::PROMPT_TOKENS, ..Self::new(slots, positions) }
    }

    /// Bytes that an engine allocates besides the model and its adapters, with activations of `dtype`.
    pub fn bytes<B: Backend>(&self, decoder: &eyas_model::Decoder, dtype: eyas_backend::Dtype) -> u64 {
        Cache::<B>::bytes(decoder, self.slots, self.positions, dtype)
            + Workspace::<B>::bytes(decoder, None, &self.plan(), dtype)
    }

    pub(crate) fn plan(&self) -> MemoryPlan {
        // A sequence is in a pass once, so that there are never more last rows of logits than slots; prompts whose
        // log-probabilities are wanted take several at a time.
        MemoryPlan::forward_only(self.prefill_chunk + self.slots, self.slots, self.slots.max(PROMPT_ROWS))
    }

    fn validate(&self, model_positions: usize) -> Result<()> {
        let fail = |key: &'static str, reason: String| Err(Error::Setting { key, reason });
        if self.slots == 0 {
            return fail("slots", "is 0; an engine runs at least one sequence".into());
        }
        if self.prefill_chunk == 0 {
            return fail("prefill_chunk", "is 0; a step reads at least one token of a prompt".into());
        }
        if self.positions == 0 || self.positions > model_positions {
            let reason = format!(
                "is {}; it must be at least 1 and at most the {model_positions} that the model was loaded with",
                self.positions
            );
            return fail("positions", reason);
        }
        let tokens = self.slots.checked_mul(self.positions).filter(|&tokens| tokens <= u32::MAX as usize);
        if tokens.is_none() {
            return fail(
                "slots",
                format!("{} slots of {} positions are too many", self.slots, self.positions),
            );
        }
        Ok(())
    }
}

/// Runs sequences over a model. See the [module](self).
#[derive(Debug)]
pub struct Engine<'m, B: Backend> {
    backend: &'m B,
    model: &'m Model<B>,
    options: EngineOptions,
    cache: Cache<B>,
    workspace: Workspace<B>,
    batch: FlatBatch,
    on_device: DeviceBatch<B>,
    recordings: Recordings<B>,
    logits: Vec<f32>,
    scratch: SamplerScratch,
    adapters: Adapters<'m, B>,
    slots: Slots,
    /// In the order in which they came.
    sequences: Vec<Sequence>,
    /// How many pending tokens of each sequence the step takes.
    shares: Vec<usize>,
    next_id: u64,
    reused: u64,
}

impl<'m, B: Backend> Engine<'m, B> {
    /// Allocates the cache and the memory of a step.
    ///
    /// # Errors
    /// When an option is outside its range, or the device has no room.
    pub fn new(backend: &'m B, model: &'m Model<B>, options: EngineOptions) -> Result<Self> {
        options.validate(model.positions())?;
        let plan = options.plan();
        let decoder = model.decoder();
        let dtype = backend.compute_dtype();
        backend.reserve(&Workspace::<B>::step_shape(decoder, None, &plan, dtype, model.footprint()))?;
        Ok(Self {
            backend,
            model,
            options,
            cache: Cache::new(backend, decoder, options.slots, options.positions)?,
            batch: FlatBatch::new(),
            on_device: DeviceBatch::new(backend, plan.max_tokens, plan.max_sequences)?,
            workspace: Workspace::new(backend, decoder, None, plan)?,
            recordings: Recordings::default(),
            logits: Vec::new(),
            scratch: SamplerScratch::default(),
            adapters: Adapters::default(),
            slots: Slots::new(options.slots),
            sequences: Vec::new(),
            shares: Vec::new(),
            next_id: 0,
            reused: 0,
        })
    }

    /// The model.
    pub fn model(&self) -> &'m Model<B> {
        self.model
    }

    /// The device.
    pub fn backend(&self) -> &'m B {
        self.backend
    }

    /// The engine's size.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Sequences under way.
    pub fn active(&self) -> usize {
        self.sequences.len()
    }

    /// Sequences that can be added now.
    pub fn free_slots(&self) -> usize {
        self.options.slots - self.sequences.len()
    }

    /// Prompt tokens that were found in the cache, over the engine's life.
    pub fn reused_tokens(&self) -> u64 {
        self.reused
    }

    /// Puts an adapter beside the base.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn add_adapter(&mut self, adapter: &LoraAdapter) -> Result<AdapterId> {
        let mut params = self.backend.zeros(eyas_backend::Dtype::F32, 1, adapter.params.len())?;
        self.backend.upload(&adapter.params, &mut params)?;
        Ok(self.adapters.add_owned(adapter.layout.clone(), params))
    }

    /// Uses an adapter that is on the device already.
    pub fn share_adapter(&mut self, layout: &'m LoraLayout, params: &'m B::Tensor) -> AdapterId {
        self.adapters.add_shared(layout, params)
    }

    /// Lets an adapter go, and what the cache holds of it.
    ///
    /// # Errors
    /// When there is no such adapter, or a sequence is using it.
    pub fn remove_adapter(&mut self, adapter: AdapterId) -> Result<()> {
        if self.sequences.iter().any(|sequence| sequence.adapter == Some(adapter)) {
            return Err(adapter.error("is in use; try again when its sequences have finished"));
        }
        self.adapters.remove(adapter)?;
        self.recordings.forget(adapter.number());
        self.slots.forget(adapter);
        Ok(())
    }

    /// The adapter, to run the model with it outside the engine.
    ///
    /// # Errors
    /// When there is no such adapter.
    pub fn adapter(&self, adapter: AdapterId) -> Result<ActiveAdapter<'_, B>> {
        self.adapters.get(adapter)
    }

    /// Checks whether a request could run, without running it.
    ///
    /// # Errors
    /// When a setting is outside its range, the prompt is empty, too long or not of this vocabulary, or the adapter
    /// does not exist.
    pub fn check(&self, request: &Request) -> Result<()> {
        self.sampler(request).map(drop)
    }

    fn sampler(&self, request: &Request) -> Result<Sampler> {
        let vocab = self.model.decoder().vocab_size;
        if request.prompt.is_empty() {
            return Err(Error::Prompt("has no tokens; a model continues at least one".into()));
        }
        if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= vocab) {
            let reason =
                format!("holds token {id}; the model's vocabulary has {vocab}. Is this its tokenizer?");
            return Err(Error::Prompt(reason));
        }
        if request.prompt.len() > self.options.positions {
            return Err(Error::PromptTooLong {
                tokens: request.prompt.len(),
                positions: self.options.positions,
            });
        }
        if let Some(adapter) = request.adapter {
            self.adapters.get(adapter)?;
        }
        Sampler::new(request.params.clone(), vocab, request.stream)
    }

    /// Adds a sequence; it runs from the next step on.
    ///
    /// # Errors
    /// As [`Engine::check`], and when all slots are taken.
    pub fn submit(&mut self, request: &Request) -> Result<SequenceId> {
        let mut sampler = self.sampler(request)?;
        sampler.observe(&request.prompt);
        // What is in the cache was run already, and its logits are gone.
        let known = if request.prompt_logprobs.is_some() { &[] } else { &request.prompt[..] };
        let Some((slot, reused)) = self.slots.take(known, request.adapter) else {
            return Err(Error::Full { slots: self.options.slots });
        };
        self.reused += reused as u64;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.sequences.push(Sequence {
            id,
            slot,
            adapter: request.adapter,
            sampler,
            pending: request.prompt[reused..].iter().copied().collect(),
            produced: 0,
            may_share: request.prompt_logprobs.is_none(),
            prompt_logprobs: request.prompt_logprobs,
        });
        Ok(id)
    }

    /// Ends a sequence before its time. Tells whether it was there.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        let place = self.sequences.iter().position(|sequence| sequence.id == id);
        if let Some(place) = place {
            let sequence = self.sequences.remove(place);
            self.slots.release(sequence.slot);
        }
        place.is_some()
    }

    /// Runs every sequence one step and appends what came of it to `events`: a token of each sequence whose prompt
    /// has been read.
    ///
    /// # Errors
    /// When the device fails. No sequence has moved then beyond the events that were appended; the step may be
    /// tried again.
    pub fn step(&mut self, events: &mut Vec<Event>) -> Result<()> {
        self.share_prompts()?;
        self.share_out();
        // A step is hundreds of small operations. On a processor each one started from outside the thread pool costs
        // two switches of threads, about 3 ms a token in all for a model of 30 blocks; from inside, none.
        let result = rayon::scope(|_| self.passes(events));
        // Also after a failure: earlier passes of the step may have ended sequences.
        self.sequences.retain(|sequence| !self.slots.is_free(sequence.slot));
        result
    }

    /// A pass for each adapter in use.
    fn passes(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let mut done = 0;
        while let Some(first) = (done..self.sequences.len()).find(|&i| self.shares[i] > 0) {
            self.pass(first, events)?;
            done = first + 1;
        }
        Ok(())
    }

    /// Every sequence that is being answered runs its one token; those being read share the chunk, oldest first.
    fn share_out(&mut self) {
        let mut room = self.options.prefill_chunk;
        self.shares.clear();
        self.shares.extend(self.sequences.iter().map(|sequence| match sequence.pending.len() {
            _ if sequence.may_share => 0,
            1 => 1,
            pending => {
                let share = pending.min(room);
                room -= share;
                share
            }
        }));
    }

    /// One pass over the weights, for all sequences from `first` on that use the adapter of `first`.
    fn pass(&mut self, first: usize, events: &mut Vec<Event>) -> Result<()> {
        let adapter = self.sequences[first].adapter;
        self.batch.clear();
        let mut answers = false;
        for (sequence, &share) in self.sequences.iter_mut().zip(&self.shares).skip(first) {
            if sequence.adapter != adapter || share == 0 {
                continue;
            }
            let start = self.slots.len(sequence.slot) as u32;
            let (slot, scores) = (sequence.slot as u32, sequence.scores_prompt());
            let pending = &*sequence.pending.make_contiguous();
            if scores {
                let next = pending[1..].iter().map(|&id| id as i32).chain([IGNORE_INDEX]);
                let targets: Vec<i32> = next.take(share).collect();
                self.batch.push_cached_with_targets(slot, start, &pending[..share], &targets)?;
            } else {
                self.batch.push_cached(slot, start, &pending[..share])?;
            }
            answers |= share == pending.len();
        }
        let active = adapter.map(|adapter| self.adapters.get(adapter)).transpose()?;
        self.on_device.load(self.backend, &self.batch)?;
        let (backend, model, batch) = (self.backend, self.model, &self.on_device);
        let scores = self.batch.target_tokens() > 0;
        let mut damaged = Vec::new();
        if answers && !scores {
            let active = adapter.map(AdapterId::number).zip(active);
            let (workspace, cache) = (&mut self.workspace, &mut self.cache);
            model.decode(backend, batch, active, workspace, cache, &mut self.recordings)?;
            model.read_last_logits(backend, batch, &self.workspace, &mut self.logits)?;
        } else {
            model.forward_cached(backend, batch, active, &mut self.workspace, &mut self.cache)?;
            if scores {
                damaged = self.score_prompts(first, events)?;
            }
            if answers {
                model.last_logits(backend, &self.on_device, &mut self.workspace, &mut self.logits)?;
            }
        }
        self.choose(first, answers, &damaged, events);
        Ok(())
    }

    /// Moves the sequences of the pass on and chooses the next token of those whose prompts have been read.
    fn choose(&mut self, first: usize, answers: bool, damaged: &[SequenceId], events: &mut Vec<Event>) {
        let adapter = self.sequences[first].adapter;
        let vocab = self.model.decoder().vocab_size;
        let mut rows = self.logits.chunks_exact_mut(vocab);
        let mut ready = Vec::new();
        for (sequence, share) in self.sequences.iter_mut().zip(&mut self.shares).skip(first) {
            if sequence.adapter != adapter || *share == 0 {
                continue;
            }
            self.slots.extend(sequence.slot, sequence.pending.drain(..*share));
            *share = 0;
            let row = if answers { rows.next() } else { None };
            if damaged.contains(&sequence.id) {
                self.slots.discard(sequence.slot);
                let reason =
                    "those of the prompt are not all finite; the weights, or the adapter's, are damaged";
                events.push(Event::Failed { sequence: sequence.id, error: Error::Logits(reason.into()) });
            } else if let Some(row) = row.filter(|_| sequence.pending.is_empty()) {
                let room = self.options.positions - self.slots.len(sequence.slot);
                ready.push((sequence, row, room));
            }
        }
        // A row has up to a quarter of a million logits, and a choice depends on nothing but its own.
        let chosen: Vec<(usize, Event)> = if let [(sequence, row, room)] = &mut ready[..] {
            vec![(sequence.slot, sequence.advance(row, *room, &mut self.scratch))]
        } else {
            let rows = ready.into_par_iter().with_max_len(1);
            rows.map_init(SamplerScratch::default, |scratch, (sequence, row, room)| {
                (sequence.slot, sequence.advance(row, room, scratch))
            })
            .collect()
        };
        for (slot, event) in chosen {
            match event {
                Event::Token { finish: None, .. } | Event::Prompt { .. } => {}
                Event::Token { .. } => self.slots.release(slot),
                // Its keys and values are as suspect as its logits.
                Event::Failed { .. } => self.slots.discard(slot),
            }
            events.push(event);
        }
    }
}

impl<B: Backend> Engine<'_, B> {
    /// The log-probabilities of the prompt tokens that follow those of the pass that just ran. Returns the sequences
    /// whose logits are not all finite.
    fn score_prompts(&mut self, first: usize, events: &mut Vec<Event>) -> Result<Vec<SequenceId>> {
        let adapter = self.sequences[first].adapter;
        let in_pass = self.sequences.iter().zip(&self.shares).skip(first);
        let mut scored: Vec<(&Sequence, usize, Vec<Option<TokenLogprobs>>)> = in_pass
            .filter(|(sequence, share)| {
                sequence.adapter == adapter && **share > 0 && sequence.scores_prompt()
            })
            .map(|(sequence, &share)| (sequence, share.min(sequence.pending.len() - 1), Vec::new()))
            .filter(|(_, rows, _)| *rows > 0)
            .collect();
        let vocab = self.model.decoder().vocab_size;
        let mut current = 0;
        self.model.target_logits(self.backend, &self.on_device, &mut self.workspace, |_, rows| {
            for row in rows.chunks_exact(vocab) {
                while scored[current].1 == scored[current].2.len() {
                    current += 1;
                }
                let (sequence, _, found) = &mut scored[current];
                let token = sequence.pending[found.len() + 1];
                found.push(TokenLogprobs::of(row, token, sequence.prompt_logprobs.unwrap_or(0)));
            }
        })?;
        let mut damaged = Vec::new();
        for (sequence, _, logprobs) in scored {
            match logprobs.into_iter().collect() {
                Some(logprobs) => events.push(Event::Prompt { sequence: sequence.id, logprobs }),
                None => damaged.push(sequence.id),
            }
        }
        Ok(damaged)
    }
}
