//! What the server needs of an engine.

use eyas_generate::{FinishReason, Result, SamplingParams, TokenLogprobs};

/// Names a sequence; the server never gives one twice.
pub type Ticket = u64;

/// A sequence to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Which of the served models, by its place.
    pub model: usize,
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// How to choose tokens, and when to stop.
    pub params: SamplingParams,
    /// Tells apart the draws of several answers to one prompt that share a seed.
    pub stream: u32,
    /// Report the log-probabilities of the prompt's tokens after the first, with so many likeliest ones.
    pub prompt_logprobs: Option<usize>,
}

/// What came of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Log-probabilities of prompt tokens in their order, from the second on; they come in pieces.
    Prompt(Vec<TokenLogprobs>),
    /// A token.
    Token {
        /// Its id.
        token: u32,
        /// Text that may be shown now: whole characters, sometimes none.
        text: String,
        /// Where they were asked for.
        logprobs: Option<TokenLogprobs>,
        /// Set on the last token. The sequence is gone then.
        finish: Option<FinishReason>,
    },
    /// The sequence cannot go on and is gone; the text says why.
    Failed(String),
}

/// Answers several sequences at once, a token of each at a step. It lives on one thread.
pub trait Answerer {
    /// Sequences that can be added now.
    fn free_slots(&self) -> usize;

    /// Prompt tokens that were found in the cache so far.
    fn reused_tokens(&self) -> u64 {
        0
    }

    /// Adds a sequence under a ticket.
    ///
    /// # Errors
    /// When it cannot run, or all slots are taken.
    fn submit(&mut self, ticket: Ticket, ask: Ask) -> Result<()>;

    /// Ends a sequence before its time, if it is there.
    fn remove(&mut self, ticket: Ticket);

    /// Runs every sequence one step and appends what came of it.
    ///
    /// # Errors
    /// When the device fails.
    fn step(&mut self, said: &mut Vec<(Ticket, Said)>) -> Result<()>;
}
