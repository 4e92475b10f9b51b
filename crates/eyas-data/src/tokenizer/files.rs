//! The JSON files of a Hugging Face folder that speak of tokens.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use eyas_checkpoint::layout::{SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::template::SpecialTokenTexts;

/// No tokenizer file is near this; a larger one is a mistake.
const LARGEST: u64 = 1 << 30;

/// Reads a text file; `None` when it does not exist.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > LARGEST => {
            let size = metadata.len();
            return Err(Error::tokenizer(
                path,
                format!("is {size} bytes long, more than any tokenizer file"),
            ));
        }
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    }
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map(Some).map_err(|e| {
        let at = e.utf8_error().valid_up_to() + 1;
        Error::tokenizer(path, format!("is not UTF-8 at byte {at}"))
    })
}

/// Reads a JSON object; `None` when the file does not exist.
pub(crate) fn read_json_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(Value::Object(fields)) => Ok(Some(fields)),
        Ok(_) => Err(Error::tokenizer(path, "is not a JSON object")),
        Err(e) => Err(Error::tokenizer(path, format!("is not valid JSON: {e}"))),
    }
}

/// The special tokens' texts, from `tokenizer_config.json`, else from `special_tokens_map.json`. A token is
/// text, or an object with its text in `content`.
pub(crate) fn special_token_texts(folder: &Path, config: &Map<String, Value>) -> Result<SpecialTokenTexts> {
    let map_path = folder.join(SPECIAL_TOKENS_MAP);
    let map = read_json_object(&map_path)?.unwrap_or_default();
    let mut texts = SpecialTokenTexts::new();
    for (path, fields) in [(map_path, &map), (folder.join(TOKENIZER_CONFIG), config)] {
        for (key, value) in fields {
            if !key.ends_with("_token") {
                continue;
            }
            let text = match value {
                Value::String(text) => text,
                Value::Object(token) => match token.get("content") {
                    Some(Value::String(text)) => text,
                    _ => return Err(Error::tokenizer(&path, format!("`{key}` has no text in `content`"))),
                },
                // `add_bos_token` and its like are switches, and null means that there is none.
                _ => continue,
            };
            texts.insert(key.clone(), text.clone());
        }
    }
    Ok(texts)
}
