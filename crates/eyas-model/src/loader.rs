//! A description and its tensors -> frozen weights on a device, one tensor at a time.

use eyas_backend::{AttentionSpec, Backend, Dtype, Linear, NormKind, Projection};

use crate::Result;
use crate::block::{Block, Norm};
use crate::decoder::{Decoder, Positions, ProjectionKind};
use crate::footprint::Footprint;
use crate::load::LoadOptions;
use crate::model::Model;
use crate::rope::alibi_table;

/// Where tensors come from, by their Hugging Face names.
pub(crate) trait Feed<B: Backend> {
    /// Norms and biases.
    fn vector(&mut self, name: &str, len: usize) -> Result<&[f32]>;
    /// Embedding and head, rows and columns: never quantised.
    fn table(&mut self, backend: &B, name: &str, shape: [usize; 2], on_host: bool) -> Result<B::Weight>;
    /// A linear layer of a block.
    fn linear(&mut self, backend: &B, name: &str, rows: usize, cols: usize) -> Result<B::Weight>;
}

/// Puts a model together.
pub(crate) struct Loader<'a, B: Backend, F: Feed<B>> {
    pub(crate) backend: &'a B,
    pub(crate) decoder: &'a Decoder,
    pub(crate) feed: F,
    pub(crate) options: LoadOptions,
    pub(crate) footprint: Footprint,
}

impl<B: Backend, F: Feed<B>> Loader<'_, B, F> {
    pub(crate) fn model(mut self) -> Result<Model<B>> {
        let decoder = self.decoder.clone();
        let names = decoder.names;
        let embedding_name = format!("{}.weight", names.embedding);
        let (embedding, head_name) = if decoder.tie_word_embeddings {
            (None, embedding_name)
        } else {
            (
                Some(self.table(&embedding_name, self.options.embedding_on_host)?),
                format!("{}.weight", names.head),
            )
        };
        let head = Projection {
            in_features: decoder.hidden_size,
            index: u32::MAX,
            parts: vec![Linear {
                weight: self.table(&head_name, false)?,
                bias: None,
                out_features: decoder.vocab_size,
            }],
        };
        let blocks =
            (0..decoder.blocks()).map(|index| self.block(&decoder, index)).collect::<Result<Vec<_>>>()?;
        let final_norm = self.norm(names.final_norm)?;
        let positions = self.options.positions;
        let rope = match &decoder.positions {
            Positions::Rope(rope) => {
                self.footprint.rest += (positions * rope.dim * 4) as u64;
                Some(rope.tables(self.backend, positions)?)
            }
            Positions::Alibi => None,
        };
        let footprint = self.footprint;
        Ok(Model { decoder, embedding, blocks, final_norm, head, rope, positions, footprint })
    }

    fn block(&mut self, decoder: &Decoder, index: usize) -> Result<Block<B>> {
        let norms = decoder.norm_paths(index);
        let norm1 = self.norm(&norms[0])?;
        let norm2 = norms.get(1).map(|path| self.norm(path)).transpose()?;
        let layout = decoder.attention.layout;
        let head_norms = match decoder.attention.head_norm_eps {
            Some(_) => {
                let [query, key] = decoder.names.head_norms.map(|name| decoder.block_path(index, name));
                Some([
                    self.vector(&format!("{query}.weight"), layout.head_dim)?,
                    self.vector(&format!("{key}.weight"), layout.head_dim)?,
                ])
            }
            None => None,
        };
        let alibi = match decoder.positions {
            Positions::Alibi => {
                let positions = self.options.positions;
                let table = alibi_table(layout.heads, layout.head_dim, positions);
                let mut tensor = self.backend.zeros(Dtype::F32, layout.heads, positions)?;
                self.backend.upload(&table, &mut tensor)?;
                self.footprint.rest += table.len() as u64 * 4;
                Some(tensor)
            }
            Positions::Rope(_) => None,
        };
        let attention =
            AttentionSpec { layout, scale: decoder.attention.scale, window: decoder.windows[index], alibi };
        Ok(Block {
            norm1,
            norm2,
            head_norms,
            qkv: self.projection(decoder, index, ProjectionKind::Qkv)?,
            attention_out: self.projection(decoder, index, ProjectionKind::AttentionOut)?,
            mlp_in: self.projection(decoder, index, ProjectionKind::MlpIn)?,
            mlp_out: self.projection(decoder, index, ProjectionKind::MlpOut)?,
            attention,
        })
    }

    fn projection(&mut self, decoder: &Decoder, block: usize, kind: ProjectionKind) -> Result<Projection<B>> {
        let parts = decoder
            .linears(block, kind)
            .into_iter()
            .map(|linear| {
                let weight =
                    self.linear(&format!("{}.weight", linear.path), linear.out_features, linear.in_features)?;
                let bias = linear
                    .bias
                    .then(|| self.vector(&format!("{}.bias", linear.path), linear.out_features))
                    .transpose()?;
                Ok(Linear { weight, bias, out_features: linear.out_features })
            })
            .collect::<Result<_>>()?;
        Ok(Projection {
            in_features: decoder.projection_shape(kind).0,
            index: (block * ProjectionKind::ALL.len() + kind as usize) as u32,
            parts,
        })
    }

    fn norm(&mut self, path: &str) -> Result<Norm<B>> {
        let hidden = self.decoder.hidden_size;
        let weight = self.vector(&format!("{path}.weight"), hidden)?;
        let bias = match self.decoder.norm.kind {
            NormKind::LayerNorm => Some(self.vector(&format!("{path}.bias"), hidden)?),
            NormKind::RmsNorm => None,
        };
        Ok(Norm { weight, bias })
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<B::Tensor> {
        let values = self.feed.vector(name, len)?;
        let mut tensor = self.backend.zeros(Dtype::F32, 1, len)?;
        self.backend.upload(values, &mut tensor)?;
        self.footprint.rest += len as u64 * 4;
        Ok(tensor)
    }

    fn table(&mut self, name: &str, on_host: bool) -> Result<B::Weight> {
        let shape = [self.decoder.vocab_size, self.decoder.hidden_size];
        let weight = self.feed.table(self.backend, name, shape, on_host)?;
        self.footprint.tables += self.backend.weight_bytes(&weight);
        Ok(weight)
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<B::Weight> {
        let weight = self.feed.linear(self.backend, name, rows, cols)?;
        self.footprint.linears += self.backend.weight_bytes(&weight);
        Ok(weight)
    }
}
