//! What a model's weights take on a device, as loaded or as predicted.

use eyas_backend::{Backend, Dtype, NormKind, Storage};

use crate::decoder::{Decoder, Positions};
use crate::load::LoadOptions;

/// What the weights take on the device, in bytes, and how they are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Footprint {
    /// The blocks' linear layers.
    pub linears: u64,
    /// Embedding and head.
    pub tables: u64,
    /// Norms, biases and position tables.
    pub rest: u64,
    /// How the linear layers are kept.
    pub linear_storage: Storage,
    /// How embedding and head are kept.
    pub table_storage: Storage,
}

impl Footprint {
    /// Nothing yet.
    pub(crate) fn empty(linear_storage: Storage, table_storage: Storage) -> Self {
        Self { linears: 0, tables: 0, rest: 0, linear_storage, table_storage }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.linears + self.tables + self.rest
    }

    /// What a model will take on a device of this kind, with activations of `dtype`, loaded with `options`.
    pub fn predict<B: Backend>(
        decoder: &Decoder,
        dtype: Dtype,
        linear_storage: Storage,
        table_storage: Storage,
        options: LoadOptions,
    ) -> Self {
        let linears = decoder
            .all_linears()
            .map(|(.., linear)| {
                B::stored_bytes(dtype, linear.out_features, linear.in_features, linear_storage)
            })
            .sum();
        let table = B::stored_bytes(dtype, decoder.vocab_size, decoder.hidden_size, table_storage);
        let embedding = match (options.embedding_on_host, table_storage) {
            (true, Storage::Dense(stored)) => {
                let on_host = Storage::OnHost(stored);
                B::stored_bytes(dtype, decoder.vocab_size, decoder.hidden_size, on_host)
            }
            _ => table,
        };
        let per_norm = if decoder.norm.kind == NormKind::LayerNorm { 2 } else { 1 } * decoder.hidden_size;
        let norms: usize = (0..decoder.blocks()).map(|block| decoder.norm_paths(block).len()).sum();
        let biases: usize = decoder
            .all_linears()
            .filter(|(.., linear)| linear.bias)
            .map(|(.., linear)| linear.out_features)
            .sum();
        let head_norms = match decoder.attention.head_norm_eps {
            Some(_) => 2 * decoder.blocks() * decoder.attention.layout.head_dim,
            None => 0,
        };
        let positions = match &decoder.positions {
            Positions::Rope(rope) => options.positions * rope.dim,
            Positions::Alibi => decoder.blocks() * decoder.attention.layout.heads * options.positions,
        };
        Self {
            linears,
            tables: if decoder.tie_word_embeddings { table } else { table + embedding },
            rest: 4 * ((norms + 1) * per_norm + biases + head_norms + positions) as u64,
            linear_storage,
            table_storage,
        }
    }
}
