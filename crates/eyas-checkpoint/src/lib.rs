//! Readers of model weights on disk: safetensors shards, PyTorch `.bin`, GGUF.
//!
//! This crate knows files, not models. [`Checkpoint::open`] takes a Hugging Face folder or a single file, checks
//! every header against the file it came from, and then hands out tensors by name: their [`TensorInfo`], their
//! values as `f32` in row blocks, or their stored bytes.
//!
//! Nothing is read before it is asked for. Files are mapped, values are decoded straight from the map, and the pages
//! behind them are dropped afterwards, so that resident memory stays at the caller's buffer however large the shard
//! is. Nothing is cached either, but for the [`Checkpoint`]'s one `.bin` tensor that is being read by rows: a caller
//! that ties two names should ask for one of them only.
//!
//! No input makes the crate panic, run code, or allocate more than a small multiple of the file's own length.
//!
//! ```no_run
//! let checkpoint = eyas_checkpoint::Checkpoint::open("models/SmolLM2-135M-Instruct")?;
//! let embedding = checkpoint.info("model.embed_tokens.weight")?;
//! let mut block = Vec::new();
//! for start in (0..embedding.rows()).step_by(1024) {
//!     let end = (start + 1024).min(embedding.rows());
//!     checkpoint.read_rows_f32(&embedding.name, start..end, &mut block)?;
//! }
//! # Ok::<(), eyas_checkpoint::Error>(())
//! ```

#![warn(missing_docs)]

mod atomic;
mod checkpoint;
mod decode;
mod error;
pub mod gguf;
pub mod layout;
mod locate;
mod mapped;
mod pytorch;
mod safetensors;
mod shards;
mod tensor;

pub use atomic::{check_free, write_atomic, write_folder};
pub use checkpoint::{Checkpoint, Format};
pub use error::{Error, Result};
pub use safetensors::{SafetensorsFile, SafetensorsWriter, TensorView, write_safetensors};
pub use shards::ShardedWriter;
pub use tensor::{TensorDtype, TensorInfo};
