//! Building a tokenizer from the metadata of a GGUF file.

use std::path::Path;

use eyas_checkpoint::gguf::Metadata;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::{SpecialIds, Tokenizer, bos_eos_template, pre};
use crate::error::{Error, Result};

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";

/// The values of `tokenizer.ggml.token_type` that matter here.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Control tokens that end a turn in well-known chat templates. Files often name only one of them as eos.
const END_OF_TURN: [&str; 5] = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"];

pub(super) fn load(path: &Path, metadata: &Metadata) -> Result<Tokenizer> {
    let file = Source { path, metadata, tokens: metadata.strings(TOKENS)? };
    if file.tokens.is_empty() {
        return Err(file.wrong(TOKENS, "is empty"));
    }
    let types = file.types()?;
    let special = file.special_ids(types)?;
    let (mut inner, add_bos) = match metadata.str("tokenizer.ggml.model")? {
        "gpt2" => file.byte_level()?,
        "llama" => file.sentence_piece(special.unk)?,
        other => {
            let reason =
                format!("is {other:?}; `gpt2` and `llama` are supported. Use the model's folder instead");
            return Err(file.wrong("tokenizer.ggml.model", &reason));
        }
    };
    let added = types
        .iter()
        .zip(file.tokens)
        .filter(|(kind, token)| matches!(**kind, CONTROL | USER_DEFINED) && !token.is_empty());
    let added =
        added.map(|(&kind, token)| AddedToken::from(token.as_str(), kind == CONTROL).normalized(false));
    inner.add_tokens(added.collect::<Vec<_>>()).map_err(|e| Error::tokenizer(path, e.to_string()))?;

    let switch = |key: &str, or: bool| if metadata.contains(key) { metadata.bool(key) } else { Ok(or) };
    let add_bos = switch("tokenizer.ggml.add_bos_token", add_bos)?;
    let add_eos = switch("tokenizer.ggml.add_eos_token", false)?;
    let token = |id: Option<u32>, add: bool| id.filter(|_| add).map(|id| (file.token(id), id));
    let processor = bos_eos_template(token(special.bos, add_bos), token(special.eos, add_eos));
    inner.with_post_processor(Some(processor.map_err(|e| Error::tokenizer(path, e))?));
    Tokenizer::new(inner, path, special)
}

struct Source<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
    tokens: &'a [String],
}

impl<'a> Source<'a> {
    fn wrong(&self, key: &str, reason: &str) -> Error {
        Error::tokenizer(self.path, format!("`{key}` {reason}"))
    }

