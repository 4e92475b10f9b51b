//! Text generation: key/value cache, sampling, streaming, comparison of base and adapter.
//!
//! An [`Engine`] decodes token by token for several sequences at once; a [`Generator`] puts a tokenizer before it.
//! [`ChatSession`] remembers turns and makes prompts, [`Tidy`] tidies answers, [`compare()`] sets base and
//! adapter side by side, and [`Evaluator`] measures the loss on held-out rows.

pub mod bench;
pub mod compare;
pub mod conversation;
pub mod engine;
mod error;
pub mod evaluate;
pub mod generate;
pub mod postprocess;
pub mod sampling;
pub mod stream;

pub use compare::{Comparison, HeldOut, Side, compare};
pub use conversation::{ChatSession, Exchange, Prompt, Reply};
pub use engine::{AdapterId, Engine, EngineOptions, Event, FinishReason, Request, SequenceId};
pub use error::{Error, Result};
pub use evaluate::{Evaluation, Evaluator, Progress, evaluate};
pub use generate::{Answer, Generator, TextEvent};
pub use postprocess::{Tidy, TidyStream, postprocess};
pub use sampling::{Sampler, SamplingParams, TokenLogprobs};
