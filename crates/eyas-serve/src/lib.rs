//! The server: an HTTP API as the ecosystem speaks it, the chat page, and the safety around them.
//!
//! One thread owns the engine and runs every sequence one step at a time (`worker`); handlers put jobs into a bounded
//! queue (`queue`) and read what comes of them from a channel each. A handler that is dropped, because its client went
//! away, closes its channels, and the worker frees the slots before its next step.

pub mod answerer;
mod care;
pub mod config;
mod error;
pub mod fake;
mod generator;
mod http;
mod metrics;
pub mod models;
mod openai;
mod prompt;
mod queue;
mod random;
pub mod server;
mod storage;
mod worker;

pub use answerer::{Answerer, Ask, Said, Ticket};
pub use care::{CareMode, CareSettings};
pub use config::{Config, Limits};
pub use error::{Error, Result};
pub use generator::EngineAnswerer;
pub use models::{Models, ServedModel};
pub use server::serve;
pub use storage::Storage;
