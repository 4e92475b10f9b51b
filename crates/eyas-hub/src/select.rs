//! Which files of a repository are needed: not all of what is there.

use std::collections::{BTreeMap, BTreeSet};

use eyas_checkpoint::layout::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, GENERATION_CONFIG, INDEX_ENDING, OLD_TOKENIZER_FILES, TOKENIZER,
    TOKENIZER_FILES, WEIGHTS,
};
use serde::Deserialize;

use crate::name::{HubName, is_inside};
use crate::{Error, Result};

/// The recipe that eyas leaves beside an adapter.
const RECIPE: &str = "recipe.toml";

/// The files of a model: its description and one set of weights. `names` are the files that there are; `read` reads
/// one, for the list of shards.
///
/// # Errors
/// When there are no weights that eyas reads, or several to choose from.
pub(crate) fn model(
    name: &HubName,
    names: &[String],
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>>,
) -> Result<Vec<String>> {
    let has = |file: &str| names.iter().any(|known| known == file);
    if let Some(file) = name.file() {
        return named(name, file, names);
    }
    let mut wanted = description(names);
    if let Some(weights) = WEIGHTS.into_iter().find(|file| has(file)) {
        if !has(CONFIG) {
            return Err(Error::NotFound(format!(
                "{name} has weights and no {CONFIG}, which says what they are"
            )));
        }
        wanted.push(weights.into());
        if weights.ends_with(INDEX_ENDING) {
            for shard in shards(name, weights, &read(weights)?)? {
                if !has(&shard) {
                    return Err(Error::NotFound(format!(
                        "{name}: {weights} lists {shard}, which is not there"
                    )));
                }
                wanted.push(shard);
            }
        }
        return Ok(wanted);
    }
    let ggufs: Vec<&String> = names.iter().filter(|file| file.ends_with(".gguf")).collect();
    match ggufs.as_slice() {
        [] => Err(Error::NotFound(without_weights(name, names))),
        [one] => Ok(vec![(*one).clone()]),
        several => {
            let id = name.id();
            let list: String = several.iter().map(|file| format!("\n    {id}/{file}")).collect();
            Err(Error::NotFound(format!("{name} holds several GGUF files; name one of them:{list}")))
        }
    }
}

/// The small files that describe a model, its tokenizer and its turns; the tokenizers of older models only where there
/// is no other, so that a message can name them.
fn description(names: &[String]) -> Vec<String> {
    let has = |file: &&str| names.iter().any(|known| known == file);
    let described = [CONFIG, GENERATION_CONFIG].into_iter().chain(TOKENIZER_FILES);
    let old = OLD_TOKENIZER_FILES.into_iter().filter(|_| !has(&TOKENIZER));
    described.chain(old).filter(has).map(str::to_owned).collect()
}

fn without_weights(name: &HubName, names: &[String]) -> String {
    if names.iter().any(|file| file == ADAPTER_CONFIG) {
        return format!("{name} is an adapter: give it with --adapter; its base model is found by itself");
    }
    format!("{name} has no weights that eyas reads; looked for {} and *.gguf", WEIGHTS.join(", "))
}

/// A file of weights by its name: GGUF holds everything, others need their description beside them.
fn named(name: &HubName, file: &str, names: &[String]) -> Result<Vec<String>> {
    if !names.iter().any(|known| known == file) {
        return Err(Error::NoFile {
            name: name.id().into(),
            revision: name.revision().into(),
            file: file.into(),
        });
    }
    let mut wanted = if file.ends_with(".gguf") { Vec::new() } else { description(names) };
    wanted.push(file.into());
    Ok(wanted)
}

/// The shards that an index lists.
fn shards(name: &HubName, index: &str, text: &[u8]) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parsed: Index = serde_json::from_slice(text)
        .map_err(|error| Error::NotFound(format!("{name}: {index} is not valid: {error}")))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    match shards.iter().find(|shard| !is_inside(shard)) {
        Some(shard) => {
            Err(Error::NotFound(format!("{name}: {index} lists `{shard}`, which is no file of it")))
        }
        None => Ok(shards),
    }
}

