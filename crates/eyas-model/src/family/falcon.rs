//! Falcon in its three layouts: 7B (multi-query, parallel), the new decoder architecture (40B, 180B, 11B), and
//! falcon-rw (sequential, ALiBi, biases), under the names of old and new configurations.

use eyas_backend::{Activation, NormKind, NormSpec, QkvLayout};

use super::{MAX_BLOCKS, MAX_HEADS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH, divide, llama, unsupported};
use crate::Result;
use crate::config::Config;
use crate::decoder::{Attention, Biases, Decoder, Mlp, ModuleNames, Positions, Wiring};

const NAMES: ModuleNames = ModuleNames {
    embedding: "transformer.word_embeddings",
    blocks: "transformer.h",
    qkv: &["self_attention.query_key_value"],
    attention_out: "self_attention.dense",
    mlp_in: &["mlp.dense_h_to_4h"],
    mlp_out: "mlp.dense_4h_to_h",
    norm1: "input_layernorm",
    norm2: "post_attention_layernorm",
    head_norms: ["", ""],
    final_norm: "transformer.ln_f",
    head: "lm_head",
};

pub(super) fn describe(config: &Config) -> Result<Decoder> {
    let hidden_size = config.size(&["hidden_size", "n_embed"], MAX_WIDTH)?;
    let heads = config.size(&["num_attention_heads", "n_head"], MAX_HEADS)?;
    let head_dim = divide(config, "num_attention_heads", hidden_size, heads)?;
    let new_architecture = config.flag("new_decoder_architecture", false)?
        || (config.text("model_type")? == Some("RefinedWeb") && config.get(&["n_head_kv"]).is_some());
    let multi_query = config.flag("multi_query", true)?;
    let layout = if new_architecture {
        let kv_heads = config.optional_size(&["num_kv_heads", "n_head_kv"], MAX_HEADS)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(
                config.error("num_kv_heads", format!("{kv_heads} does not divide the {heads} query heads"))
            );
        }
        QkvLayout::grouped(heads, kv_heads, head_dim)
    } else if multi_query {
        QkvLayout::contiguous(heads, 1, head_dim)
    } else {
        QkvLayout::grouped(heads, heads, head_dim)
    };

    let parallel = new_architecture || config.flag("parallel_attn", true)?;
    let norms = config.optional_size(&["num_ln_in_parallel_attn"], 2)?.unwrap_or(2);
    let wiring = match (parallel, new_architecture && norms == 2) {
        (false, _) => Wiring::Sequential,
        (true, false) => Wiring::ParallelOneNorm,
        (true, true) => Wiring::ParallelTwoNorms,
    };
    let names = match wiring {
        Wiring::ParallelTwoNorms => ModuleNames { norm1: "ln_attn", norm2: "ln_mlp", ..NAMES },
        _ => NAMES,
    };

    let activation = match config.text("activation")?.unwrap_or("gelu") {
        "gelu" => Activation::Gelu,
        "gelu_pytorch_tanh" | "gelu_new" => Activation::GeluTanh,
        other => return Err(unsupported(config, "activation", other)),
    };
    let bias = config.flag("bias", false)?;
    let positions = if config.flag("alibi", false)? {
        Positions::Alibi
    } else {
        Positions::Rope(llama::rope(config, head_dim)?)
    };
    let blocks = config.size(&["num_hidden_layers", "n_layer"], MAX_BLOCKS)?;
    Ok(Decoder {
        family: "Falcon",
        vocab_size: config.size(&["vocab_size"], MAX_VOCAB)?,
        hidden_size,
        attention: Attention { layout, scale: 1.0 / (head_dim as f32).sqrt(), head_norm_eps: None },
        positions,
        norm: NormSpec {
            kind: NormKind::LayerNorm,
            eps: config.positive(&["layer_norm_epsilon"])?.unwrap_or(1e-5) as f32,
        },
        mlp: Mlp {
            activation,
            intermediate_size: config
                .optional_size(&["ffn_hidden_size"], MAX_WIDTH)?
                .unwrap_or(4 * hidden_size),
        },
        wiring,
        biases: Biases { qkv: bias, attention_out: bias, mlp: bias },
        tie_word_embeddings: config.flag("tie_word_embeddings", true)?,
        max_positions: config.optional_size(&["max_position_embeddings"], MAX_POSITIONS)?.unwrap_or(2048),
        windows: vec![None; blocks],
        names,
    })
}
