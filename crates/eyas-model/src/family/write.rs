//! From a model back to the `config.json` that transformers and vLLM read.

use serde_json::{Map, Value, json};

use eyas_backend::Dtype;
use eyas_checkpoint::gguf::Metadata;
use eyas_checkpoint::layout::CONFIG;

use crate::config::Config;
use crate::decoder::{Decoder, Positions};
use crate::load::ModelSource;
use crate::rope::{RopeScaling, RopeSpec};
use crate::{Error, Result};

/// Keys that are not true of an unquantised copy without the base's own Python files.
const LEFT_OUT: [&str; 3] = ["quantization_config", "auto_map", "_name_or_path"];

/// The names that Falcon's first configurations have, and those of today.
const OLD_FALCON: [(&str, &str); 4] = [
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_head_kv", "num_kv_heads"),
    ("n_embed", "hidden_size"),
];

/// The configuration of a copy of a model whose weights are dense, of type `dtype`.
///
/// # Errors
/// When the base's cannot be read, or holds what `config.json` has no words for.
pub(crate) fn to_config(source: &ModelSource, dtype: Dtype) -> Result<Value> {
    let decoder = source.decoder();
    let mut config = match source.checkpoint().gguf_metadata() {
        Some(metadata) => from_decoder(decoder, metadata)?,
        None => today(Config::read(&source.folder().join(CONFIG))?.into_values()),
    };
    for key in LEFT_OUT {
        config.shift_remove(key);
    }
    let name = match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    };
    // transformers 5 writes the shorter name and reads both; older ones know the longer alone.
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(key.into(), name.into());
    config.insert("tie_word_embeddings".into(), decoder.tie_word_embeddings.into());
    Ok(config.into())
}

/// Checks that a written model is described as the one that it was made from.
///
/// # Errors
/// When it is not, which is a fault of [`to_config`].
pub(crate) fn check_same(base: &Decoder, written: &Decoder) -> Result<()> {
    let mut base = base.clone();
    if let (Positions::Rope(before), Positions::Rope(after)) = (&mut base.positions, &written.positions)
        && same_frequencies(before, after)
    {
        before.scaling = after.scaling.clone();
    }
    if base == *written {
        return Ok(());
    }
    Err(Error::Config {
        origin: "config.json of the merged model".into(),
        reason: format!(
            "describes another model than the base's; report this as a bug. {base:?} became {written:?}"
        ),
    })
}

/// A configuration under the names that transformers has today.
fn today(mut config: Map<String, Value>) -> Map<String, Value> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if matches!(model_type.as_str(), "RefinedWeb" | "RefinedWebModel") {
        if model_type == "RefinedWeb" && config.contains_key("n_head_kv") {
            config.insert("new_decoder_architecture".into(), true.into());
        }
        for (old, new) in OLD_FALCON {
            if let Some(value) = config.shift_remove(old) {
                config.entry(new).or_insert(value);
            }
        }
        config.insert("model_type".into(), "falcon".into());
        config.insert("architectures".into(), json!(["FalconForCausalLM"]));
    }
    config
}

/// The configuration of a GGUF model.
fn from_decoder(decoder: &Decoder, metadata: &Metadata) -> Result<Map<String, Value>> {
    let Positions::Rope(rope) = &decoder.positions else {
        return Err(unsaid("its positions are not rotary"));
    };
    let model_type = decoder.family.to_lowercase();
    let layout = &decoder.attention.layout;
    let mut config = json!({
        "architectures": [format!("{}ForCausalLM", decoder.family)],
        "model_type": model_type,
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.mlp.intermediate_size,
        "num_hidden_layers": decoder.blocks(),
        "num_attention_heads": layout.heads,
        "num_key_value_heads": layout.kv_heads,
        "head_dim": layout.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": decoder.max_positions,
        "rms_norm_eps": shortest(decoder.norm.eps),
        "rope_theta": rope.theta,
        "rope_scaling": scaling(rope)?,
    });
    for (key, gguf) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        let gguf = format!("tokenizer.ggml.{gguf}_token_id");
        // Llama's own default would stand for what is not there, and end answers at another model's token.
        config[key] = if metadata.contains(&gguf) { metadata.u32(&gguf)?.into() } else { Value::Null };
    }
    match config {
        Value::Object(config) => Ok(config),
        _ => Ok(Map::new()),
    }
}

/// Rotary scaling as transformers spells it.
fn scaling(rope: &RopeSpec) -> Result<Value> {
    Ok(match &rope.scaling {
        RopeScaling::Default => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": *original_max_positions as u64,
        }),
        RopeScaling::Divisors(_) => {
            // GGUF keeps Llama 3's divisors, not what they were made from. Of that there are two published sets.
            let found = [8.0, 32.0].into_iter().find_map(|factor| {
                let scaling = RopeScaling::Llama3 {
                    factor,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_positions: 8192.0,
                };
                let candidate = RopeSpec { scaling, ..rope.clone() };
                same_frequencies(rope, &candidate).then_some(candidate)
            });
            let found = found.ok_or_else(|| unsaid("its rotary divisors are not those of a Llama 3"))?;
            return self::scaling(&found);
        }
    })
}

fn same_frequencies(a: &RopeSpec, b: &RopeSpec) -> bool {
    let close = |(a, b): (f32, f32)| (a - b).abs() <= 1e-5 * a.abs().max(b.abs());
    (a.dim, a.theta) == (b.dim, b.theta) && a.frequencies().into_iter().zip(b.frequencies()).all(close)
}

/// The shortest decimal that is read as this `f32`: 1e-5, not 9.999999747378752e-6.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn unsaid(what: &str) -> Error {
    Error::Config {
        origin: "config.json of the merged model".into(),
        reason: format!(
            "has no words for this GGUF file: {what}; merge into the model's Hugging Face folder instead"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama3(factor: f64, original_max_positions: f64) -> RopeSpec {
        let scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions,
        };
        RopeSpec { theta: 500_000.0, dim: 128, scaling }
    }

    /// The same frequencies as GGUF has them: the unscaled ones, and what each is divided by.
    fn as_divisors(rope: &RopeSpec) -> RopeSpec {
        let plain = RopeSpec { scaling: RopeScaling::Default, ..rope.clone() };
        let divisors =
            plain.frequencies().into_iter().zip(rope.frequencies()).map(|(plain, own)| plain / own);
        RopeSpec { scaling: RopeScaling::Divisors(divisors.collect()), ..plain }
    }

    #[test]
    fn divisors_of_gguf_are_known_as_llama_3_s() {
        for factor in [8.0, 32.0] {
            let rope = llama3(factor, 8192.0);
            let written = scaling(&as_divisors(&rope)).unwrap();
            assert_eq!(written, scaling(&rope).unwrap());
            assert_eq!(
                (written["rope_type"].as_str(), written["factor"].as_f64()),
                (Some("llama3"), Some(factor))
            );
        }
    }

    #[test]
    fn divisors_that_nothing_published_has_are_refused() {
        let error = scaling(&as_divisors(&llama3(4.0, 8192.0))).unwrap_err().to_string();
        assert!(error.contains("Hugging Face folder instead"), "{error}");
    }

    #[test]
    fn an_epsilon_is_written_as_people_write_it() {
        assert_eq!(shortest(1e-5), 1e-5);
        assert_eq!(shortest(1e-6), 1e-6);
    }
}
