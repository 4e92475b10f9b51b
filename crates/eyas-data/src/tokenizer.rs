//! A model's tokenizer, from a Hugging Face folder or from GGUF metadata.

mod bytes;
pub(crate) mod files;
mod folder;
mod gguf;
mod pre;
mod stream;
mod write;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::json;
use tokenizers::PostProcessorWrapper;

use crate::error::{Error, Result};
pub use stream::TextStream;

/// Token ids and the bytes of the text that each came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The byte range of each token; empty for one that the tokenizer added.
    pub offsets: Vec<Range<usize>>,
}

/// A tokenizer with the special tokens that its model uses.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    special: SpecialIds,
}

/// The ids of a tokenizer's special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Beginning of a sequence.
    pub bos: Option<u32>,
    /// End of a sequence, as it is appended in training.
    pub eos: Option<u32>,
    /// Padding. Batches here have none; it is what the model's files say.
    pub pad: Option<u32>,
    /// The unknown token.
    pub unk: Option<u32>,
    /// Every id that ends a generation, `eos` first.
    pub stop: Vec<u32>,
}

impl SpecialIds {
    fn add_stop(&mut self, id: u32) {
        if !self.stop.contains(&id) {
            self.stop.push(id);
        }
    }
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a Hugging Face folder, with the special tokens of `tokenizer_config.json` (or
    /// `special_tokens_map.json`) and the end tokens of `generation_config.json` and `config.json`.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing or damaged, or a special token is not in the vocabulary.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        folder::load(folder)
    }

    /// Builds the tokenizer that a GGUF file carries: `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE).
    ///
    /// `path` is the file's, for messages.
    ///
    /// # Errors
    /// When keys are missing or contradict each other, or the tokenizer is of another kind.
    pub fn from_gguf(path: &Path, metadata: &eyas_checkpoint::gguf::Metadata) -> Result<Self> {
        gguf::load(path, metadata)
    }

    fn new(mut inner: tokenizers::Tokenizer, path: &Path, special: SpecialIds) -> Result<Self> {
        // A batch has no padding, and truncation is counted and reported where examples are made.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::tokenizer(path, e.to_string()))?;
        Ok(Self { inner, path: path.into(), special })
    }

    /// Turns text into ids. `add_special` adds what the tokenizer puts around a sequence, such as bos; leave it
    /// off for text that a chat template rendered.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|e| Error::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Turns text into ids with the place of each in the text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Tokens> {
        let encoding = self.inner.encode(text, add_special).map_err(|e| Error::Encode(e.to_string()))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok(Tokens { ids: encoding.get_ids().to_vec(), offsets })
    }

    /// Turns ids into text; ids outside the vocabulary are left out.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| Error::Encode(e.to_string()))
    }

    /// A decoder for ids that come one at a time; it gives out whole characters only.
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream::new(self, skip_special)
    }

    /// The token of an id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether an id is a special token, left out by `skip_special`.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// One more than the largest id: the rows that an embedding needs at least.
    pub fn vocab_size(&self) -> usize {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let last = added.keys().max().map_or(0, |&id| id as usize + 1);
        self.inner.get_vocab_size(false).max(last)
    }

    /// The special tokens' ids.
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// The ids that end a generation.
    pub fn eos_ids(&self) -> &[u32] {
        &self.special.stop
    }

    /// The end-of-sequence id that training appends.
    ///
    /// # Errors
    /// When the model's files name none.
    pub fn eos(&self) -> Result<u32> {
        self.special.eos.ok_or_else(|| {
            Error::tokenizer(
                &self.path,
                "names no end-of-sequence token; set `eos_token` in its configuration",
            )
        })
    }
}

/// The post-processor that puts bos before a sequence and eos after it.
fn bos_eos_template(
    bos: Option<(&str, u32)>,
    eos: Option<(&str, u32)>,
) -> Result<PostProcessorWrapper, String> {
    let special = |token: Option<(&str, u32)>, part: u32| {
        token.map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": part}}))
    };
    let around = |name: &str, part: u32| {
        let mut pieces = Vec::new();
        pieces.extend(special(bos, part));
        pieces.push(json!({"Sequence": {"id": name, "type_id": part}}));
        pieces.extend(special(eos, part));
        pieces
    };
    let single = around("A", 0);
    let pair = [single.clone(), around("B", 1)].concat();
    let mut special_tokens = serde_json::Map::new();
    for (text, id) in [bos, eos].into_iter().flatten() {
        special_tokens.insert(text.into(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    let template = json!({
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special_tokens
    });
    serde_json::from_value(template).map_err(|e| e.to_string())
}
