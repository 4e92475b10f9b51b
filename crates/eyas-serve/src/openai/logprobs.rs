//! Log-probabilities in the shapes of both endpoints.

use eyas_data::Tokenizer;
use eyas_generate::TokenLogprobs;
use serde_json::{Map, Value, json};

/// A token's text; where it is a part of a character, its bytes as OpenAI writes them: `bytes:\xe5\xa5`.
fn text(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id);
    match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => error.as_bytes().iter().fold("bytes:".to_owned(), |mut text, byte| {
            text.push_str(&format!("\\x{byte:02x}"));
            text
        }),
    }
}

/// Of a chat answer's token.
pub(crate) fn chat_token(tokenizer: &Tokenizer, id: u32, found: &TokenLogprobs) -> Value {
    let entry = |id: u32, logprob: f32| json!({"token": text(tokenizer, id), "logprob": logprob, "bytes": tokenizer.token_bytes(id)});
    let mut token = entry(id, found.logprob);
    token["top_logprobs"] = found.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
    token
}

/// Of a completion, token by token.
#[derive(Debug, Default)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<Value>,
    /// Characters before the next token.
    offset: usize,
}

impl CompletionLogprobs {
    /// Adds a token; the first of a prompt has no log-probability.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, found: Option<&TokenLogprobs>) {
        let text_of = text(tokenizer, id);
        self.text_offset.push(self.offset.into());
        self.offset += String::from_utf8_lossy(&tokenizer.token_bytes(id)).chars().count();
        self.tokens.push(text_of.into());
        self.token_logprobs.push(found.map_or(Value::Null, |found| found.logprob.into()));
        self.top_logprobs.push(found.map_or(Value::Null, |found| {
            let mut top = Map::new();
            for &(id, logprob) in &found.top {
                // Of two tokens with one text the likelier stands.
                top.entry(text(tokenizer, id)).or_insert_with(|| logprob.into());
            }
            Value::Object(top)
        }));
    }

    /// What was added since the last call, or null.
    pub fn take(&mut self) -> Value {
        if self.tokens.is_empty() {
            return Value::Null;
        }
        json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.token_logprobs),
            "top_logprobs": std::mem::take(&mut self.top_logprobs),
            "text_offset": std::mem::take(&mut self.text_offset),
        })
    }
}
