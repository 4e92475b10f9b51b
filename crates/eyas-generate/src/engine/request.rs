//! What an engine is asked, and what it says.

use super::AdapterId;
use crate::Error;
use crate::sampling::{SamplingParams, TokenLogprobs};

/// A sequence to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// How to choose tokens, and when to stop. Stop texts are watched by [`crate::Generator`].
    pub params: SamplingParams,
    /// The adapter to use; `None` for the base.
    pub adapter: Option<AdapterId>,
    /// Tells apart the draws of several answers to one prompt that share a seed.
    pub stream: u32,
    /// Report the log-probabilities of the prompt's tokens after the first, each with so many likeliest ones in its
    /// place. Nothing of such a prompt is taken from the cache.
    pub prompt_logprobs: Option<usize>,
}

impl Request {
    /// One answer.
    pub fn new(prompt: Vec<u32>, params: SamplingParams, adapter: Option<AdapterId>) -> Self {
        Self { prompt, params, adapter, stream: 0, prompt_logprobs: None }
    }
}

/// Names a sequence for as long as the engine lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub(super) u64);

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it.
    Eos,
    /// A stop text came up.
    Stop,
    /// It reached `max_new_tokens`, or the end of its slot.
    Length,
    /// Whoever asked wanted no more of it. The engine itself never says so.
    Interrupted,
}

/// What a step made of one sequence.
#[derive(Debug)]
pub enum Event {
    /// Log-probabilities of prompt tokens, in their order from the second on; they come in pieces, before the first
    /// token.
    Prompt {
        /// The sequence.
        sequence: SequenceId,
        /// Those of the next tokens of the prompt.
        logprobs: Vec<TokenLogprobs>,
    },
    /// A token.
    Token {
        /// The sequence.
        sequence: SequenceId,
        /// The token's id; the one that ended the answer is among the events.
        token: u32,
        /// Where they were asked for.
        logprobs: Option<TokenLogprobs>,
        /// Set on the last token. The sequence is gone then.
        finish: Option<FinishReason>,
    },
    /// The sequence cannot go on and is gone; others are not affected.
    Failed {
        /// The sequence.
        sequence: SequenceId,
        /// Why.
        error: Error,
    },
}
