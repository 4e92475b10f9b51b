//! Loss and perplexity on held-out rows, and log-probabilities of given tokens.

use eyas_backend::{Backend, Dtype, FlatBatch};
use eyas_data::Example;
use eyas_model::{ActiveAdapter, DeviceBatch, MemoryPlan, Model, Workspace};
use serde::Serialize;

use crate::sampling::TokenLogprobs;
use crate::{Error, Result};

/// What an evaluation found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Evaluation {
    /// Cross-entropy summed over the target tokens, in nats.
    pub total_loss: f64,
    /// Target tokens.
    pub target_tokens: usize,
    /// Rows.
    pub examples: usize,
}

impl Evaluation {
    /// Mean cross-entropy of a target token, whichever row it is in. Not a number without targets.
    pub fn loss(&self) -> f64 {
        self.total_loss / self.target_tokens as f64
    }

    /// `exp(loss)`.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }
}

/// How far an evaluation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Target tokens done.
    pub done: usize,
    /// Target tokens in all.
    pub total: usize,
}

/// The memory of an evaluation.
#[derive(Debug)]
pub struct Evaluator<'m, B: Backend> {
    backend: &'m B,
    model: &'m Model<B>,
    workspace: Workspace<B>,
    on_device: DeviceBatch<B>,
    loss: B::Tensor,
}

/// Rows of logits at a time.
const LOGIT_ROWS: usize = 128;

impl<'m, B: Backend> Evaluator<'m, B> {
    /// Memory for batches of at most `max_tokens` tokens, which is also the longest row that can be evaluated.
    ///
    /// # Errors
    /// When it is outside the model's positions, or the device has no room.
    pub fn new(backend: &'m B, model: &'m Model<B>, max_tokens: usize) -> Result<Self> {
        if max_tokens == 0 {
            return Err(Error::Setting {
                key: "max_tokens",
                reason: "is 0; a batch has at least one".into(),
            });
        }
        let plan = MemoryPlan::forward_only(max_tokens, max_tokens, LOGIT_ROWS.min(max_tokens));
        Ok(Self {
            backend,
            model,
            on_device: DeviceBatch::new(backend, plan.max_tokens, plan.max_sequences)?,
            workspace: Workspace::new(backend, model.decoder(), None, plan)?,
            loss: backend.zeros(Dtype::F32, 1, 1)?,
        })
    }

    /// Memory that suits these examples: batches of 1024 tokens, or of the longest row.
    ///
    /// # Errors
    /// As [`Evaluator::new`].
    pub fn for_examples(backend: &'m B, model: &'m Model<B>, examples: &[Example]) -> Result<Self> {
        const TOKENS: usize = 1024;
        let sizes = examples.iter().map(|example| example.input_ids.len());
        let (longest, all) = sizes.fold((1, 0), |(longest, all), len| (longest.max(len), all + len));
        Self::new(backend, model, longest.max(all.min(TOKENS)))
    }

    /// The mean loss of the examples' targets, under the base or an adapter.
    ///
    /// # Errors
    /// When an example is empty or does not fit, or the device fails.
    pub fn evaluate(
        &mut self,
        examples: &[Example],
        adapter: Option<ActiveAdapter<'_, B>>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Evaluation> {
        let total = examples.iter().map(Example::target_tokens).sum();
        let mut found = Evaluation::default();
        let mut batch = FlatBatch::new();
        let mut sum = [0.0];
        for (number, example) in examples.iter().enumerate() {
            self.check_length(number, example.input_ids.len())?;
            batch.push_causal(&example.input_ids, &example.target_mask)?;
            found.examples += 1;
            let next = examples.get(number + 1).map(|next| next.input_ids.len());
            if next.is_some_and(|next| batch.tokens() + next <= self.max_tokens()) {
                continue;
            }
            self.forward(&batch, adapter)?;
            self.backend.clear(&mut self.loss)?;
            self.model.loss(self.backend, &self.on_device, &mut self.workspace, &mut self.loss, None)?;
            self.backend.download(&self.loss, &mut sum)?;
            found.total_loss += f64::from(sum[0]);
            found.target_tokens += batch.target_tokens();
            batch.clear();
            progress(Progress { done: found.target_tokens, total });
        }
        Ok(found)
    }

    /// The log-probabilities of a text's tokens after the first, each with the `top` likeliest in its place.
    ///
    /// # Errors
    /// When the text is empty or does not fit, the device fails, or a logit is not finite.
    pub fn token_logprobs(
        &mut self,
        ids: &[u32],
        adapter: Option<ActiveAdapter<'_, B>>,
        top: usize,
    ) -> Result<Vec<TokenLogprobs>> {
        self.check_length(0, ids.len())?;
        let mut batch = FlatBatch::new();
        batch.push_causal(ids, &vec![true; ids.len()])?;
        self.forward(&batch, adapter)?;
        let vocab = self.model.decoder().vocab_size;
        let mut found = Vec::with_capacity(ids.len());
        let visit = |start: usize, logits: &[f32]| {
            let rows = logits.chunks_exact(vocab).zip(&ids[start + 1..]);
            found.extend(rows.map(|(row, &token)| TokenLogprobs::of(row, token, top)));
        };
        self.model.target_logits(self.backend, &self.on_device, &mut self.workspace, visit)?;
        found
            .into_iter()
            .enumerate()
            .map(|(place, logprobs)| {
                let reason =
                    || format!("those of token {} are not all finite; the weights are damaged", place + 1);
                logprobs.ok_or_else(|| Error::Logits(reason()))
            })
            .collect()
    }

    fn max_tokens(&self) -> usize {
        self.workspace.plan().max_tokens
    }

    fn check_length(&self, number: usize, tokens: usize) -> Result<()> {
        let limit = self.max_tokens().min(self.model.positions());
        if (1..=limit).contains(&tokens) {
            return Ok(());
        }
        Err(Error::Prompt(format!(
            "row {} has {tokens} tokens; from 1 to {limit} can be evaluated. Set max_length to cut longer rows",
            number + 1
        )))
    }

    fn forward(&mut self, batch: &FlatBatch, adapter: Option<ActiveAdapter<'_, B>>) -> Result<()> {
        self.on_device.load(self.backend, batch)?;
        self.model.forward_only(self.backend, &self.on_device, adapter, &mut self.workspace)?;
        Ok(())
    }
}

/// The mean loss of the examples' targets, under the base or an adapter, in memory of its own.
///
/// # Errors
/// As [`Evaluator::new`] and [`Evaluator::evaluate`].
pub fn evaluate<B: Backend>(
    backend: &B,
    model: &Model<B>,
    adapter: Option<ActiveAdapter<'_, B>>,
    examples: &[Example],
    progress: &mut dyn FnMut(Progress),
) -> Result<Evaluation> {
    Evaluator::for_examples(backend, model, examples)?.evaluate(examples, adapter, progress)
}
