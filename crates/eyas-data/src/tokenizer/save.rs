//! Writing a tokenizer as a Hugging Face folder has it, for one that came from elsewhere.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Tokenizer;
use crate::ChatTemplate;
use crate::error::{Error, Result};

impl Tokenizer {
    /// Writes `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` and, where there is a template,
    /// `chat_template.jinja`, which transformers and vLLM load.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path, template: Option<&ChatTemplate>) -> Result<()> {
        let text = self.inner.to_string(true).map_err(|e| Error::tokenizer(&self.path, e.to_string()))?;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|e| Error::io(&path, e))
        };
        write("tokenizer.json", &text)?;
        write("tokenizer_config.json", &format!("{:#}\n", self.config_json()))?;
        write("generation_config.json", &format!("{:#}\n", self.generation_json()))?;
        match template {
            Some(template) => write("chat_template.jinja", template.source()),
            None => Ok(()),
        }
    }

    fn config_json(&self) -> Value {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        // Spaces before punctuation are the model's own.
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        let special = &self.special;
        for (name, id) in [
            ("bos_token", special.bos),
            ("eos_token", special.eos),
            ("pad_token", special.pad),
            ("unk_token", special.unk),
        ] {
            if let Some(token) = id.and_then(|id| self.id_to_token(id)) {
                config.insert(name.into(), token.into());
            }
        }
        config.into()
    }

    fn generation_json(&self) -> Value {
        let special = &self.special;
        let mut config = Map::new();
        config.insert("eos_token_id".into(), json!(special.stop));
        for (name, id) in [("bos_token_id", special.bos), ("pad_token_id", special.pad)] {
            if let Some(id) = id {
                config.insert(name.into(), id.into());
            }
        }
        config.into()
    }
}
