//! A model on disk: finding its tensors, checking their shapes, reading them one at a time.

use std::ops::Range;
use std::path::{Path, PathBuf};

use eyas_backend::spec::QuantConfig;
use eyas_backend::{Backend, Dtype, HostMatrix, NormKind, Storage};
use eyas_checkpoint::layout::CONFIG;
use eyas_checkpoint::{Checkpoint, TensorDtype, TensorInfo};
use eyas_quant::state_dict::{StateTensor, TensorDtype as StateDtype, quant_state_keys};
use eyas_quant::{Dtype as QuantDtype, Quantized};

use crate::config::Config;
use crate::decoder::{Decoder, Positions};
use crate::family::{self, RowOrder, gguf_tensor};
use crate::footprint::Footprint;
use crate::loader::{Feed, Loader};
use crate::model::Model;
use crate::rope::RopeScaling;
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
    pub quantize: Option<QuantConfig>,
    /// The longest sequence that will be run: position tables are made for that many tokens.
    pub positions: usize,
    /// Keep an embedding that is not the head as well in host memory, where the device reads the rows it needs.
    pub embedding_on_host: bool,
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
            None => family::from_config(&Config::read(&folder_of(path).join(CONFIG))?)?,
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

    /// The folder that the model is in.
    pub fn folder(&self) -> &Path {
        folder_of(&self.path)
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

    pub(crate) fn require(&self, name: &str) -> Result<(&TensorInfo, RowOrder)> {
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
            for norm in decoder.norm_paths(block) {
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
    pub(crate) fn quantized_key(&self, name: &str) -> Option<String> {
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
        let feed =
            Files { source: self, quantize: options.quantize, buffer: Vec::new(), read: 0, total, progress };
        let (linears, tables) = self.storage(options);
        let footprint = Footprint::empty(linears, tables);
        let decoder = &self.decoder;
        Loader { backend, decoder, feed, options, footprint }.model()
    }

    /// What the model will take on a device of this kind, with activations of `dtype`.
    pub fn footprint<B: Backend>(&self, dtype: Dtype, options: LoadOptions) -> Footprint {
        let (linears, tables) = self.storage(options);
        Footprint::predict::<B>(&self.decoder, dtype, linears, tables, options)
    }

    /// How linear layers and tables are kept: as the first of each is.
    fn storage(&self, options: LoadOptions) -> (Storage, Storage) {
        let dense = |name: &str| match self.require(name) {
            Ok((info, _)) => Storage::Dense(dense_dtype(info.dtype)),
            Err(_) => Storage::Dense(Dtype::Bf16),
        };
        let first = self.decoder.all_linears().next().map(|(.., linear)| format!("{}.weight", linear.path));
        let linears = match (options.quantize, &first) {
            (Some(config), _) => Storage::Quantised(config),
            (None, Some(name)) if self.quantized_key(name).is_some() => {
                Storage::Quantised(QuantConfig::default())
            }
            (None, Some(name)) => dense(name),
            (None, None) => Storage::Dense(Dtype::Bf16),
        };
        (linears, dense(&format!("{}.weight", self.decoder.names.embedding)))
    }
}

fn folder_of(path: &Path) -> &Path {
    if path.is_dir() {
        return path;
    }
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The tensors of a checkpoint.
struct Files<'a> {
    source: &'a ModelSource,
    quantize: Option<QuantConfig>,
    /// Reused by every tensor that has to be converted.
    buffer: Vec<f32>,
    read: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<B: Backend> Feed<B> for Files<'_> {
    fn vector(&mut self, name: &str, _len: usize) -> Result<&[f32]> {
        let (info, _) = self.source.require(name)?;
        self.source.checkpoint.read_f32(&info.name, &mut self.buffer)?;
        self.advance(info);
        Ok(&self.buffer)
    }

    fn table(&mut self, backend: &B, name: &str, _shape: [usize; 2], on_host: bool) -> Result<B::Weight> {
        let (info, order) = self.source.require(name)?;
        let dtype = dense_dtype(info.dtype);
        let storage = if on_host { Storage::OnHost(dtype) } else { Storage::Dense(dtype) };
        self.matrix(backend, info, order, storage)
    }

    fn linear(&mut self, backend: &B, name: &str, rows: usize, cols: usize) -> Result<B::Weight> {
        if let Some(stored) = self.source.quantized_key(name) {
            return self.stored_quantized(backend, &stored, rows, cols);
        }
        let (info, order) = self.source.require(name)?;
        let storage = match self.quantize {
            Some(config) => Storage::Quantised(config),
            None => Storage::Dense(dense_dtype(info.dtype)),
        };
        self.matrix(backend, info, order, storage)
    }
}

impl Files<'_> {
    fn matrix<B: Backend>(
        &mut self,
        backend: &B,
        info: &TensorInfo,
        order: RowOrder,
        storage: Storage,
    ) -> Result<B::Weight> {
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
                backend.load_weight(HostMatrix { rows, cols, dtype, bytes: &bytes }, storage)
            }
            None => {
                checkpoint.read_f32(&info.name, &mut self.buffer)?;
                if let RowOrder::Interleaved { head_dim } = order {
                    self.buffer = deinterleave(&self.buffer, rows, cols, head_dim);
                }
                backend.load_weight(HostMatrix::from_f32(rows, cols, &self.buffer)?, storage)
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

    fn stored_quantized<B: Backend>(
        &mut self,
        backend: &B,
        stored: &str,
        rows: usize,
        cols: usize,
    ) -> Result<B::Weight> {
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
        Ok(backend.load_quantized(quantized)?)
    }

    fn advance(&mut self, info: &TensorInfo) {
        self.read = (self.read + info.byte_len() as u64).min(self.total);
        (self.progress)(self.read, self.total);
    }
}

/// Reads a weight that bitsandbytes quantised.
pub(crate) fn read_quantized(checkpoint: &Checkpoint, stored: &str) -> Result<Quantized> {
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
pub(crate) fn dense_dtype(stored: TensorDtype) -> Dtype {
    match stored {
        TensorDtype::F32 | TensorDtype::F64 => Dtype::F32,
        TensorDtype::F16 => Dtype::F16,
        _ => Dtype::Bf16,
    }
}

/// Undoes llama.cpp's interleaving of each head's rotary pairs: its row `2 i + j` of a head is our row
/// `j * head_dim / 2 + i`.
pub(crate) fn deinterleave(values: &[f32], rows: usize, cols: usize, head_dim: usize) -> Vec<f32> {
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
