//! The request of `/v1/completions`.

use eyas_data::Tokenizer;
use serde::Deserialize;

use super::ApiError;
use super::sampling::MAX_TOP_LOGPROBS;

/// The fields of a completion request that chat does not have.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CompletionRequest {
    pub prompt: Option<Prompts>,
    pub echo: Option<bool>,
    pub logprobs: Option<u64>,
    best_of: Option<u64>,
    suffix: Option<String>,
}

/// A prompt or several, as text or as token ids.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a text, a list of texts, a list of token ids, or a list of such lists")]
pub(crate) enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

impl CompletionRequest {
    /// The prompts as token ids.
    pub fn prompts(&self, tokenizer: &Tokenizer, vocab: usize) -> Result<Vec<Vec<u32>>, ApiError> {
        let encode =
            |text: &String| tokenizer.encode(text, true).map_err(|error| ApiError::invalid("prompt", error));
        let prompts = match &self.prompt {
            None => return Err(ApiError::invalid("prompt", "is missing")),
            Some(Prompts::Text(text)) => vec![encode(text)?],
            Some(Prompts::Texts(texts)) => texts.iter().map(encode).collect::<Result<_, _>>()?,
            Some(Prompts::Ids(ids)) => vec![ids.clone()],
            Some(Prompts::IdLists(lists)) => lists.clone(),
        };
        if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
            return Err(ApiError::invalid("prompt", "is empty; a model continues at least one token"));
        }
        match prompts.iter().flatten().find(|&&id| id as usize >= vocab) {
            Some(id) => {
                let reason = format!("holds token {id}; the vocabulary has {vocab}");
                Err(ApiError::invalid("prompt", reason))
            }
            None => Ok(prompts),
        }
    }

    /// Alternatives to report for each token, if any log-probabilities are.
    pub fn reported(&self) -> Result<Option<usize>, ApiError> {
        match self.logprobs {
            Some(top) if top > MAX_TOP_LOGPROBS as u64 => {
                Err(ApiError::invalid("logprobs", format!("is {top}; at most {MAX_TOP_LOGPROBS}")))
            }
            top => Ok(top.map(|top| top as usize)),
        }
    }

    /// Refuses what would silently do nothing.
    pub fn check_supported(&self, n: usize) -> Result<(), ApiError> {
        if self.best_of.is_some_and(|best| best != n as u64) {
            return Err(ApiError::unsupported("best_of", "is not supported; it may only equal n"));
        }
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "is not supported"));
        }
        Ok(())
    }
}