/// The description alone, of a model that is not named by a file of its own.
pub(crate) fn config(name: &HubName, names: &[String]) -> Vec<String> {
    let has = name.file().is_none() && names.iter().any(|known| known == CONFIG);
    has.then(|| CONFIG.to_owned()).into_iter().collect()
}

/// The files of an adapter.
///
/// # Errors
/// When the repository is none.
pub(crate) fn adapter(name: &HubName, names: &[String]) -> Result<Vec<String>> {
    let has = |file: &&str| names.iter().any(|known| known == file);
    if !has(&ADAPTER_CONFIG) {
        return Err(Error::NotFound(format!(
            "{name} has no {ADAPTER_CONFIG}; it is no adapter of PEFT's kind"
        )));
    }
    let Some(weights) = ADAPTER_WEIGHTS.into_iter().find(has) else {
        return Err(Error::NotFound(format!("{name} has neither {}", ADAPTER_WEIGHTS.join(" nor "))));
    };
    let mut wanted = vec![ADAPTER_CONFIG.to_owned(), weights.to_owned()];
    wanted.extend(Some(RECIPE).filter(has).map(str::to_owned));
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(name: &str, names: &[&str], index: &str) -> Result<Vec<String>> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        model(&HubName::parse(name).unwrap(), &names, &mut |_| Ok(index.as_bytes().to_vec()))
    }

    #[test]
    fn safetensors_come_and_pickles_stay() {
        let names = [
            "README.md",
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "model.safetensors",
            "pytorch_model.bin",
            "tf_model.h5",
            "onnx/model.onnx",
            "model.gguf",
        ];
        assert_eq!(
            choose("a/b", &names, "").unwrap(),
            ["config.json", "tokenizer.json", "model.safetensors"]
        );
    }

    #[test]
    fn pickles_come_where_nothing_else_is() {
        let index = r#"{"weight_map": {"x": "pytorch_model-00002-of-00002.bin", "y": "pytorch_model-00001-of-00002.bin"}}"#;
        let names = [
            "config.json",
            "tokenizer.model",
            "pytorch_model.bin.index.json",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
            "pytorch_model-00003-of-00003.bin",
        ];
        let wanted = [
            "config.json",
            "tokenizer.model",
            "pytorch_model.bin.index.json",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
        ];
        assert_eq!(choose("a/b", &names, index).unwrap(), wanted);
    }

    #[test]
    fn an_index_may_not_lead_out_of_the_repository() {
        let names = ["config.json", "model.safetensors.index.json"];
        for (shard, message) in [("../../x", "no file of it"), ("missing.safetensors", "not there")] {
            let error =
                choose("a/b", &names, &format!(r#"{{"weight_map": {{"x": "{shard}"}}}}"#)).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn a_gguf_file_is_taken_alone_and_asked_for_among_several() {
        assert_eq!(choose("a/b", &["README.md", "m.gguf"], "").unwrap(), ["m.gguf"]);
        let names = ["m.Q4_0.gguf", "m.Q8_0.gguf", "config.json"];
        let message = choose("a/b", &names, "").unwrap_err().to_string();
        assert!(message.contains("a/b/m.Q8_0.gguf"), "{message}");
        assert_eq!(choose("a/b/m.Q8_0.gguf", &names, "").unwrap(), ["m.Q8_0.gguf"]);
        assert!(matches!(choose("a/b/m.Q5_0.gguf", &names, ""), Err(Error::NoFile { .. })));
    }

    #[test]
    fn an_adapter_is_told_from_a_model() {
        let names = [
            "adapter_config.json",
            "adapter_model.safetensors",
            "adapter_model.bin",
            "recipe.toml",
            "x.json",
        ];
        let message = choose("a/b", &names, "").unwrap_err().to_string();
        assert!(message.contains("--adapter"), "{message}");
        let names = names.map(str::to_owned);
        let wanted = adapter(&HubName::parse("a/b").unwrap(), &names).unwrap();
        assert_eq!(wanted, ["adapter_config.json", "adapter_model.safetensors", "recipe.toml"]);
        assert!(adapter(&HubName::parse("a/b").unwrap(), &["config.json".to_owned()]).is_err());
    }
}
