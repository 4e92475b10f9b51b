//! Loading: from a checkpoint to frozen weights on a device, one tensor at a time.

use std::ops::Range;
use std::path::{Path, PathBuf};

use eyas_backend::{AttentionSpec, Backend, Dtype, HostMatrix, Linear, NormKind, Projection, Storage};
use eyas_checkpoint::{Checkpoint, TensorDtype, TensorInfo};
use eyas_quant::state_dict::{StateTensor, TensorDtype as StateDtype, quant_state_keys};
use eyas_quant::{Dtype as QuantDtype, Quantized};

use crate::block::{Block, Norm};
use crate::config::Config;
use crate::decoder::{Decoder, Positions, ProjectionKind, Wiring};
use crate::family::{self, RowOrder, gguf_tensor};
use crate::model::Model;
use crate::rope::{RopeScaling, alibi_table};
use crate::{Error, Result};

/// A model on disk: its weights, and its description.
#[derive(Debug)]
pub struct ModelSource {
    path: PathBuf,
    checkpoint: Checkpoint,
    decoder: Decoder,
}

/// How a model is put on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadOptions {
    /// Quantise the blocks' linear layers; `None` keeps them as they are stored. Weights that are stored in
    /// 4 bits already stay as they are. The embedding, the head and the norms are never quantised.
    pub quantize: Option<eyas_backend::spec::QuantConfig>,
    /// The longest sequence that will be run: position tables are made for that many tokens.
    pub positions: usize,
}

/// What the weights take on the device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// The blocks' linear layers.
    pub linears: u64,
    /// Embedding and head.
    pub tables: u64,
    /// Norms, biases and position tables.
    pub rest: u64,
}

impl Footprint {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.linears + self.tables + self.rest
    }
}

impl ModelSource {
    /// Opens a Hugging Face folder or a GGUF file, and checks every tensor's shape against the description.
    ///
    /// # Errors
    /// When a file is missing or damaged, the architecture is unknown, or a tensor is missing or misshapen.
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let decoder = match checkpoint.gguf_metadata() {
            Some(metadata) => family::from_gguf(metadata)?,
            None => {
                let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
                family::from_config(&Config::read(&folder.join("config.json"))?)?
            }
        };
        let mut source = Self { path: path.to_path_buf(), checkpoint, decoder };
        source.settle_head();
        source.settle_rope()?;
        source.check()?;
        Ok(source)
    }

    /// Where the model is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's description.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The weights on disk.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// GGUF says by the presence of a tensor whether the head is the embedding; elsewhere a repeated head is ignored.
    fn settle_head(&mut self) {
        if self.checkpoint.gguf_metadata().is_some() {
            let head = format!("{}.weight", self.decoder.names.head);
            self.decoder.tie_word_embeddings = self.find(&head).is_none();
        }
    }

    fn settle_rope(&mut self) -> Result<()> {
        const DIVISORS: &str = "rope_freqs.weight";
        if self.checkpoint.gguf_metadata().is_none() || !self.checkpoint.contains(DIVISORS) {
            return Ok(());
        }
        let Positions::Rope(rope) = &mut self.decoder.positions else { return Ok(()) };
        let mut divisors = Vec::new();
        self.checkpoint.read_f32(DIVISORS, &mut divisors)?;
        if divisors.len() != rope.dim / 2 || divisors.iter().any(|&d| !d.is_finite() || d <= 0.0) {
            return Err(Error::Weights {
                tensor: DIVISORS.into(),
                reason: format!(
                    "has {} values; {} positive ones were expected",
                    divisors.len(),
                    rope.dim / 2
                ),
            });
        }
        rope.scaling = RopeScaling::Divisors(divisors);
        Ok(())
    }

    /// The stored name and row order of a tensor, by its Hugging Face name. Some checkpoints leave out the first
    /// part of the name, which is the wrapper's.
    fn find(&self, name: &str) -> Option<(String, RowOrder)> {
        if self.checkpoint.gguf_metadata().is_some() {
            return gguf_tensor(&self.decoder, name).filter(|(name, _)| self.checkpoint.contains(name));
        }
        let bare = name.split_once('.').map(|(_, rest)| rest);
        [Some(name), bare]
            .into_iter()
            .flatten()
            .find(|name| self.checkpoint.contains(name))
            .map(|name| (name.to_owned(), RowOrder::Same))
    }

    fn require(&self, name: &str) -> Result<(&TensorInfo, RowOrder)> {
        let Some((stored, order)) = self.find(name) else {
            return Err(Error::Weights {
                tensor: name.into(),
                reason: format!(
                    "is not in {}. The files are incomplete, or belong to another model than the configuration",
                    self.path.display()
                ),
            });
        };
        Ok((self.checkpoint.info(&stored)?, order))
    }

    fn check(&self) -> Result<()> {
        let decoder = &self.decoder;
        let hidden = decoder.hidden_size;
        let names = &decoder.names;
        self.check_shape(&format!("{}.weight", names.embedding), &[decoder.vocab_size, hidden])?;
        if !decoder.tie_word_embeddings {
            self.check_shape(&format!("{}.weight", names.head), &[decoder.vocab_size, hidden])?;
        }
        for (.., linear) in decoder.all_linears() {
            let name = format!("{}.weight", linear.path);
            if self.quantized_key(&name).is_none() {
                self.check_shape(&name, &[linear.out_features, linear.in_features])?;
            }
            if linear.bias {
                self.check_shape(&format!("{}.bias", linear.path), &[linear.out_features])?;
            }
        }
        for block in 0..decoder.blocks() {
            for norm in self.norm_paths(block) {
                self.check_norm(&norm)?;
            }
            if decoder.attention.head_norm_eps.is_some() {
                for name in names.head_norms {
                    let path = decoder.block_path(block, name);
                    self.check_shape(&format!("{path}.weight"), &[decoder.attention.layout.head_dim])?;
                }
            }
        }
        self.check_norm(names.final_norm)
    }

    fn norm_paths(&self, block: usize) -> Vec<String> {
        let names = &self.decoder.names;
        let mut paths = vec![self.decoder.block_path(block, names.norm1)];
        if self.decoder.wiring != Wiring::ParallelOneNorm {
            paths.push(self.decoder.block_path(block, names.norm2));
        }
        paths
    }

    fn check_norm(&self, path: &str) -> Result<()> {
        self.check_shape(&format!("{path}.weight"), &[self.decoder.hidden_size])?;
        if self.decoder.norm.kind == NormKind::LayerNorm {
            self.check_shape(&format!("{path}.bias"), &[self.decoder.hidden_size])?;
        }
        Ok(())
    }

    fn check_shape(&self, name: &str, expected: &[usize]) -> Result<()> {
        let (info, _) = self.require(name)?;
        if info.shape != expected {
            return Err(Error::Weights {
                tensor: info.name.clone(),
                reason: format!(
                    "has the shape {:?}; the configuration asks for {expected:?}. They belong to different models",
                    info.shape
                ),
            });
        }
        if !info.dtype.is_float() {
            return Err(Error::Weights {
                tensor: info.name.clone(),
                reason: format!("holds {}, which is no type of weights that eyas reads", info.dtype),
            });
        }
        Ok(())
    }

    /// The stored name of a weight that bitsandbytes quantised.
    fn quantized_key(&self, name: &str) -> Option<String> {
        let (stored, _) = self.find(name)?;
        quant_state_keys(&stored).into_iter().any(|(_, key)| self.checkpoint.contains(&key)).then_some(stored)
    }

    /// Puts the model on a device. `progress` is told the bytes read so far and in all.
    ///
    /// # Errors
    /// When a tensor cannot be read or holds values that are not finite, or the device has no room.
    pub fn load<B: Backend>(
        &self,
        backend: &B,
        options: LoadOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Model<B>> {
        let total = self.checkpoint.tensors().map(|info| info.byte_len() as u64).sum();
        let mut loader = Loader {
            source: self,
            backend,
            options,
            buffer: Vec::new(),
            footprint: Footprint::default(),
            read: 0,
            total,
            progress,
        };
        loader.model()
    }
}

