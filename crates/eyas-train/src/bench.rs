//! Measuring training: whole steps of a run on random tokens, and the ceilings of a device to compare them with.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use eyas_backend::memory::host_memory;
use eyas_backend::{Backend, Dtype, FlatBatch, HostMatrix, Linear, OpTime, Projection, Storage, Write};
use eyas_model::LoraLayout;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::engine::{Engine, Update};
use crate::plan::{self, Role, Shape, TrainingPlan};
use crate::prepare::check_replicas;
use crate::recipe::Recipe;
use crate::replica::Replica;
use crate::room::Share;
use crate::{Error, Result};

/// How long the rows of a benchmark are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengths {
    /// All alike.
    Fixed(usize),
    /// As conversations are: log-normal about a mean, with a spread of 0.6 of the logarithm, between 16 tokens and
    /// four times the mean.
    LogNormal(usize),
}

impl Lengths {
    /// The lengths of `rows` rows.
    fn draw(self, rows: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        const SIGMA: f64 = 0.6;
        let mut one = || match self {
            Self::Fixed(length) => length,
            Self::LogNormal(mean) => {
                // Box and Muller's normal variate.
                let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
                let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
                let length = mean as f64 * (SIGMA * normal - SIGMA * SIGMA / 2.0).exp();
                (length.round() as usize).clamp(16, 4 * mean)
            }
        };
        (0..rows).map(|_| one()).collect()
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Length of the rows.
    pub lengths: Lengths,
    /// Steps that are counted. One before them warms up.
    pub steps: usize,
    /// Seed of tokens and lengths.
    pub seed: u64,
}

/// What [`train`] measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The memory plan of the run, for each replica.
    pub plans: Vec<TrainingPlan>,
    /// Seconds from the plan to the end of the first step: allocation and tuning.
    pub first_step: f64,
    /// Seconds of each counted step.
    pub seconds: Vec<f64>,
    /// Tokens of each counted step.
    pub tokens: Vec<usize>,
    /// The loss of every step, those not counted included.
    pub losses: Vec<f32>,
    /// The most bytes held on each device; empty where they do not tell.
    pub peaks: Vec<u64>,
    /// What each operation took in one more step on the first device, where it can tell.
    pub operations: Vec<OpTime>,
    /// Floating-point operations of the frozen products for each token: twice the weights forward, and again for the
    /// input gradient.
    pub flops_per_token: f64,
}

impl Measured {
    /// Tokens a second over all counted steps.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens.iter().sum::<usize>() as f64 / self.seconds.iter().sum::<f64>()
    }

    /// Seconds of the median step.
    pub fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Trains on random tokens by a recipe, every token a target, and measures it. Batch and accumulation are the recipe's,
