//! From logits to a token: penalties, truncation and the draw.
//!
//! Bias and processors run in transformers' order: logit bias, repetition penalty, temperature, top-k, top-p, min-p.
//! The last four change nothing when sampling is off. The published notebook set `temperature` and `top_p` and left
//! sampling off, so that its answers were greedy; here the recipe samples, and [`SamplingParams::without_effect`]
//! tells which settings a greedy run ignores.

mod params;
mod sampler;
mod softmax;

pub use params::SamplingParams;
pub use sampler::{Choice, Sampler, SamplerScratch, TokenLogprobs};
