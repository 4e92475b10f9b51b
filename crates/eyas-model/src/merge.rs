//! Merging an adapter into its base: `W + scaling * B A` for every target, written as a Hugging Face folder.
//!
//! The sum is PEFT's `merge_and_unload`: in `f32`, rounded once to the type that is written. A matrix passes in blocks
//! of rows, so the memory needed is that of a block and the adapter, not of the model; with `.bin` files and weights in
//! 4 bits it is that of one matrix as stored.
//!
//! The base's weights are the original ones, or with [`MergeOptions::quantize`] what training saw of them: quantised to
//! 4 bits and read back. The adapter was fitted to the latter, so that merge is the trained function but for one
//! rounding; the former differs from it by the base's quantisation error, mostly for the better.

use std::path::Path;

use eyas_backend::spec::QuantConfig;
use eyas_backend::{Dtype, LoraSlot, NormKind};
use eyas_checkpoint::layout::CONFIG;
use eyas_checkpoint::{SafetensorsWriter, ShardedWriter, TensorDtype, TensorInfo, write_atomic};
use eyas_quant::{Element, Quantized, Quantizer};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::adapter::LoraAdapter;
use crate::decoder::Decoder;
use crate::family::{self, RowOrder};
use crate::load::{ModelSource, deinterleave, dense_dtype, read_quantized};
use crate::{Error, Result};

/// Elements that are in memory at once: 16 MiB of `f32`.
const BLOCK: usize = 1 << 22;

/// How an adapter is merged and written.
#[derive(Clone, Copy, Debug)]
pub struct MergeOptions {
    /// The type of the weights written; `None` is the base's own, bfloat16 for a base that is stored in blocks.
    pub dtype: Option<Dtype>,
    /// The most bytes of a file, unless one tensor is larger.
    pub max_shard_size: u64,
    /// Merge into the linear layers as they are after quantisation; `None` takes them as they are stored.
    pub quantize: Option<QuantConfig>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The type of the weights.
    pub dtype: Dtype,
    /// Matrices that the adapter changed.
    pub targets: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The weight files.
    pub files: Vec<String>,
}

/// Writes the merged model's weights and `config.json` into a folder, then opens them again as a model: what it
/// describes must be the base. `progress` is told the bytes written so far and in all.
///
/// # Errors
/// When a tensor cannot be read or written, a merged value does not fit the type, or the base's configuration cannot
/// be said in `config.json`.
pub fn merge(
    source: &ModelSource,
    adapter: &LoraAdapter,
    folder: &Path,
    options: MergeOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Merged> {
    let decoder = source.decoder();
    let dtype = options.dtype.unwrap_or_else(|| source.linear_dtype());
    let config = family::to_config(source, dtype)?;
    let stored = |(name, shape)| TensorInfo { name, shape, dtype: tensor_dtype(dtype) };
    let writer = ShardedWriter::new(
        folder,
        tensors(decoder).into_iter().map(stored).collect(),
        options.max_shard_size,
    );
    let mut merger = Merger { source, adapter, quantize: options.quantize, values: Vec::new(), done: 0 };
    let total = writer.total_size();
    writer.write(|tensor, out| merger.tensor(tensor, dtype, out, &mut |done| progress(done, total)))?;
    let text = format!("{config:#}\n");
    write_atomic(&folder.join(CONFIG), |file| file.write_all(text.as_bytes()))?;

    let written = ModelSource::open(folder)?;
    family::check_same(decoder, written.decoder())?;
    Ok(Merged { dtype, targets: adapter.layout.targets().len(), bytes: total, files: writer.names() })
}

/// Every tensor of a model by its Hugging Face name, with its shape, in the order in which it is run.
fn tensors(decoder: &Decoder) -> Vec<(String, Vec<usize>)> {
    let (vocab, hidden) = (decoder.vocab_size, decoder.hidden_size);
    let names = &decoder.names;
    let mut all = vec![(format!("{}.weight", names.embedding), vec![vocab, hidden])];
    let norm = |path: &str, all: &mut Vec<(String, Vec<usize>)>| {
        all.push((format!("{path}.weight"), vec![hidden]));
        if decoder.norm.kind == NormKind::LayerNorm {
            all.push((format!("{path}.bias"), vec![hidden]));
        }
    };
    let mut linears = decoder.all_linears().peekable();
    for block in 0..decoder.blocks() {
        decoder.norm_paths(block).iter().for_each(|path| norm(path, &mut all));
        if decoder.attention.head_norm_eps.is_some() {
            for name in names.head_norms {
                let path = decoder.block_path(block, name);
                all.push((format!("{path}.weight"), vec![decoder.attention.layout.head_dim]));
            }
        }
        while let Some((.., linear)) = linears.next_if(|(at, ..)| *at == block) {
            all.push((format!("{}.weight", linear.path), vec![linear.out_features, linear.in_features]));
            if linear.bias {
                all.push((format!("{}.bias", linear.path), vec![linear.out_features]));
            }
        }
    }
    norm(names.final_norm, &mut all);
    if !decoder.tie_word_embeddings {
        all.push((format!("{}.weight", names.head), vec![vocab, hidden]));
    }
    all
}

/// Where a linear layer's base values come from.
enum Base<'a> {
    Stored(&'a TensorInfo, RowOrder),
    Quantized(Quantized),
}

struct Merger<'a> {
    source: &'a ModelSource,
    adapter: &'a LoraAdapter,
    quantize: Option<QuantConfig>,
    /// A block of values, reused.
    values: Vec<f32>,
    done: u64,
}