struct Loader<'a, B: Backend> {
    source: &'a ModelSource,
    backend: &'a B,
    options: LoadOptions,
    /// Reused by every tensor that has to be converted.
    buffer: Vec<f32>,
    footprint: Footprint,
    read: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<B: Backend> Loader<'_, B> {
    fn model(&mut self) -> Result<Model<B>> {
        let decoder = self.source.decoder.clone();
        let names = decoder.names;
        let embedding_name = format!("{}.weight", names.embedding);
        let (embedding, head_name) = if decoder.tie_word_embeddings {
            (None, embedding_name)
        } else {
            (Some(self.table(&embedding_name)?), format!("{}.weight", names.head))
        };
        let head = Projection {
            in_features: decoder.hidden_size,
            index: u32::MAX,
            parts: vec![Linear {
                weight: self.table(&head_name)?,
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
        (self.progress)(self.total, self.total);
        let footprint = self.footprint;
        Ok(Model { decoder, embedding, blocks, final_norm, head, rope, positions, footprint })
    }

    fn block(&mut self, decoder: &Decoder, index: usize) -> Result<Block<B>> {
        let norms = self.source.norm_paths(index);
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
        let hidden = self.source.decoder.hidden_size;
        let weight = self.vector(&format!("{path}.weight"), hidden)?;
        let bias = match self.source.decoder.norm.kind {
            NormKind::LayerNorm => Some(self.vector(&format!("{path}.bias"), hidden)?),
            NormKind::RmsNorm => None,
        };
        Ok(Norm { weight, bias })
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<B::Tensor> {
        let (info, _) = self.source.require(name)?;
        self.source.checkpoint.read_f32(&info.name, &mut self.buffer)?;
        let mut tensor = self.backend.zeros(Dtype::F32, 1, len)?;
        self.backend.upload(&self.buffer, &mut tensor)?;
        self.footprint.rest += len as u64 * 4;
        self.advance(info);
        Ok(tensor)
    }

    fn table(&mut self, name: &str) -> Result<B::Weight> {
        let (info, order) = self.source.require(name)?;
        let weight = self.matrix(info, order, Storage::Dense(dense_dtype(info.dtype)))?;
        self.footprint.tables += self.backend.weight_bytes(&weight);
        Ok(weight)
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<B::Weight> {
        let weight = if let Some(stored) = self.source.quantized_key(name) {
            self.stored_quantized(&stored, rows, cols)?
        } else {
            let (info, order) = self.source.require(name)?;
            let storage = match self.options.quantize {
                Some(config) => Storage::Quantised(config),
                None => Storage::Dense(dense_dtype(info.dtype)),
            };
            self.matrix(info, order, storage)?
        };
        self.footprint.linears += self.backend.weight_bytes(&weight);
        Ok(weight)
    }

    fn matrix(&mut self, info: &TensorInfo, order: RowOrder, storage: Storage) -> Result<B::Weight> {
        let checkpoint = &self.source.checkpoint;
        let (rows, cols) = (info.rows(), info.row_len());
        let direct = match (info.dtype, order) {
            (TensorDtype::F32, RowOrder::Same) => Some(Dtype::F32),
            (TensorDtype::F16, RowOrder::Same) => Some(Dtype::F16),
            (TensorDtype::BF16, RowOrder::Same) => Some(Dtype::Bf16),
            _ => None,
        };
        let weight = match direct {
            Some(dtype) => {
                let bytes = checkpoint.read_bytes(&info.name)?;
                self.backend.load_weight(HostMatrix { rows, cols, dtype, bytes: &bytes }, storage)
            }
            None => {
                checkpoint.read_f32(&info.name, &mut self.buffer)?;
                if let RowOrder::Interleaved { head_dim } = order {
                    self.buffer = deinterleave(&self.buffer, rows, cols, head_dim);
                }
                self.backend.load_weight(HostMatrix::from_f32(rows, cols, &self.buffer)?, storage)
            }
        }
        .map_err(|error| match error {
            eyas_backend::Error::Quant(error) => {
                Error::Weights { tensor: info.name.clone(), reason: error.to_string() }
            }
            other => other.into(),
        })?;
        checkpoint.release(&info.name)?;
        self.advance(info);
        Ok(weight)
    }

    fn stored_quantized(&mut self, stored: &str, rows: usize, cols: usize) -> Result<B::Weight> {
        let wrong = |reason: String| Error::Weights { tensor: stored.into(), reason };
        let quantized = read_quantized(&self.source.checkpoint, stored)?;
        if (quantized.rows(), quantized.cols()) != (rows, cols) {
            return Err(wrong(format!(
                "was quantised as {} x {}; the configuration asks for {rows} x {cols}",
                quantized.rows(),
                quantized.cols()
            )));
        }
        if let Ok(info) = self.source.checkpoint.info(stored) {
            self.advance(info);
        }
        Ok(self.backend.load_quantized(quantized)?)
    }

    fn advance(&mut self, info: &TensorInfo) {
        self.read = (self.read + info.byte_len() as u64).min(self.total);
        (self.progress)(self.read, self.total);
    }
}

/// Reads a weight that bitsandbytes quantised.
fn read_quantized(checkpoint: &Checkpoint, stored: &str) -> Result<Quantized> {
    let tensor = |key: &str| {
        let info = checkpoint.info(key).ok()?;
        let dtype = match info.dtype {
            TensorDtype::F32 => StateDtype::Float(QuantDtype::F32),
            TensorDtype::F16 => StateDtype::Float(QuantDtype::F16),
            TensorDtype::BF16 => StateDtype::Float(QuantDtype::Bf16),
            TensorDtype::U8 => StateDtype::U8,
            _ => return None,
        };
        let data = checkpoint.read_bytes(key).ok()?;
        Some(StateTensor { dtype, shape: info.shape.clone(), data })
    };
    Quantized::from_state_dict(stored, tensor)
        .map_err(|error| Error::Weights { tensor: stored.into(), reason: error.to_string() })
}

/// The element type of a dense weight on the device: as stored, bfloat16 for block types.
fn dense_dtype(stored: TensorDtype) -> Dtype {
    match stored {
        TensorDtype::F32 | TensorDtype::F64 => Dtype::F32,
        TensorDtype::F16 => Dtype::F16,
        _ => Dtype::Bf16,
    }
}

/// Undoes llama.cpp's interleaving of each head's rotary pairs: its row `2 i + j` of a head is our row
/// `j * head_dim / 2 + i`.
fn deinterleave(values: &[f32], rows: usize, cols: usize, head_dim: usize) -> Vec<f32> {
    let row = |index: usize| -> Range<usize> { index * cols..(index + 1) * cols };
    let half = head_dim / 2;
    let mut out = vec![0.0; values.len()];
    for target in 0..rows {
        let (head, within) = (target / head_dim, target % head_dim);
        let source = head * head_dim + 2 * (within % half) + within / half;
        out[row(target)].copy_from_slice(&values[row(source)]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deinterleaving_puts_pairs_apart() {
        let values: Vec<f32> = (0..8).map(|v| v as f32).collect();
        assert_eq!(deinterleave(&values, 8, 1, 4), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }
}
