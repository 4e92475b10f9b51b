//! Decoder descriptions, LoRA, and the explicit forward and backward of a decoder.
//!
//! A model is a [`Decoder`]: a description of norms, positions, attention, MLP, biases and wiring, made from
//! `config.json` or GGUF metadata by [`family`]. [`ModelSource`] streams its weights to a device; [`Model`] runs
//! forward, loss and backward over flat batches in the memory of a [`Workspace`]; [`LoraLayout`] and [`LoraAdapter`]
//! are PEFT's adapters.

pub mod activations;
pub mod adapter;
pub mod block;
mod cache;
pub mod config;
mod decode;
pub mod decoder;
mod device_batch;
mod error;
pub mod family;
mod footprint;
mod load;
mod loader;
mod lora;
mod merge;
mod model;
mod random;
mod rope;
pub mod shapes;
mod stream;

pub use activations::{MemoryPlan, Retain, Workspace};
pub use adapter::{AdapterSettings, LoraAdapter};
pub use block::ActiveAdapter;
pub use cache::Cache;
pub use decode::Recordings;
pub use decoder::Decoder;
pub use device_batch::DeviceBatch;
pub use error::{Error, Result};
pub use footprint::Footprint;
pub use load::{LoadOptions, ModelSource};
pub use lora::{LoraConfig, LoraLayout, LoraTarget, Modules};
pub use merge::{MergeOptions, Merged, merge};
pub use model::Model;
pub use rope::{RopeScaling, RopeSpec};
