//! A sequence in its slot: what is pending, and the choice of its next token.

use std::collections::VecDeque;

use super::{AdapterId, Event, FinishReason, SequenceId};
use crate::sampling::{Sampler, SamplerScratch};

/// A sequence in its slot.
#[derive(Debug)]
pub(super) struct Sequence {
    pub id: SequenceId,
    pub slot: usize,
    pub adapter: Option<AdapterId>,
    pub sampler: Sampler,
    /// Tokens not yet in the cache: the rest of the prompt, then always the last token chosen.
    pub pending: VecDeque<u32>,
    pub produced: usize,
    /// Whether it may still take the start of its prompt from another slot; see [`super::sharing`].
    pub may_share: bool,
    /// Alternatives to report for each token of the prompt, if any log-probabilities are.
    pub prompt_logprobs: Option<usize>,
}

impl Sequence {
    /// Whether the tokens that are pending are the prompt's and their log-probabilities are wanted.
    pub fn scores_prompt(&self) -> bool {
        self.prompt_logprobs.is_some() && self.produced == 0
    }

    /// Chooses a token. `room` is how many more tokens fit into the slot.
    pub fn advance(&mut self, logits: &mut [f32], room: usize, scratch: &mut SamplerScratch) -> Event {
        let choice = match self.sampler.choose(logits, scratch) {
            Ok(choice) => choice,
            Err(error) => return Event::Failed { sequence: self.id, error },
        };
        self.produced += 1;
        let params = self.sampler.params();
        let finish = if !params.ignore_eos && params.eos_token_id.contains(&choice.token) {
            Some(FinishReason::Eos)
        } else if self.produced >= params.max_new_tokens || room == 0 {
            Some(FinishReason::Length)
        } else {
            self.pending.push_back(choice.token);
            None
        };
        Event::Token { sequence: self.id, token: choice.token, logprobs: choice.logprobs, finish }
    }
}