/// for each replica.
///
/// # Errors
/// When no plan fits the memory or a device fails.
pub fn train<B: Backend>(
    replicas: &[Replica<'_, B>],
    recipe: &Recipe,
    options: Options,
    stop: &AtomicBool,
    mut done: impl FnMut(usize),
) -> Result<Measured> {
    let training = &recipe.training;
    check_replicas(replicas, recipe)?;
    let decoder = replicas[0].model.decoder();
    let layout = LoraLayout::new(decoder, recipe.lora.config())?;
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let share = Share::of(training, replicas.len());
    let steps = (0..options.steps + 2)
        .map(|_| micro_batches(share, options.lengths, decoder.vocab_size, &mut rng))
        .collect::<Result<Vec<_>>>()?;
    let most = |count: fn(&FlatBatch) -> usize| steps.iter().flatten().map(count).max().unwrap_or(0);
    let plan = |(number, Replica { backend, model, .. }): (usize, &Replica<'_, B>)| {
        let shape = Shape {
            role: Role::of(number, replicas.len()),
            decoder,
            layout: &layout,
            weights: model.footprint(),
            dtype: backend.compute_dtype(),
            batch: share.batch,
            max_tokens: most(FlatBatch::tokens),
            max_sequences: most(FlatBatch::sequences),
            max_targets: most(FlatBatch::target_tokens),
            moments: training.optim.moments(),
            host_memory: host_memory().map(|bytes| bytes / replicas.len() as u64),
        };
        let budget = plan::budget(*backend, model.footprint(), training.memory_budget)?;
        TrainingPlan::new::<B>(&shape, training.gradient_checkpointing, budget, None)
    };
    let plans = replicas.iter().enumerate().map(plan).collect::<Result<Vec<_>>>()?;

    let start = Instant::now();
    let params = layout.initialize(training.seed);
    let memory: Vec<_> = plans.iter().map(|plan| plan.memory.clone()).collect();
    let mut engine = Engine::new(replicas, layout, &params, plans[0].moments, &memory)?;
    let leader = replicas[0].backend;
    let (mut seconds, mut tokens) = (Vec::new(), Vec::new());
    let (mut first_step, mut losses, mut micro) = (0.0, Vec::new(), 0);
    for (index, step) in steps.iter().enumerate() {
        let watched = index > options.steps;
        if watched {
            leader.measure(true)?;
        }
        let begun = Instant::now();
        let Some(measured) = engine.accumulate(step, micro, training, stop, |_| {})? else { break };
        let update = engine.update(measured, training, training.learning_rate)?;
        leader.synchronize()?;
        let loss = measured.loss;
        let broken = [
            ("loss", loss, !loss.is_finite()),
            ("gradient's norm", measured.grad_norm, update == Update::Impossible),
        ];
        if let Some((what, value, _)) = broken.into_iter().find(|(.., broken)| *broken) {
            let advice = "the benchmark's random weights gave it".into();
            return Err(Error::NotFinite { step: index as u64 + 1, what, value, advice });
        }
        losses.push(loss);
        micro += step.len() as u32;
        match index {
            0 => first_step = start.elapsed().as_secs_f64(),
            _ if watched => {}
            _ => {
                seconds.push(begun.elapsed().as_secs_f64());
                tokens.push(step.iter().map(FlatBatch::tokens).sum());
            }
        }
        done(index + 1);
    }
    let operations = leader.measured()?;
    leader.measure(false)?;
    let head = (decoder.vocab_size * decoder.hidden_size) as f64;
    Ok(Measured {
        plans,
        first_step,
        seconds,
        tokens,
        losses,
        peaks: replicas.iter().filter_map(|replica| Some(replica.backend.used_memory()?.1)).collect(),
        operations,
        flops_per_token: 4.0 * (decoder.linear_parameters() as f64 + head),
    })
}

fn micro_batches(
    share: Share,
    lengths: Lengths,
    vocab: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<FlatBatch>> {
    let Share { batch, micro_batches } = share;
    let mut lengths = lengths.draw(batch.saturating_mul(micro_batches), rng);
    // As grouping by length orders a step: the longest rows meet first, so an overflow shows at once.
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths
        .chunks(batch)
        .map(|rows| {
            let mut flat = FlatBatch::new();
            for &length in rows {
                let ids: Vec<u32> = (0..length).map(|_| rng.random_range(0..vocab as u32)).collect();
                flat.push_causal(&ids, &vec![true; length])?;
            }
            Ok(flat)
        })
        .collect()
}

/// What a device reaches at best, measured.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Floating-point operations a second of a large product in the activations' type.
    pub product: f64,
    /// Bytes a second of a large copy on the device, read and written.
    pub memory: f64,
    /// Bytes a second from host to device, and back.
    pub bus: (f64, f64),
}

/// Measures a device's ceilings with a product of `size` x `size` x `size` and copies of as many elements.
///
/// # Errors
/// When the device fails or has no room.
pub fn ceilings<B: Backend>(backend: &B, size: usize) -> Result<Ceilings> {
    let dtype = backend.compute_dtype();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let values: Vec<f32> = (0..size * size).map(|_| rng.random_range(-1.0..1.0)).collect();
    let weight = backend.load_weight(HostMatrix::from_f32(size, size, &values)?, Storage::Dense(dtype))?;
    let projection = Projection {
        in_features: size,
        index: 0,
        parts: vec![Linear { weight, bias: None, out_features: size }],
    };
    let (mut x, mut y) = (backend.zeros(dtype, size, size)?, backend.zeros(dtype, size, size)?);
    backend.upload(&values, &mut x)?;
    let bus = {
        let mut plain = backend.zeros(Dtype::F32, size, size)?;
        let up = best(3, || Ok(backend.upload(&values, &mut plain)?), backend)?;
        let mut read = vec![0.0; values.len()];
        let down = best(3, || Ok(backend.download(&plain, &mut read)?), backend)?;
        let bytes = (size * size * Dtype::F32.size()) as f64;
        (bytes / up, bytes / down)
    };
    let product =
        best(10, || Ok(backend.project(size, &projection, None, &x, &mut y, None, Write::Set)?), backend)?;
    let copy = best(10, || Ok(backend.copy(size, &x, &mut y)?), backend)?;
    let bytes = (size * size * dtype.size()) as f64;
    Ok(Ceilings { product: 2.0 * (size as f64).powi(3) / product, memory: 2.0 * bytes / copy, bus })
}

/// Seconds of the fastest of `times` runs, after one that warms up.
fn best<B: Backend>(times: usize, mut work: impl FnMut() -> Result<()>, backend: &B) -> Result<f64> {
    let mut least = f64::INFINITY;
    for run in 0..=times {
        backend.synchronize()?;
        let start = Instant::now();
        work()?;
        backend.synchronize()?;
        if run > 0 {
            least = least.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lognormal_lengths_have_their_mean() {
        let lengths = Lengths::LogNormal(240).draw(20_000, &mut ChaCha8Rng::seed_from_u64(1));
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        assert!((mean - 240.0).abs() < 5.0, "{mean}");
        assert!(lengths.iter().any(|&length| length < 100) && lengths.iter().any(|&length| length > 500));
    }
}
