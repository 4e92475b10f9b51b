//! Adapters in PEFT's own layout: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use eyas_checkpoint::{Checkpoint, TensorDtype, TensorView, layout, write_atomic, write_safetensors};
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::decoder::Decoder;
use crate::lora::{LoraConfig, LoraLayout, LoraTarget, Modules};
use crate::{Error, Result};

/// The file of an adapter's settings.
pub const CONFIG_FILE: &str = layout::ADAPTER_CONFIG;
/// The file of an adapter's weights.
pub const WEIGHTS_FILE: &str = layout::ADAPTER_WEIGHTS[0];
const PREFIX: &str = "base_model.model.";

/// A LoRA adapter in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraAdapter {
    /// Where each update lies.
    pub layout: LoraLayout,
    /// The flat vector.
    pub params: Vec<f32>,
    /// The name or path of the base model; a revision on the hub follows an `@`.
    pub base_model: String,
}

/// What `adapter_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    /// Which layers have an update, and its rank and scale.
    pub lora: LoraConfig,
    /// The name or path of the base model, empty where none is named; a revision on the hub follows an `@`.
    pub base_model: String,
}

impl AdapterSettings {
    /// Reads the settings of the adapter in a folder.
    ///
    /// # Errors
    /// When the file is missing or damaged, or a setting is not supported.
    pub fn read(folder: &Path) -> Result<Self> {
        let config = Config::read(&folder.join(CONFIG_FILE))?;
        Ok(Self { lora: read_config(&config)?, base_model: named_base(&config)? })
    }
}

impl LoraAdapter {
    /// Writes the adapter's two files into a folder, each whole or not at all, the settings last.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.into(), source })?;
        save_weights(&folder.join(WEIGHTS_FILE), &self.layout, &self.params)?;
        let text = serde_json::to_string_pretty(&self.config_json()).unwrap_or_default();
        write_atomic(&folder.join(CONFIG_FILE), |file| file.write_all(text.as_bytes()))?;
        Ok(())
    }

    /// Reads an adapter for a model.
    ///
    /// # Errors
    /// When a file is missing or damaged, a setting is not supported, or the weights do not fit the model.
    pub fn load(folder: &Path, decoder: &Decoder) -> Result<Self> {
        let AdapterSettings { lora, base_model } = AdapterSettings::read(folder)?;
        let fail = |reason: String| Error::Adapter { path: folder.into(), reason };
        let layout = LoraLayout::new(decoder, lora).map_err(|error| {
            fail(format!("{error}. It was trained for `{base_model}`; is this its base model?"))
        })?;

        let weights = weights_file(folder).ok_or_else(|| {
            fail(format!("has no {}; the folder is incomplete", layout::ADAPTER_WEIGHTS.join(" or ")))
        })?;
        let checkpoint = Checkpoint::open(&weights)?;
        let mut params = vec![0.0; layout.parameters()];
        let mut buffer = Vec::new();
        let mut used = 0;
        for (name, range, shape) in matrices(&layout) {
            let info = checkpoint.info(&name).map_err(|_| {
                fail(format!("lacks `{name}`. It was trained for `{base_model}`; is this its base model?"))
            })?;
            if info.shape != shape {
                return Err(fail(format!(
                    "`{name}` has the shape {:?}; this model needs {shape:?}. It was trained for `{base_model}`",
                    info.shape
                )));
            }
            checkpoint.read_f32(&name, &mut buffer)?;
            if let Some(position) = buffer.iter().position(|value| !value.is_finite()) {
                return Err(fail(format!("`{name}` holds {} at element {position}", buffer[position])));
            }
            params[range].copy_from_slice(&buffer);
            used += 1;
        }
        if let Some(stray) = checkpoint.tensors().find(|info| !layout.has_tensor(&info.name)) {
            return Err(fail(format!(
                "holds `{}`, which has no place in this model ({} of {} tensors have). It was trained for \
                 `{base_model}`",
                stray.name,
                used,
                checkpoint.tensors().len()
            )));
        }
        Ok(Self { layout, params, base_model })
    }

    /// `adapter_config.json` as PEFT writes it, with the settings that eyas has no use for at their defaults.
    fn config_json(&self) -> Value {
        let config = &self.layout.config;
        let (base_model, revision) = split_revision(&self.base_model);
        json!({
            "alpha_pattern": whole_numbers(&config.alpha_pattern),
            "auto_mapping": null,
            "base_model_name_or_path": base_model,
            "bias": "none",
            "eva_config": null,
            "exclude_modules": config.exclude_modules,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": whole_number(config.lora_alpha),
            "lora_bias": false,
            "lora_dropout": config.lora_dropout,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": config.r,
            "rank_pattern": config.rank_pattern,
            "revision": revision,
            // PEFT writes what `all-linear` stood for, since the word would mean other layers in another version.
            "target_modules": match &config.target_modules {
                modules if *modules == Modules::all_linear() => Modules::Names(self.layout.target_names()),
                modules => modules.clone(),
            },
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": config.use_rslora,
        })
    }
}

/// A name and its revision, which PEFT keeps apart, in one.
fn named_base(config: &Config) -> Result<String> {
    let name = config.text("base_model_name_or_path")?.unwrap_or_default();
    Ok(match config.text("revision")? {
        Some(revision) if !name.is_empty() && !Path::new(name).exists() => format!("{name}@{revision}"),
        _ => name.to_owned(),
    })
}

/// The reverse of [`named_base`], where it is a name on the hub.
fn split_revision(base_model: &str) -> (&str, Option<&str>) {
    match base_model.split_once('@') {
        Some((name, revision))
            if name.split('/').count() == 2
                && !name.starts_with(['/', '.', '~'])
                && !Path::new(base_model).exists() =>
        {
            (name, Some(revision))
        }
        _ => (base_model, None),
    }
}

