//! Rows of a data set to conversations, tokens and flat batches.
//!
//! The way of a row: [`dataset`] reads it, [`load()`] cleans it ([`clean`]) and takes personal data out
//! ([`anonymise`]), [`split`] puts it on one side, [`prompt`] and [`template`] render its turns, [`encode`] makes
//! ids and a target mask with the model's [`tokenizer`], [`sampler`] orders the rows of an epoch and [`batches`]
//! lays them end to end. [`Report`] counts what became of every row.

pub mod anonymise;
pub mod batches;
pub mod builtin;
pub mod clean;
pub mod conversation;
pub mod dataset;
pub mod encode;
mod error;
mod hash;
pub mod load;
pub mod prompt;
mod report;
pub mod sampler;
pub mod split;
pub mod template;
pub mod tokenizer;

pub use batches::{Step, Steps, eval_batches};
pub use conversation::{Role, Sample, Turn};
pub use encode::{EncodeOptions, Encoded, Encoder, Example, Truncation};
pub use error::{Error, Result, RowPosition};
pub use load::{LoadOptions, load, load_all};
pub use prompt::PromptFormat;
pub use report::Report;
pub use sampler::{Order, Position, Sampler};
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
