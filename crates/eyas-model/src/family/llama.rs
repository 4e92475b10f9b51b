//! The Llama family: Llama 2 and 3, Mistral, Qwen2 (biases), Qwen3 (head norms), SmolLM2 (tied).

use eyas_backend::{Activation, NormKind, NormSpec, QkvLayout};

use super::{MAX_BLOCKS, MAX_HEADS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH, divide, unsupported};
use crate::Result;
use crate::config::Config;
use crate::decoder::{Attention, Biases, Decoder, Mlp, ModuleNames, Positions, Wiring};
use crate::rope::{RopeScaling, RopeSpec};

const NAMES: ModuleNames = ModuleNames {
    embedding: "model.embed_tokens",
    blocks: "model.layers",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    attention_out: "self_attn.o_proj",
    mlp_in: &["mlp.gate_proj", "mlp.up_proj"],
    mlp_out: "mlp.down_proj",
    norm1: "input_layernorm",
    norm2: "post_attention_layernorm",
    head_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    final_norm: "model.norm",
    head: "lm_head",
};

pub(super) fn describe(config: &Config, model_type: &str) -> Result<Decoder> {
    let hidden_size = config.size(&["hidden_size"], MAX_WIDTH)?;
    let heads = config.size(&["num_attention_heads"], MAX_HEADS)?;
    let kv_heads = config.optional_size(&["num_key_value_heads"], MAX_HEADS)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(config
            .error("num_key_value_heads", format!("{kv_heads} does not divide the {heads} query heads")));
    }
    let head_dim = match config.optional_size(&["head_dim"], MAX_WIDTH)? {
        Some(size) => size,
        None => divide(config, "num_attention_heads", hidden_size, heads)?,
    };
    match config.text("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => {}
        other => return Err(unsupported(config, "hidden_act", other)),
    }
    let attention_bias = config.flag("attention_bias", false)?;
    let family = match model_type {
        "mistral" => "Mistral",
        "qwen2" => "Qwen2",
        "qwen3" => "Qwen3",
        _ => "Llama",
    };
    let rms_norm_eps = config.positive(&["rms_norm_eps"])?.unwrap_or(1e-6) as f32;
    let blocks = config.size(&["num_hidden_layers"], MAX_BLOCKS)?;
    Ok(Decoder {
        family,
        vocab_size: config.size(&["vocab_size"], MAX_VOCAB)?,
        hidden_size,
        attention: Attention {
            layout: QkvLayout::contiguous(heads, kv_heads, head_dim),
            scale: 1.0 / (head_dim as f32).sqrt(),
            head_norm_eps: (model_type == "qwen3").then_some(rms_norm_eps),
        },
        positions: Positions::Rope(rope(config, head_dim)?),
        norm: NormSpec { kind: NormKind::RmsNorm, eps: rms_norm_eps },
        mlp: Mlp {
            activation: Activation::SwiGlu,
            intermediate_size: config.size(&["intermediate_size"], MAX_WIDTH)?,
        },
        wiring: Wiring::Sequential,
        biases: Biases {
            qkv: attention_bias || model_type == "qwen2",
            attention_out: attention_bias && model_type != "qwen2",
            mlp: config.flag("mlp_bias", false)?,
        },
        tie_word_embeddings: config.flag("tie_word_embeddings", false)?,
        max_positions: config.optional_size(&["max_position_embeddings"], MAX_POSITIONS)?.unwrap_or(2048),
        windows: windows(config, model_type, blocks)?,
        names: NAMES,
    })
}

/// Each block's sliding window. Mistral uses its window everywhere; Qwen only when told to, from a block on, or
/// block by block as `layer_types` lists.
fn windows(config: &Config, model_type: &str, blocks: usize) -> Result<Vec<Option<usize>>> {
    let used = match model_type {
        "mistral" => true,
        "qwen2" | "qwen3" => config.flag("use_sliding_window", false)?,
        _ => false,
    };
    let window = if used { config.optional_size(&["sliding_window"], MAX_POSITIONS)? } else { None };
    let kinds = config.texts("layer_types")?;
    if window.is_none() || kinds.is_empty() {
        let first = if model_type == "mistral" {
            0
        } else {
            config.optional_size(&["max_window_layers"], MAX_BLOCKS)?.unwrap_or(0)
        };
        return Ok((0..blocks).map(|block| window.filter(|_| block >= first)).collect());
    }
    if kinds.len() != blocks {
        return Err(
            config.error("layer_types", format!("lists {} layers; the model has {blocks}", kinds.len()))
        );
    }
    kinds
        .into_iter()
        .map(|kind| match kind {
            "sliding_attention" => Ok(window),
            "full_attention" => Ok(None),
            other => Err(unsupported(config, "layer_types", other)),
        })
        .collect()
}

/// Rotary settings, in the old spelling (`rope_theta`, `rope_scaling`) or the new one (`rope_parameters`).
pub(super) fn rope(config: &Config, head_dim: usize) -> Result<RopeSpec> {
    let parameters = match config.object("rope_parameters")? {
        Some(parameters) => parameters,
        None => config.object("rope_scaling")?.unwrap_or_else(|| config.empty()),
    }
    .with_defaults_from(config, &["rope_theta", "partial_rotary_factor"]);
    let theta = parameters.positive(&["rope_theta"])?.unwrap_or(10_000.0);
    let factor = |key: &str| {
        parameters.positive(&[key])?.ok_or_else(|| parameters.error(key, "is missing; the scaling needs it"))
    };
    let kind = match parameters.text("rope_type")? {
        Some(kind) => kind,
        None => parameters.text("type")?.unwrap_or("default"),
    };
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: factor("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: factor("factor")?,
            low_freq_factor: factor("low_freq_factor")?,
            high_freq_factor: factor("high_freq_factor")?,
            original_max_positions: factor("original_max_position_embeddings")?,
        },
        other => {
            return Err(parameters
                .error("rope_type", format!("`{other}` is not supported; default, linear and llama3 are")));
        }
    };
    let share = parameters.positive(&["partial_rotary_factor"])?.unwrap_or(1.0);
    let dim = (head_dim as f64 * share) as usize / 2 * 2;
    if dim == 0 || dim > head_dim {
        return Err(parameters
            .error("partial_rotary_factor", format!("{share} rotates {dim} of {head_dim} elements")));
    }
    Ok(RopeSpec { theta, dim, scaling })
}
