//! One sequence's sampler: what it has seen, its draws, and the choice of each token.

use eyas_backend::philox::philox4x32;

use super::params::SamplingParams;
use super::softmax::{self, Candidate, by_logit};
use crate::{Error, Result};

/// Sets the draws of generation apart from others made with the same seed.
const DOMAIN: u32 = 0x7361_6d70;

/// How far below the largest the first search for the likeliest tokens reaches, in units of the temperature, and the
/// factor of each further one. Another search costs less than candidates that are not needed: in a flat distribution
/// they are most of the vocabulary.
const FIRST_REACH: f32 = 2.0;
const REACH_GROWTH: f32 = 1.5;

/// A token and its log-probability in the model's own distribution: before bias, penalty and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token chosen.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Of `token` and of the `count` likeliest, from a row of raw logits. `None` when a logit is not finite.
    pub(crate) fn of(row: &[f32], token: u32, count: usize) -> Option<Self> {
        let normaliser = softmax::log_sum_exp(row)?;
        let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
        let mut found = Vec::new();
        let count = count.min(row.len());
        if count > 0 {
            let threshold = softmax::kth_largest(row, count, &mut found);
            softmax::at_least(row, threshold, &mut found);
            found.sort_unstable_by(by_logit);
            found.truncate(count);
        }
        let top = found.into_iter().map(|(logit, id)| (id, logprob(logit))).collect();
        Some(Self { logprob: logprob(*row.get(token as usize)?), top })
    }
}

/// A token chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Where they were asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Memory that the samplers of an engine share.
#[derive(Clone, Debug, Default)]
pub struct SamplerScratch {
    kept: Vec<Candidate>,
    ranked: Vec<Candidate>,
    weights: Vec<f64>,
    blocks: Vec<f64>,
}

/// Chooses the tokens of one sequence.
///
/// A draw is a function of the seed, the stream and the token's number alone, so that it does not matter which
/// other sequences run beside this one.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    stream: u32,
    drawn: u64,
    /// Each id that was seen, once.
    seen: Vec<u32>,
    /// One bit an id.
    is_seen: Vec<u64>,
}

impl Sampler {
    /// A sampler for ids below `vocab`. `stream` tells apart sequences that share a seed.
    ///
    /// # Errors
    /// When a setting is outside its range, or a bias names an id outside the vocabulary.
    pub fn new(params: SamplingParams, vocab: usize, stream: u32) -> Result<Self> {
        params.validate()?;
        if let Some(id) = params.logit_bias.keys().find(|&&id| id as usize >= vocab) {
            let reason = format!("names token {id}; the vocabulary has {vocab}");
            return Err(Error::Setting { key: "logit_bias", reason });
        }
        let words = if params.repetition_penalty == 1.0 { 0 } else { vocab.div_ceil(64) };
        Ok(Self { params, stream, drawn: 0, seen: Vec::new(), is_seen: vec![0; words] })
    }

    /// The settings.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Notes ids of the prompt or the answer for the repetition penalty.
    pub fn observe(&mut self, ids: &[u32]) {
        for &id in ids {
            if let Some(word) = self.is_seen.get_mut(id as usize / 64) {
                let bit = 1 << (id % 64);
                if *word & bit == 0 {
                    *word |= bit;
                    self.seen.push(id);
                }
            }
        }
    }

    /// Chooses the next token from its raw logits `[vocab]`, which are changed, and notes it as seen.
    ///
    /// # Errors
    /// When a logit is not finite.
    pub fn choose(&mut self, logits: &mut [f32], scratch: &mut SamplerScratch) -> Result<Choice> {
        let raw = match self.params.logprobs {
            // The bias and the penalty are about to be written over the row.
            Some(_) if self.changes_logits() => Some(logits.to_vec()),
            _ => None,
        };
        self.process(logits);
        let max = check(logits)?;
        let token = if self.params.is_greedy() {
            logits.iter().position(|&logit| logit == max).unwrap_or(0) as u32
        } else {
            let draw = self.draw();
            self.sample(logits, max, draw, scratch)
        };
        self.drawn += 1;
        self.observe(&[token]);
        let row = raw.as_deref().unwrap_or(logits);
        let logprobs = self.params.logprobs.and_then(|count| TokenLogprobs::of(row, token, count));
        Ok(Choice { token, logprobs })
    }