impl<'a> Merger<'a> {
    fn tensor(
        &mut self,
        tensor: &TensorInfo,
        dtype: Dtype,
        out: &mut SafetensorsWriter,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let layout = &self.adapter.layout;
        let linear = self.source.decoder().all_linears().find(|(.., linear)| {
            tensor.name.strip_suffix(".weight").is_some_and(|module| module == linear.path)
        });
        let slot = layout
            .targets()
            .iter()
            .find(|target| linear.as_ref().is_some_and(|(.., linear)| target.linear.path == linear.path))
            .map(|target| target.slot);
        let base = self.base(&tensor.name, linear.is_some())?;
        let (rows, cols) = (tensor.rows(), tensor.row_len());
        let step = self.rows_at_once(&base, cols);
        for start in (0..rows).step_by(step) {
            let range = start..(start + step).min(rows);
            match &base {
                Base::Quantized(quantized) => {
                    self.values.resize(range.len() * cols, 0.0);
                    quantized
                        .dequantize_rows_into(range.clone(), &mut self.values)
                        .map_err(|error| weights(&tensor.name, error.to_string()))?;
                }
                Base::Stored(info, order) => self.read(info, *order, range.start, range.len())?,
            }
            if let Some(slot) = slot {
                add_update(&mut self.values, start, cols, slot, &self.adapter.params);
            }
            let bytes = narrowed(&self.values, dtype)
                .map_err(|value| weights(&tensor.name, format!(
                    "is {value} in the merged model, which {dtype:?} cannot hold; write bf16 or f32, or look whether \
                     base and adapter are whole"
                )))?;
            out.write(&bytes)?;
            self.done += bytes.len() as u64;
            progress(self.done);
        }
        if let Base::Stored(info, _) = base {
            self.source.checkpoint().release(&info.name)?;
        }
        Ok(())
    }

    fn base(&mut self, name: &str, linear: bool) -> Result<Base<'a>> {
        let source = self.source;
        if let Some(stored) = source.quantized_key(name) {
            return Ok(Base::Quantized(read_quantized(source.checkpoint(), &stored)?));
        }
        let (info, order) = source.require(name)?;
        let Some(config) = self.quantize.filter(|_| linear) else { return Ok(Base::Stored(info, order)) };
        let fail = |error: eyas_quant::Error| weights(name, error.to_string());
        let (rows, cols) = (info.rows(), info.row_len());
        let mut quantizer = Quantizer::new(rows, cols, &config).map_err(fail)?;
        let step = self.rows_at_once(&Base::Stored(info, order), cols);
        for start in (0..rows).step_by(step) {
            self.read(info, order, start, step.min(rows - start))?;
            quantizer.push(&self.values).map_err(fail)?;
        }
        Ok(Base::Quantized(quantizer.finish().map_err(fail)?))
    }

    /// Rows of a block: whole heads, where their rows change places.
    fn rows_at_once(&self, base: &Base<'_>, cols: usize) -> usize {
        let unit = match base {
            Base::Stored(_, RowOrder::Interleaved { head_dim }) => *head_dim,
            _ => 1,
        };
        (BLOCK / cols.max(1) / unit).max(1) * unit
    }

    fn read(&mut self, info: &TensorInfo, order: RowOrder, start: usize, rows: usize) -> Result<()> {
        self.source.checkpoint().read_rows_f32(&info.name, start..start + rows, &mut self.values)?;
        if let RowOrder::Interleaved { head_dim } = order {
            self.values = deinterleave(&self.values, rows, info.row_len(), head_dim);
        }
        Ok(())
    }
}

