//! Loading from a Hugging Face folder.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use eyas_checkpoint::layout::{CONFIG, GENERATION_CONFIG, OLD_TOKENIZER_FILES, TOKENIZER, TOKENIZER_CONFIG};
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::{SpecialIds, Tokenizer, bos_eos_template, files};
use crate::error::{Error, Result};

pub(super) fn load(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join(TOKENIZER);
    let Some(text) = files::read_text(&path)? else {
        let found = OLD_TOKENIZER_FILES.iter().find(|name| folder.join(name).is_file());
        let hint = found.map_or_else(String::new, |name| {
            format!(
                "; the folder has only the older {name}: load it with AutoTokenizer and save_pretrained \
                     to write a tokenizer.json"
            )
        });
        return Err(Error::tokenizer(&path, format!("does not exist{hint}")));
    };
    // The library trusts its own files: some contradictions in them reach an assertion instead of an error.
    let parsed = catch_unwind(AssertUnwindSafe(|| text.parse::<tokenizers::Tokenizer>()));
    let mut inner = match parsed {
        Ok(Ok(tokenizer)) => tokenizer,
        Ok(Err(e)) => return Err(Error::tokenizer(&path, format!("cannot be used: {e}"))),
        Err(_) => {
            return Err(Error::tokenizer(&path, "contradicts itself: its merges do not fit its vocabulary"));
        }
    };
    let config_path = folder.join(TOKENIZER_CONFIG);
    let config = files::read_json_object(&config_path)?.unwrap_or_default();
    add_declared_tokens(&mut inner, &config_path, &config)?;
    let texts = files::special_token_texts(folder, &config)?;
    let id = |name: &str| texts.get(name).and_then(|text| inner.token_to_id(text));
    for name in ["bos_token", "eos_token"] {
        if let (Some(text), None) = (texts.get(name), id(name)) {
            let reason = format!("`{name}` is {text:?}, which is not in the vocabulary of tokenizer.json");
            return Err(Error::tokenizer(&config_path, reason));
        }
    }
    let mut special = SpecialIds {
        bos: id("bos_token"),
        eos: id("eos_token"),
        pad: id("pad_token"),
        unk: id("unk_token"),
        stop: Vec::new(),
    };
    special.eos.into_iter().for_each(|eos| special.add_stop(eos));
    for name in [GENERATION_CONFIG, CONFIG] {
        for eos in end_ids(&folder.join(name))? {
            if inner.id_to_token(eos).is_some() {
                special.add_stop(eos);
            } else {
                tracing::warn!("{name}: eos_token_id {eos} is not in the tokenizer's vocabulary; left out");
            }
        }
    }
    special.eos = special.eos.or(special.stop.first().copied());

    // `transformers` builds the post-processor anew when the configuration says which tokens to add.
    let switch = |key: &str| config.get(key).and_then(Value::as_bool);
    let (add_bos, add_eos) = (switch("add_bos_token"), switch("add_eos_token"));
    if add_bos.is_some() || add_eos.is_some() {
        let token = |add: Option<bool>, name: &str| {
            texts
                .get(name)
                .filter(|_| add == Some(true))
                .and_then(|t| Some((t.as_str(), inner.token_to_id(t)?)))
        };
        let processor = bos_eos_template(token(add_bos, "bos_token"), token(add_eos, "eos_token"))
            .map_err(|e| Error::tokenizer(&config_path, e))?;
        inner.with_post_processor(Some(processor));
    }
    Tokenizer::new(inner, &path, special)
}

/// Adds the tokens of `added_tokens_decoder` that `tokenizer.json` does not have.
fn add_declared_tokens(
    inner: &mut tokenizers::Tokenizer,
    path: &Path,
    config: &Map<String, Value>,
) -> Result<()> {
    let Some(Value::Object(declared)) = config.get("added_tokens_decoder") else { return Ok(()) };
    let mut missing = Vec::new();
    for (id, token) in declared {
        let wrong = |what: &str| Error::tokenizer(path, format!("added_tokens_decoder, `{id}`: {what}"));
        let number: u32 = id.parse().map_err(|_| wrong("is not an id"))?;
        let Some(Value::String(content)) = token.get("content") else {
            return Err(wrong("has no text in `content`"));
        };
        let switch = |key: &str, or: bool| token.get(key).and_then(Value::as_bool).unwrap_or(or);
        let special = switch("special", false);
        let added = AddedToken::from(content.as_str(), special)
            .single_word(switch("single_word", false))
            .lstrip(switch("lstrip", false))
            .rstrip(switch("rstrip", false))
            .normalized(switch("normalized", !special));
        match inner.token_to_id(content) {
            Some(have) if have == number => {}
            Some(have) => {
                return Err(wrong(&format!("is {content:?}, whose id in tokenizer.json is {have}")));
            }
            None => missing.push((number, added)),
        }
    }
    missing.sort_by_key(|(number, _)| *number);
    for (number, token) in missing {
        let content = token.content.clone();
        inner.add_tokens([token]).map_err(|e| Error::tokenizer(path, e.to_string()))?;
        let given = inner.token_to_id(&content);
        if given != Some(number) {
            let reason = format!("{content:?} has the id {number}, which leaves a gap in the vocabulary");
            return Err(Error::tokenizer(path, format!("added_tokens_decoder: {reason}")));
        }
    }
    Ok(())
}

/// `eos_token_id` of a configuration: one id or several.
fn end_ids(path: &Path) -> Result<Vec<u32>> {
    let Some(config) = files::read_json_object(path)? else { return Ok(Vec::new()) };
    let ids = match config.get("eos_token_id") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.clone(),
        Some(id) => vec![id.clone()],
    };
    let read = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    ids.iter()
        .map(|id| {
            let wrong =
                || Error::tokenizer(path, format!("`eos_token_id` must be an id or a list, not {id}"));
            read(id).ok_or_else(wrong)
        })
        .collect()
}
