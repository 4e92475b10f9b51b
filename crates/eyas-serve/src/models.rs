//! The models that are served: a base, and adapters over it.

use std::sync::Arc;

use eyas_data::{PromptFormat, Tokenizer};
use eyas_generate::{SamplingParams, Tidy};

use crate::{Error, Result};

/// A model under its own name.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// What requests call it.
    pub id: String,
    /// The base's name, for an adapter.
    pub base: Option<String>,
    /// How turns become a prompt.
    pub format: PromptFormat,
    /// How it answers in chat where a request says nothing.
    pub defaults: SamplingParams,
}

/// All models of a server; they share a tokenizer.
#[derive(Clone, Debug)]
pub struct Models {
    list: Vec<ServedModel>,
    tokenizer: Arc<Tokenizer>,
    /// What no turn may forge: turn markers, and the special tokens of the tokenizer.
    markers: Vec<String>,
    /// The longest sequence, prompt and answer together.
    positions: usize,
    vocab: usize,
}

impl Models {
    /// Models over one base, for sequences of up to `positions` tokens of a vocabulary of `vocab`.
    ///
    /// # Errors
    /// When there is none, or two have the same name.
    pub fn new(
        list: Vec<ServedModel>,
        tokenizer: Arc<Tokenizer>,
        positions: usize,
        vocab: usize,
    ) -> Result<Self> {
        if list.is_empty() {
            return Err(Error::Config("there is no model to serve".into()));
        }
        for (place, model) in list.iter().enumerate() {
            if model.id.is_empty() || list[..place].iter().any(|other| other.id == model.id) {
                return Err(Error::Config(format!(
                    "two models are called {:?}, or it is empty; give an adapter another name: --adapter NAME=FOLDER",
                    model.id
                )));
            }
        }
        let mut markers = Tidy::recipe().markers;
        markers.extend(tokenizer.control_texts());
        markers.sort();
        markers.dedup();
        Ok(Self { list, tokenizer, markers, positions, vocab })
    }

    /// All of them, in the order in which the engine knows them.
    pub fn list(&self) -> &[ServedModel] {
        &self.list
    }

    /// A model's place and description.
    pub fn find(&self, id: &str) -> Option<(usize, &ServedModel)> {
        self.list.iter().enumerate().find(|(_, model)| model.id == id)
    }

    /// Their tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The longest sequence, prompt and answer together.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Ids below this are tokens.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Texts that are broken up where people and models write them.
    pub(crate) fn markers(&self) -> &[String] {
        &self.markers
    }
}
