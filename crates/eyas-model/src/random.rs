//! A model of a given shape with random weights: to measure speed and memory, which do not depend on the values.

use std::collections::HashMap;

use eyas_backend::spec::QuantConfig;
use eyas_backend::{Backend, Dtype, HostMatrix, Storage};
use half::bf16;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Result;
use crate::decoder::Decoder;
use crate::footprint::Footprint;
use crate::load::LoadOptions;
use crate::loader::{Feed, Loader};
use crate::model::Model;

/// Spread of the weights, as models are initialised.
const DEVIATION: f32 = 0.02;

/// Tensors made up as they are asked for. Matrices of one shape hold the same values: making seven billion would take
/// longer than what is measured.
struct Random<'a> {
    rng: ChaCha8Rng,
    quantize: Option<QuantConfig>,
    matrices: HashMap<(usize, usize), Vec<u8>>,
    vector: Vec<f32>,
    /// Tensors made and to be made.
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Random<'_> {
    fn matrix<B: Backend>(
        &mut self,
        backend: &B,
        rows: usize,
        cols: usize,
        storage: Storage,
    ) -> Result<B::Weight> {
        let rng = &mut self.rng;
        let bytes = self.matrices.entry((rows, cols)).or_insert_with(|| {
            // A uniform spread of the same deviation: cheap, and as hard to quantise.
            let half = DEVIATION * 3f32.sqrt();
            (0..rows * cols)
                .flat_map(|_| bf16::from_f32(rng.random_range(-half..half)).to_le_bytes())
                .collect()
        });
        let weight = backend.load_weight(HostMatrix { rows, cols, dtype: Dtype::Bf16, bytes }, storage)?;
        self.advance();
        Ok(weight)
    }

    fn advance(&mut self) {
        self.done += 1;
        (self.progress)(self.done.min(self.total), self.total);
    }
}

impl<B: Backend> Feed<B> for Random<'_> {
    fn vector(&mut self, name: &str, len: usize) -> Result<&[f32]> {
        self.vector.clear();
        self.vector.resize(len, if name.ends_with(".bias") { 0.0 } else { 1.0 });
        Ok(&self.vector)
    }

    fn table(
        &mut self,
        backend: &B,
        _name: &str,
        [rows, cols]: [usize; 2],
        on_host: bool,
    ) -> Result<B::Weight> {
        let storage = if on_host { Storage::OnHost(Dtype::Bf16) } else { Storage::Dense(Dtype::Bf16) };
        self.matrix(backend, rows, cols, storage)
    }

    fn linear(&mut self, backend: &B, _name: &str, rows: usize, cols: usize) -> Result<B::Weight> {
        let storage = self.quantize.map_or(Storage::Dense(Dtype::Bf16), Storage::Quantised);
        self.matrix(backend, rows, cols, storage)
    }
}

impl<B: Backend> Model<B> {
    /// A model of this shape with random weights. `progress` is told the tensors made so far and in all.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn random(
        backend: &B,
        decoder: &Decoder,
        options: LoadOptions,
        seed: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let total = decoder.all_linears().count() as u64 + if decoder.tie_word_embeddings { 1 } else { 2 };
        let feed = Random {
            rng: ChaCha8Rng::seed_from_u64(seed),
            quantize: options.quantize,
            matrices: HashMap::new(),
            vector: Vec::new(),
            done: 0,
            total,
            progress,
        };
        let linears = options.quantize.map_or(Storage::Dense(Dtype::Bf16), Storage::Quantised);
        let footprint = Footprint::empty(linears, Storage::Dense(Dtype::Bf16));
        Loader { backend, decoder, feed, options, footprint }.model()
    }
}
