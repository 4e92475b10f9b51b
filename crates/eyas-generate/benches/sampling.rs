//! Choosing a token: what the sampler adds to a step.

use divan::{Bencher, counter::ItemsCount};
use eyas_generate::sampling::SamplerScratch;
use eyas_generate::{Sampler, SamplingParams};

fn main() {
    divan::main();
}

const VOCABULARIES: [usize; 2] = [49_152, 128_256];

/// Logits spread as a language model's: most far below the few that are likely.
fn logits(vocab: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    (0..vocab)
        .map(|_| {
            4.0 * (0..4).map(|_| uniform()).sum::<f32>() - 8.0 + if uniform() < 1e-3 { 8.0 } else { 0.0 }
        })
        .collect()
}

fn bench(bencher: Bencher, vocab: usize, params: SamplingParams) {
    let row = logits(vocab);
    let mut sampler = Sampler::new(params, vocab, 0).unwrap();
    sampler.observe(&(0..400).map(|i| i * 31 % vocab as u32).collect::<Vec<_>>());
    let mut scratch = SamplerScratch::default();
    let mut work = row.clone();
    bencher.counter(ItemsCount::new(1usize)).bench_local(|| {
        // Part of every step as well: the logits come from the device.
        work.copy_from_slice(&row);
        sampler.choose(&mut work, &mut scratch).unwrap().token
    });
}

#[divan::bench(args = VOCABULARIES)]
fn greedy(bencher: Bencher, vocab: usize) {
    bench(bencher, vocab, SamplingParams::greedy());
}

#[divan::bench(args = VOCABULARIES)]
fn recipe(bencher: Bencher, vocab: usize) {
    bench(bencher, vocab, SamplingParams::recipe());
}

#[divan::bench(args = VOCABULARIES)]
fn plain(bencher: Bencher, vocab: usize) {
    bench(bencher, vocab, SamplingParams::default());
}

#[divan::bench(args = VOCABULARIES)]
fn top_k_50(bencher: Bencher, vocab: usize) {
    bench(bencher, vocab, SamplingParams { top_k: 50, top_p: 0.95, ..SamplingParams::default() });
}

#[divan::bench(args = VOCABULARIES)]
fn nucleus_of_a_flat_distribution(bencher: Bencher, vocab: usize) {
    bench(bencher, vocab, SamplingParams { temperature: 2.0, top_p: 0.98, ..SamplingParams::default() });
}

#[divan::bench(args = VOCABULARIES)]
fn log_probabilities(bencher: Bencher, vocab: usize) {
    bench(bencher, vocab, SamplingParams { logprobs: Some(5), ..SamplingParams::recipe() });
}