/// Adds a target's update to the rows from `first` on: `scaling * (B A)`.
fn add_update(values: &mut [f32], first: usize, cols: usize, slot: LoraSlot, params: &[f32]) {
    let a = &params[slot.a..][..slot.r * cols];
    let b = &params[slot.b..];
    values.par_chunks_mut(cols).enumerate().for_each_init(
        || vec![0.0f32; cols],
        |delta, (row, values)| {
            delta.fill(0.0);
            let weights = &b[(first + row) * slot.r..][..slot.r];
            for (weight, a) in weights.iter().zip(a.chunks_exact(cols)) {
                delta.iter_mut().zip(a).for_each(|(delta, a)| *delta += weight * a);
            }
            values.iter_mut().zip(&*delta).for_each(|(value, delta)| *value += slot.scaling * delta);
        },
    );
}

/// Values rounded to a type, as bytes; an error with the first that is not finite there.
fn narrowed(values: &[f32], dtype: Dtype) -> Result<Vec<u8>, f32> {
    fn round<T: Element>(values: &[f32], finite: impl Fn(T) -> bool + Sync) -> Result<Vec<u8>, f32> {
        let mut bytes = vec![0u8; size_of_val(values) / size_of::<f32>() * size_of::<T>()];
        let wrong = bytes.par_chunks_mut(512 * size_of::<T>()).zip(values.par_chunks(512)).find_map_first(
            |(bytes, values)| {
                let mut rounded = [T::zeroed(); 512];
                let rounded = &mut rounded[..values.len()];
                T::narrow(values, rounded);
                bytes.copy_from_slice(bytemuck::cast_slice(rounded));
                rounded.iter().zip(values).find(|(rounded, _)| !finite(**rounded)).map(|(_, value)| *value)
            },
        );
        wrong.map_or(Ok(bytes), Err)
    }
    match dtype {
        Dtype::F32 => round::<f32>(values, f32::is_finite),
        Dtype::F16 => round::<f16>(values, f16::is_finite),
        Dtype::Bf16 => round::<bf16>(values, bf16::is_finite),
    }
}

fn weights(tensor: &str, reason: String) -> Error {
    Error::Weights { tensor: tensor.into(), reason }
}

fn tensor_dtype(dtype: Dtype) -> TensorDtype {
    match dtype {
        Dtype::F32 => TensorDtype::F32,
        Dtype::F16 => TensorDtype::F16,
        Dtype::Bf16 => TensorDtype::BF16,
    }
}

impl ModelSource {
    /// The type that the linear layers are stored in; bfloat16 for block types.
    fn linear_dtype(&self) -> Dtype {
        let Some((.., linear)) = self.decoder().all_linears().next() else { return Dtype::Bf16 };
        let name = format!("{}.weight", linear.path);
        match self.quantized_key(&name) {
            Some(stored) => read_quantized(self.checkpoint(), &stored).map_or(Dtype::Bf16, |quantized| {
                match quantized.dtype() {
                    eyas_quant::Dtype::F32 => Dtype::F32,
                    eyas_quant::Dtype::F16 => Dtype::F16,
                    eyas_quant::Dtype::Bf16 => Dtype::Bf16,
                }
            }),
            None => self.require(&name).map_or(Dtype::Bf16, |(info, _)| dense_dtype(info.dtype)),
        }
    }
}