    fn token(&self, id: u32) -> &'a str {
        &self.tokens[id as usize]
    }

    fn types(&self) -> Result<&'a [i32]> {
        if !self.metadata.contains(TYPES) {
            return Ok(&[]);
        }
        let types = self.metadata.i32s(TYPES)?;
        if types.len() != self.tokens.len() {
            let reason = format!("has {} entries for {} tokens", types.len(), self.tokens.len());
            return Err(self.wrong(TYPES, &reason));
        }
        Ok(types)
    }

    fn id(&self, name: &str) -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        if !self.metadata.contains(&key) {
            return Ok(None);
        }
        let id = self.metadata.u32(&key)?;
        if id as usize >= self.tokens.len() {
            let reason = format!("is {id}, outside the vocabulary of {}", self.tokens.len());
            return Err(self.wrong(&key, &reason));
        }
        Ok(Some(id))
    }

    fn special_ids(&self, types: &[i32]) -> Result<SpecialIds> {
        let mut special = SpecialIds {
            bos: self.id("bos")?,
            eos: self.id("eos")?,
            pad: self.id("padding")?,
            unk: self.id("unknown")?,
            stop: Vec::new(),
        };
        for id in [special.eos, self.id("eot")?, self.id("eom")?].into_iter().flatten() {
            special.add_stop(id);
        }
        for (id, (token, &kind)) in self.tokens.iter().zip(types).enumerate() {
            if kind == CONTROL && END_OF_TURN.contains(&token.as_str()) {
                special.add_stop(id as u32);
            }
        }
        Ok(special)
    }

    /// Token to id; of two equal tokens the first keeps its id, as where the file is written.
    fn vocabulary(&self) -> Result<Vocab> {
        if u32::try_from(self.tokens.len()).is_err() {
            return Err(self.wrong(TOKENS, "has more tokens than ids"));
        }
        let mut vocabulary = Vocab::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            vocabulary.entry(token.clone()).or_insert(id as u32);
        }
        Ok(vocabulary)
    }

    /// GPT-2's byte-level BPE: tokens, merges in order of rank, and a named way to split text into words.
    fn byte_level(&self) -> Result<(tokenizers::Tokenizer, bool)> {
        const PRE: &str = "tokenizer.ggml.pre";
        let name = if self.metadata.contains(PRE) { self.metadata.str(PRE)? } else { "default" };
        let pre = pre::find(name).ok_or_else(|| {
            let reason = format!("is {name:?}; known are {}. Use the model's folder instead", pre::KNOWN);
            self.wrong(PRE, &reason)
        })?;
        let vocabulary = self.vocabulary()?;
        let merges = self.metadata.strings(MERGES)?;
        let mut pairs = Vec::with_capacity(merges.len());
        for (i, merge) in merges.iter().enumerate() {
            let wrong = |what: &str| self.wrong(MERGES, &format!("entry {i}, {merge:?}: {what}"));
            let (left, right) = merge.split_once(' ').ok_or_else(|| wrong("is not two tokens"))?;
            // The library does not check that the merged token exists before it writes to a buffer.
            for token in [left, right, &format!("{left}{right}")] {
                if !vocabulary.contains_key(token) {
                    return Err(wrong(&format!("{token:?} is not in the vocabulary")));
                }
            }
            pairs.push((left.to_string(), right.to_string()));
        }
        let model =
            BPE::builder().vocab_and_merges(vocabulary, pairs).ignore_merges(pre.ignore_merges).build();
        let mut inner = tokenizers::Tokenizer::new(model.map_err(|e| self.wrong(MERGES, &e.to_string()))?);
        if pre.nfc {
            self.normalize(&mut inner, json!({"type": "NFC"}))?;
        }
        let steps = json!({"type": "Sequence", "pretokenizers": pre.steps});
        inner.with_pre_tokenizer(Some(self.part::<PreTokenizerWrapper>(steps)?));
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true
        });
        inner.with_decoder(Some(self.part::<DecoderWrapper>(bytes)?));
        Ok((inner, pre.add_bos))
    }

    /// SentencePiece's BPE. The file has no merges: the pair whose piece has the best score is merged first,
    /// so every way to cut a piece in two is a merge with that piece's rank.
    fn sentence_piece(&self, unk: Option<u32>) -> Result<(tokenizers::Tokenizer, bool)> {
        const PREFIX: &str = "tokenizer.ggml.add_space_prefix";
        let scores = self.metadata.f32s(SCORES)?;
        if scores.len() != self.tokens.len() {
            let reason = format!("has {} entries for {} tokens", scores.len(), self.tokens.len());
            return Err(self.wrong(SCORES, &reason));
        }
        if let Some(i) = scores.iter().position(|score| score.is_nan()) {
            return Err(self.wrong(SCORES, &format!("entry {i} is not a number")));
        }
        let vocabulary = self.vocabulary()?;
        let mut merges: Vec<(f32, usize, (String, String))> = Vec::new();
        for (id, piece) in self.tokens.iter().enumerate() {
            // A piece of some length that no text reaches would only cost time: its halves are quadratic.
            const LONGEST: usize = 512;
            if piece.len() > LONGEST {
                continue;
            }
            for (cut, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(cut);
                if vocabulary.contains_key(left) && vocabulary.contains_key(right) {
                    merges.push((scores[id], id, (left.into(), right.into())));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let merges = merges.into_iter().map(|(_, _, pair)| pair).collect();
        let mut builder =
            BPE::builder().vocab_and_merges(vocabulary, merges).byte_fallback(true).fuse_unk(true);
        if let Some(unk) = unk {
            builder = builder.unk_token(self.token(unk).to_string());
        }
        let model = builder.build().map_err(|e| Error::tokenizer(self.path, e.to_string()))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        let prefix = if self.metadata.contains(PREFIX) { self.metadata.bool(PREFIX)? } else { true };
        let mut normalizers =
            vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        self.normalize(&mut inner, json!({"type": "Sequence", "normalizers": normalizers}))?;
        let decoder = json!({"type": "Sequence", "decoders": decoders});
        inner.with_decoder(Some(self.part::<DecoderWrapper>(decoder)?));
        Ok((inner, true))
    }

    fn normalize(&self, inner: &mut tokenizers::Tokenizer, normalizer: Value) -> Result<()> {
        let normalizer: NormalizerWrapper = self.part(normalizer)?;
        let set = inner.with_normalizer(Some(normalizer));
        set.map(|_| ()).map_err(|e| Error::tokenizer(self.path, e.to_string()))
    }

    fn part<T: DeserializeOwned>(&self, json: Value) -> Result<T> {
        serde_json::from_value(json).map_err(|e| Error::tokenizer(self.path, e.to_string()))
    }
}
