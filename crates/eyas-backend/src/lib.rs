//! The [`Backend`] trait, its CPU implementation, and the flat batch they work on.
//!
//! A backend is about thirty operations at a transformer's grain, not a tensor library: a projection with its
//! low-rank update, a norm, rotary positions, attention, an activation, cross-entropy, an optimiser step.
//! Everything above it (the decoder, the training loop, generation) is written once, generic over `Backend`.

pub mod backend;
pub mod batch;
pub mod cpu;
mod error;
pub mod memory;
pub mod moments;
pub mod parity;
pub mod philox;
pub mod spec;

pub use backend::{Backend, DeviceTensor, OpTime};
pub use batch::{FlatBatch, IGNORE_INDEX, reach};
pub use cpu::{CpuBackend, CpuOptions, MatmulKernel};
pub use error::{Error, Result};
pub use memory::{ProjectionShape, StepShape};
pub use moments::{HostMoments, MomentFormat, MomentStorage};
pub use spec::{
    Activation, AdamW, Adapter, AttentionSpec, Dropout, Dtype, HostMatrix, Linear, LoraSlot, NormKind,
    NormSpec, Projection, QkvLayout, Rope, Storage, Write,
};