impl LoraLayout {
    /// The last parts of the targets' module paths, sorted, each once.
    fn target_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .targets()
            .iter()
            .map(|target| target.linear.path.rsplit('.').next().unwrap_or_default().to_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    fn has_tensor(&self, name: &str) -> bool {
        let module = name
            .strip_prefix(PREFIX)
            .and_then(|name| name.strip_suffix(".lora_A.weight").or(name.strip_suffix(".lora_B.weight")));
        module.is_some_and(|module| self.targets().iter().any(|target| target.linear.path == module))
    }
}

/// Every matrix of an adapter: PEFT's name, the part of the flat vector that holds it, and its shape.
pub fn matrices(layout: &LoraLayout) -> impl Iterator<Item = (String, Range<usize>, [usize; 2])> + '_ {
    layout.targets().iter().flat_map(|LoraTarget { linear, slot }| {
        let (a, b) = (slot.r * linear.in_features, slot.r * linear.out_features);
        [
            (
                format!("{PREFIX}{}.lora_A.weight", linear.path),
                slot.a..slot.a + a,
                [slot.r, linear.in_features],
            ),
            (
                format!("{PREFIX}{}.lora_B.weight", linear.path),
                slot.b..slot.b + b,
                [linear.out_features, slot.r],
            ),
        ]
    })
}

/// Writes a flat vector under PEFT's tensor names.
///
/// # Errors
/// When the file cannot be written.
pub fn save_weights(path: &Path, layout: &LoraLayout, params: &[f32]) -> Result<()> {
    let matrices: Vec<_> = matrices(layout).collect();
    let views: Vec<TensorView<'_>> = matrices
        .iter()
        .map(|(name, range, shape)| TensorView {
            name,
            shape,
            dtype: TensorDtype::F32,
            data: bytemuck::cast_slice(&params[range.clone()]),
        })
        .collect();
    write_safetensors(path, &views, &BTreeMap::from([("format".into(), "pt".into())]))?;
    Ok(())
}

fn weights_file(folder: &Path) -> Option<PathBuf> {
    layout::ADAPTER_WEIGHTS.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// The settings that matter, after refusing those that would change the result unseen.
fn read_config(config: &Config) -> Result<LoraConfig> {
    match config.text("peft_type")? {
        Some("LORA") => {}
        other => {
            let kind = other.unwrap_or("missing");
            return Err(config.error("peft_type", format!("is {kind}; eyas reads LORA adapters")));
        }
    }
    for key in ["use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out"] {
        if config.flag(key, false)? {
            return Err(config.error(key, "is true; eyas does not support it"));
        }
    }
    if let Some(bias) = config.text("bias")?.filter(|bias| *bias != "none") {
        return Err(config.error("bias", format!("is `{bias}`; eyas supports `none`")));
    }
    const UNSUPPORTED: [&str; 8] = [
        "modules_to_save",
        "layers_to_transform",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "alora_invocation_tokens",
        "arrow_config",
        "megatron_config",
    ];
    for key in UNSUPPORTED {
        if let Some((_, value)) = config.get(&[key]) {
            let empty =
                value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
            if !empty {
                return Err(config.error(key, format!("is {value}; eyas does not support it")));
            }
        }
    }
    Ok(LoraConfig {
        r: config.size(&["r"], 1 << 16)?,
        lora_alpha: config.positive(&["lora_alpha"])?.unwrap_or(8.0),
        lora_dropout: typed(config, "lora_dropout")?.unwrap_or(0.0),
        target_modules: typed(config, "target_modules")?.ok_or_else(|| {
            config.error("target_modules", "is missing; it says which layers the adapter changes")
        })?,
        exclude_modules: typed(config, "exclude_modules")?,
        use_rslora: config.flag("use_rslora", false)?,
        rank_pattern: typed(config, "rank_pattern")?.unwrap_or_default(),
        alpha_pattern: typed(config, "alpha_pattern")?.unwrap_or_default(),
    })
}

fn typed<T: serde::de::DeserializeOwned>(config: &Config, key: &str) -> Result<Option<T>> {
    config
        .get(&[key])
        .map(|(_, value)| {
            serde_json::from_value(value.clone())
                .map_err(|error| config.error(key, format!("is {value}: {error}")))
        })
        .transpose()
}

/// Python tells 32 from 32.0, and PEFT's own files have the former.
fn whole_number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 { json!(value as i64) } else { json!(value) }
}

fn whole_numbers(values: &BTreeMap<String, f64>) -> Value {
    values.iter().map(|(key, value)| (key.clone(), whole_number(*value))).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_stands_apart_in_the_file_and_behind_the_name_here() {
        assert_eq!(split_revision("owner/base@v1.0"), ("owner/base", Some("v1.0")));
        assert_eq!(split_revision("owner/base"), ("owner/base", None));
        assert_eq!(split_revision("/models/of@mine"), ("/models/of@mine", None));
        let folder = tempfile::tempdir().unwrap();
        let named = |text: &str| {
            let path = folder.path().join(CONFIG_FILE);
            std::fs::write(&path, text).unwrap();
            named_base(&Config::read(&path).unwrap()).unwrap()
        };
        assert_eq!(
            named(r#"{"base_model_name_or_path": "owner/base", "revision": "v1.0"}"#),
            "owner/base@v1.0"
        );
        assert_eq!(named(r#"{"base_model_name_or_path": "owner/base", "revision": null}"#), "owner/base");
        assert_eq!(named("{}"), "");
    }
}
