//! The `Backend` trait, its CPU implementation, and the flat batch they work on.

pub mod batch;
mod error;

pub use batch::{FlatBatch, IGNORE_INDEX};
pub use error::{Error, Result};
