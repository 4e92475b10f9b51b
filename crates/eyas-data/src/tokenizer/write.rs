//! Writing a tokenizer as `transformers` reads it.

use serde_json::{Map, Value, json};

use super::Tokenizer;
use crate::error::{Error, Result};
use crate::template::ChatTemplate;

impl Tokenizer {
    /// The files by which `transformers` knows the tokenizer, for one that comes from elsewhere than its folder:
    /// `tokenizer.json`, and `tokenizer_config.json` with the special tokens and the chat template.
    ///
    /// # Errors
    /// When the library cannot write it.
    pub fn to_files(&self, template: Option<&ChatTemplate>) -> Result<Vec<(&'static str, String)>> {
        let tokenizer =
            self.inner.to_string(true).map_err(|error| Error::tokenizer(&self.path, error.to_string()))?;
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        for (name, id) in [
            ("bos_token", self.special.bos),
            ("eos_token", self.special.eos),
            ("pad_token", self.special.pad),
            ("unk_token", self.special.unk),
        ] {
            if let Some(token) = id.and_then(|id| self.id_to_token(id)) {
                config.insert(name.into(), json!(token));
            }
        }
        if let Some(template) = template {
            config.insert("chat_template".into(), json!(template.source()));
        }
        let config = serde_json::to_string_pretty(&Value::Object(config)).unwrap_or_default() + "\n";
        Ok(vec![("tokenizer.json", tokenizer), ("tokenizer_config.json", config)])
    }
}
