//! Requests and answers in the shapes that OpenAI's clients know.

pub(crate) mod chat;
pub(crate) mod completion;
mod error;
pub(crate) mod logprobs;
mod sampling;

pub(crate) use error::ApiError;
pub(crate) use sampling::Common;
