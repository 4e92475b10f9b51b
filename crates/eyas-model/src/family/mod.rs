//! From a configuration to a [`Decoder`]: one file a family. To add a family, describe it here and in a file of its
//! own; forward and backward need no change as long as its parts are known.

mod falcon;
mod gguf;
mod llama;
mod write;

use crate::config::Config;
use crate::decoder::Decoder;
use crate::{Error, Result};

pub(crate) use gguf::{RowOrder, gguf_tensor};
pub(crate) use write::{check_same, to_config};

/// Limits that keep products of sizes far from overflow; every published model is well inside them.
pub(crate) const MAX_WIDTH: usize = 1 << 20;
pub(crate) const MAX_VOCAB: usize = 1 << 22;
pub(crate) const MAX_BLOCKS: usize = 4096;
pub(crate) const MAX_HEADS: usize = 1 << 14;
pub(crate) const MAX_POSITIONS: usize = 1 << 26;

/// Describes the model of a `config.json`.
///
/// # Errors
/// When the architecture is unknown, a needed key is missing, or sizes contradict each other.
pub fn from_config(config: &Config) -> Result<Decoder> {
    let model_type = config.text("model_type")?.unwrap_or_default();
    let decoder = match model_type {
        "falcon" | "RefinedWeb" | "RefinedWebModel" => falcon::describe(config)?,
        "llama" | "mistral" | "qwen2" | "qwen3" => llama::describe(config, model_type)?,
        other => {
            let architectures = config.texts("architectures")?.join(", ");
            return Err(config.error(
                "model_type",
                format!(
                    "is `{other}` (architectures: {}), which eyas does not know. It knows falcon, RefinedWeb, \
                     RefinedWebModel, llama, mistral, qwen2 and qwen3",
                    if architectures.is_empty() { "none named" } else { &architectures }
                ),
            ));
        }
    };
    check(config, &decoder)?;
    Ok(decoder)
}

/// Describes the model of a GGUF file.
///
/// # Errors
/// As [`from_config`].
pub fn from_gguf(metadata: &eyas_checkpoint::gguf::Metadata) -> Result<Decoder> {
    let config = gguf::as_config(metadata)?;
    from_config(&config)
}

fn check(config: &Config, decoder: &Decoder) -> Result<()> {
    let layout = &decoder.attention.layout;
    let wrong = |reason: String| -> Result<()> { Err(config.error("num_attention_heads", reason)) };
    if !layout.heads.is_multiple_of(layout.kv_heads) {
        return wrong(format!(
            "{} query heads cannot share {} key/value heads evenly",
            layout.heads, layout.kv_heads
        ));
    }
    if !layout.head_dim.is_multiple_of(2) && matches!(decoder.positions, crate::decoder::Positions::Rope(_)) {
        return wrong(format!("a head of {} elements cannot be rotated in pairs", layout.head_dim));
    }
    Ok(())
}

/// Divides, or says which key does not fit.
fn divide(config: &Config, key: &str, total: usize, parts: usize) -> Result<usize> {
    if parts == 0 || !total.is_multiple_of(parts) {
        return Err(config.error(key, format!("{parts} does not divide the hidden size {total}")));
    }
    Ok(total / parts)
}

fn unsupported(config: &Config, key: &str, what: &str) -> Error {
    config.error(key, format!("{what} is not supported"))
}
