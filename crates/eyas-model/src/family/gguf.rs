//! GGUF models of the Llama family: metadata as a configuration, and where each tensor is.

use eyas_checkpoint::gguf::{Array, Metadata, Value};
use serde_json::json;

use crate::config::Config;
use crate::decoder::Decoder;
use crate::{Error, Result};

/// What must be done to a tensor's rows to have them in the order of Hugging Face.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// Nothing.
    Same,
    /// The rows of each head come in interleaved rotary pairs, as llama.cpp stores Llama's queries and keys.
    Interleaved {
        /// Rows of a head.
        head_dim: usize,
    },
}

/// The metadata in the words of `config.json`.
pub(super) fn as_config(metadata: &Metadata) -> Result<Config> {
    let architecture = metadata.str("general.architecture")?;
    let model_type = match architecture {
        "llama" | "qwen2" | "qwen3" => architecture,
        other => {
            return Err(Error::Config {
                origin: "GGUF key `general.architecture`".into(),
                reason: format!("`{other}` is not supported; llama, qwen2 and qwen3 are"),
            });
        }
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let size = |name: &str| metadata.u32(&key(name));
    let optional = |name: &str| metadata.contains(&key(name)).then(|| size(name)).transpose();
    let heads = size("attention.head_count")?;
    let vocabulary = match metadata.get("tokenizer.ggml.tokens") {
        Some(Value::Array(Array::String(tokens))) => tokens.len() as u64,
        _ => u64::from(size("vocab_size")?),
    };
    let mut rope = json!({ "rope_type": "default" });
    if metadata.contains(&key("rope.freq_base")) {
        rope["rope_theta"] = json!(metadata.f32(&key("rope.freq_base"))?);
    }
    if metadata.contains(&key("rope.scaling.type")) {
        match metadata.str(&key("rope.scaling.type"))? {
            "none" => {}
            "linear" => {
                rope["rope_type"] = json!("linear");
                rope["factor"] = json!(metadata.f32(&key("rope.scaling.factor"))?);
            }
            other => {
                return Err(Error::Config {
                    origin: format!("GGUF key `{}`", key("rope.scaling.type")),
                    reason: format!("`{other}` is not supported; none and linear are"),
                });
            }
        }
    }
    let config = json!({
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": size("embedding_length")?,
        "num_hidden_layers": size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": optional("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": optional("attention.key_length")?,
        "intermediate_size": size("feed_forward_length")?,
        "max_position_embeddings": optional("context_length")?,
        "rms_norm_eps": metadata.f32(&key("attention.layer_norm_rms_epsilon"))?,
        "rope_parameters": rope,
        // Whether there is a head of its own is seen from the tensors.
        "tie_word_embeddings": true,
    });
    Config::parse("GGUF metadata".into(), &config.to_string())
}

/// The GGUF name and row order of a Hugging Face tensor; `None` for a tensor that GGUF does not have.
pub(crate) fn gguf_tensor(decoder: &Decoder, name: &str) -> Option<(String, RowOrder)> {
    let names = &decoder.names;
    let (module, kind) = name.rsplit_once('.')?;
    for (ours, theirs) in
        [(names.embedding, "token_embd"), (names.final_norm, "output_norm"), (names.head, "output")]
    {
        if module == ours {
            return Some((format!("{theirs}.{kind}"), RowOrder::Same));
        }
    }
    let (block, module) = module.strip_prefix(names.blocks)?.strip_prefix('.')?.split_once('.')?;
    let head_dim = decoder.attention.layout.head_dim;
    let interleaved =
        if decoder.family == "Llama" { RowOrder::Interleaved { head_dim } } else { RowOrder::Same };
    let (theirs, order) = match module {
        "self_attn.q_proj" => ("attn_q", interleaved),
        "self_attn.k_proj" => ("attn_k", interleaved),
        "self_attn.v_proj" => ("attn_v", RowOrder::Same),
        "self_attn.o_proj" => ("attn_output", RowOrder::Same),
        "self_attn.q_norm" => ("attn_q_norm", RowOrder::Same),
        "self_attn.k_norm" => ("attn_k_norm", RowOrder::Same),
        "mlp.gate_proj" => ("ffn_gate", RowOrder::Same),
        "mlp.up_proj" => ("ffn_up", RowOrder::Same),
        "mlp.down_proj" => ("ffn_down", RowOrder::Same),
        "input_layernorm" => ("attn_norm", RowOrder::Same),
        "post_attention_layernorm" => ("ffn_norm", RowOrder::Same),
        _ => return None,
    };
    Some((format!("blk.{block}.{theirs}.{kind}"), order))
}