    /// The distribution that [`Sampler::choose`] draws from, 0 for what is removed.
    ///
    /// # Errors
    /// When a logit is not finite.
    pub fn distribution(&self, logits: &[f32]) -> Result<Vec<f64>> {
        let mut row = logits.to_vec();
        self.process(&mut row);
        let max = check(&row)?;
        let mut probabilities = vec![0.0; row.len()];
        if self.params.is_greedy() {
            probabilities[row.iter().position(|&logit| logit == max).unwrap_or(0)] = 1.0;
            return Ok(probabilities);
        }
        let mut scratch = SamplerScratch::default();
        if !self.truncates(row.len()) {
            softmax::at_least(&row, f32::NEG_INFINITY, &mut scratch.kept);
            self.weigh(max, &mut scratch);
        } else {
            self.truncate(&row, max, &mut scratch);
        }
        let total: f64 = scratch.weights.iter().sum();
        for ((_, id), weight) in scratch.kept.iter().zip(&scratch.weights) {
            probabilities[*id as usize] = weight / total;
        }
        Ok(probabilities)
    }

    fn changes_logits(&self) -> bool {
        !self.params.logit_bias.is_empty() || !self.seen.is_empty()
    }

    /// Bias and repetition penalty, in place.
    fn process(&self, logits: &mut [f32]) {
        for (&id, &bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        let penalty = self.params.repetition_penalty;
        for &id in &self.seen {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
    }

    fn truncates(&self, vocab: usize) -> bool {
        let params = &self.params;
        (params.top_k > 0 && params.top_k < vocab) || params.top_p < 1.0 || params.min_p > 0.0
    }

    /// A number in `[0, 1)` with 53 random bits.
    fn draw(&self) -> f64 {
        let counter = [self.drawn as u32, (self.drawn >> 32) as u32, self.stream, DOMAIN];
        let key = [self.params.seed as u32, (self.params.seed >> 32) as u32];
        let words = philox4x32(counter, key);
        let bits = (u64::from(words[0]) << 32 | u64::from(words[1])) >> 11;
        bits as f64 * (1.0 / (1u64 << 53) as f64)
    }

    fn sample(&self, row: &[f32], max: f32, draw: f64, scratch: &mut SamplerScratch) -> u32 {
        if self.truncates(row.len()) {
            self.truncate(row, max, scratch);
            let total: f64 = scratch.weights.iter().sum();
            let at = locate(scratch.weights.iter().copied(), draw * total).unwrap_or(scratch.kept.len() - 1);
            return scratch.kept[at].1;
        }
        let scale = 1.0 / self.params.temperature;
        let total = softmax::sum_exp(row, max, scale, Some(&mut scratch.blocks));
        let mut rest = draw * total;
        let mut block = 0;
        while block + 1 < scratch.blocks.len() && rest >= scratch.blocks[block] {
            rest -= scratch.blocks[block];
            block += 1;
        }
        let start = block * softmax::BLOCK;
        let within = &row[start..(start + softmax::BLOCK).min(row.len())];
        let weights = within.iter().map(|&logit| f64::from(softmax::exp((logit - max) * scale)));
        // Rounding may leave a crumb beyond the last weight; it belongs to the last token that has any.
        let at = locate(weights.clone(), rest).or_else(|| {
            let weights: Vec<f64> = weights.collect();
            weights.iter().rposition(|&weight| weight > 0.0)
        });
        (start + at.unwrap_or(0)) as u32
    }

    /// A logit's weight relative to the likeliest token's.
    fn weight(&self, max: f32) -> impl Fn(f32) -> f64 {
        let scale = 1.0 / self.params.temperature;
        move |logit| f64::from(softmax::exp((logit - max) * scale))
    }

    /// Weights of the candidates in `scratch.kept`.
    fn weigh(&self, max: f32, scratch: &mut SamplerScratch) {
        let weight = self.weight(max);
        scratch.weights.clear();
        scratch.weights.extend(scratch.kept.iter().map(|&(logit, _)| weight(logit)));
    }

    /// Leaves the candidates after top-k, top-p and min-p in `scratch`, in the order of their ids, with their weights.
    /// By id, not by rank: where rounding swaps two near equals a draw still finds the same token.
    fn truncate(&self, row: &[f32], max: f32, scratch: &mut SamplerScratch) {
        let params = &self.params;
        let weight = self.weight(max);
        if params.top_k > 0 && params.top_k < row.len() {
            let threshold = softmax::kth_largest(row, params.top_k, &mut scratch.kept);
            softmax::at_least(row, threshold, &mut scratch.kept);
            if params.top_p < 1.0 {
                let total: f64 = scratch.kept.iter().map(|&(logit, _)| weight(logit)).sum();
                keep_mass(scratch, weight, f64::from(params.top_p) * total);
            }
        } else if params.top_p < 1.0 {
            let total = softmax::sum_exp(row, max, 1.0 / params.temperature, None);
            let wanted = f64::from(params.top_p) * total;
            let mut reach = FIRST_REACH;
            loop {
                softmax::at_least(row, max - reach * params.temperature, &mut scratch.kept);
                let mass: f64 = scratch.kept.iter().map(|&(logit, _)| weight(logit)).sum();
                if mass >= wanted || scratch.kept.len() == row.len() {
                    break;
                }
                reach *= REACH_GROWTH;
            }
            keep_mass(scratch, weight, wanted);
        } else {
            // Min-p alone; the margin makes up for the rounding of the logarithm, the exact test follows.
            let threshold = max + (params.min_p.ln() - 1e-3) * params.temperature;
            softmax::at_least(row, threshold, &mut scratch.kept);
        }
        self.weigh(max, scratch);
        if params.min_p > 0.0 {
            // The likeliest token's weight is 1.
            let least = f64::from(params.min_p);
            let mut weights = scratch.weights.iter();
            scratch.kept.retain(|_| weights.next().is_some_and(|&weight| weight >= least));
            scratch.weights.retain(|&weight| weight >= least);
        }
    }
}

/// Keeps the fewest likeliest candidates whose weights reach `wanted`: one stays while those before it fall short.
fn keep_mass(scratch: &mut SamplerScratch, weight: impl Fn(f32) -> f64, wanted: f64) {
    /// Sorting beats another partition below this.
    const FEW: usize = 64;
    let SamplerScratch { kept, ranked, .. } = scratch;
    ranked.clone_from(kept);
    // The last that stays is in `low..high`; those before `low` weigh `mass`.
    let (mut low, mut high, mut mass) = (0, ranked.len(), 0.0);
    while high - low > FEW {
        let middle = low + (high - low) / 2;
        ranked[low..high].select_nth_unstable_by(middle - low, by_logit);
        let upper: f64 = ranked[low..middle].iter().map(|&(logit, _)| weight(logit)).sum();
        if mass + upper >= wanted {
            high = middle;
        } else {
            mass += upper;
            low = middle;
        }
    }
    ranked[low..high].sort_unstable_by(by_logit);
    for &candidate in &ranked[low..high] {
        mass += weight(candidate.0);
        if mass >= wanted {
            kept.retain(|other| by_logit(other, &candidate).is_le());
            return;
        }
    }
}

/// The first index at which the running sum passes `target`.
fn locate(weights: impl Iterator<Item = f64>, target: f64) -> Option<usize> {
    let mut sum = 0.0;
    for (i, weight) in weights.enumerate() {
        sum += weight;
        if target < sum {
            return Some(i);
        }
    }
    None
}

/// The largest logit.
fn check(row: &[f32]) -> Result<f32> {
    softmax::finite_max(row).ok_or_else(|| {
        let place = row.iter().position(|logit| !logit.is_finite());
        Error::Logits(match place {
            Some(id) => format!(
                "token {id} has the logit {}; the weights, or the adapter's, are damaged or overflow",
                row[id]
            ),
            None => "there are none".into(),
        })
    })
}
