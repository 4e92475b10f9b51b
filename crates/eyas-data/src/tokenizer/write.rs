//! Writing a tokenizer as `transformers` reads it, for one that comes from elsewhere than a Hugging Face folder.

use eyas_checkpoint::layout::{CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG};
use serde_json::{Map, Value, json};

use super::Tokenizer;
use crate::error::{Error, Result};
use crate::template::ChatTemplate;

impl Tokenizer {
    /// The files by which `transformers` knows the tokenizer, by their names: `tokenizer.json`, `tokenizer_config.json`
    /// with the special tokens and, where there is a template, `chat_template.jinja`.
    ///
    /// # Errors
    /// When the library cannot write it.
    pub fn to_files(&self, template: Option<&ChatTemplate>) -> Result<Vec<(&'static str, String)>> {
        let tokenizer =
            self.inner.to_string(true).map_err(|error| Error::tokenizer(&self.path, error.to_string()))?;
        let mut files = vec![(TOKENIZER, tokenizer), (TOKENIZER_CONFIG, format!("{:#}\n", self.config()))];
        files.extend(template.map(|template| (CHAT_TEMPLATE, template.source().to_owned())));
        Ok(files)
    }

    fn config(&self) -> Value {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        // Spaces before punctuation are the model's own.
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        let special = &self.special;
        for (name, id) in [
            ("bos_token", special.bos),
            ("eos_token", special.eos),
            ("pad_token", special.pad),
            ("unk_token", special.unk),
        ] {
            if let Some(token) = id.and_then(|id| self.id_to_token(id)) {
                config.insert(name.into(), json!(token));
            }
        }
        config.into()
    }

    /// `generation_config.json`: the tokens that end an answer, and those that begin and fill one.
    pub fn generation_config(&self) -> String {
        let special = &self.special;
        let mut config = Map::new();
        config.insert("eos_token_id".into(), json!(special.stop));
        for (name, id) in [("bos_token_id", special.bos), ("pad_token_id", special.pad)] {
            if let Some(id) = id {
                config.insert(name.into(), json!(id));
            }
        }
        format!("{:#}\n", Value::Object(config))
    }
}
