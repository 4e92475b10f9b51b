//! The shapes of published models, by name: for measuring and planning without their weights.

use serde_json::json;

use crate::config::Config;
use crate::decoder::Decoder;
use crate::{Error, Result, family};

/// The names that [`published`] knows.
pub const SHAPES: [&str; 9] = [
    "falcon-7b",
    "falcon-40b",
    "llama-2-7b",
    "llama-3-8b",
    "llama-3.2-1b",
    "mistral-7b",
    "qwen2.5-7b",
    "qwen3-8b",
    "smollm2-135m",
];

/// The description of a published model, from the sizes in its `config.json`.
///
/// # Errors
/// When the name is not among [`SHAPES`].
pub fn published(name: &str) -> Result<Decoder> {
    let llama = |model_type: &str, sizes: [usize; 6], context: usize, theta: f64, tied: bool| {
        let [vocab, hidden, intermediate, layers, heads, kv_heads] = sizes;
        json!({
            "model_type": model_type, "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": intermediate,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "max_position_embeddings": context, "rope_theta": theta, "tie_word_embeddings": tied,
            "rms_norm_eps": 1e-5, "hidden_act": "silu",
        })
    };
    let config = match name {
        "falcon-7b" => json!({
            "model_type": "falcon", "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32,
            "num_attention_heads": 71, "multi_query": true, "parallel_attn": true, "bias": false, "alibi": false,
            "max_position_embeddings": 2048,
        }),
        "falcon-40b" => json!({
            "model_type": "falcon", "vocab_size": 65024, "hidden_size": 8192, "num_hidden_layers": 60,
            "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": true, "bias": false,
            "alibi": false, "max_position_embeddings": 2048,
        }),
        "llama-2-7b" => llama("llama", [32000, 4096, 11008, 32, 32, 32], 4096, 1e4, false),
        "llama-3-8b" => llama("llama", [128_256, 4096, 14336, 32, 32, 8], 8192, 5e5, false),
        "llama-3.2-1b" => llama("llama", [128_256, 2048, 8192, 16, 32, 8], 131_072, 5e5, true),
        "mistral-7b" => llama("mistral", [32768, 4096, 14336, 32, 32, 8], 32768, 1e6, false),
        "qwen2.5-7b" => llama("qwen2", [152_064, 3584, 18944, 28, 28, 4], 32768, 1e6, false),
        "qwen3-8b" => {
            let mut config = llama("qwen3", [151_936, 4096, 12288, 36, 32, 8], 40960, 1e6, false);
            config["head_dim"] = json!(128);
            config
        }
        "smollm2-135m" => llama("llama", [49152, 576, 1536, 30, 9, 3], 8192, 1e5, true),
        other => {
            return Err(Error::Config {
                origin: format!("shape `{other}`"),
                reason: format!("is not known. Known are {}", SHAPES.join(", ")),
            });
        }
    };
    family::from_config(&Config::parse(format!("shape `{name}`"), &config.to_string())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_has_the_parameters_it_is_known_for() {
        let billions = [7.0, 41.3, 6.7, 8.0, 1.2, 7.2, 7.6, 8.2, 0.13];
        for (name, billions) in SHAPES.into_iter().zip(billions) {
            let found = published(name).unwrap().parameters() as f64 / 1e9;
            assert!((found / billions - 1.0).abs() < 0.05, "{name}: {found}");
        }
    }

    #[test]
    fn an_unknown_shape_names_the_known() {
        assert!(published("falcon-7").unwrap_err().to_string().contains("falcon-7b"));
    }
}
