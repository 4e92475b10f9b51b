//! Sampling against transformers' own processors, and the draws themselves.

use eyas_generate::sampling::SamplerScratch;
use eyas_generate::{Error, Sampler, SamplingParams};
use serde_json::Value;

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../eyas-model/tests/fixtures/generation.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

#[test]
fn distributions_are_those_of_transformers() {
    let golden = golden();
    let seen: Vec<u32> = serde_json::from_value(golden["seen_ids"].clone()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 20);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let params: SamplingParams = serde_json::from_value(case["options"].clone()).unwrap();
        let logits = numbers(&golden["logits"][case["logits"].as_str().unwrap()]);
        let mut sampler = Sampler::new(params, logits.len(), 0).unwrap();
        sampler.observe(&seen);
        let found = sampler.distribution(&logits).unwrap();
        for (id, (found, expected)) in found.iter().zip(numbers(&case["probabilities"])).enumerate() {
            let expected = f64::from(expected);
            assert_eq!(*found == 0.0, expected == 0.0, "{name}: token {id}: {found} {expected}");
            assert!((found - expected).abs() <= 1e-5 * expected, "{name}: token {id}: {found} {expected}");
        }
    }
}

/// Logits of many tokens, of which some stand out.
fn row(vocab: usize) -> Vec<f32> {
    (0..vocab)
        .map(|id| ((id * 7919 % 1009) as f32 / 100.0 - 8.0) + if id % 97 == 3 { 5.0 } else { 0.0 })
        .collect()
}

/// Draws often and compares the counts with the distribution: Pearson's chi-squared over tokens that are expected
/// ten times or more, the others taken together.
fn follows_its_distribution(params: SamplingParams, vocab: usize) {
    const DRAWS: usize = 40_000;
    let logits = row(vocab);
    let mut sampler = Sampler::new(params, vocab, 3).unwrap();
    let expected = sampler.distribution(&logits).unwrap();
    let mut counts = vec![0usize; vocab];
    let mut scratch = SamplerScratch::default();
    let mut work = logits.clone();
    for _ in 0..DRAWS {
        work.copy_from_slice(&logits);
        counts[sampler.choose(&mut work, &mut scratch).unwrap().token as usize] += 1;
    }
    let (mut statistic, mut cells) = (0.0, 0.0);
    let (mut rare_expected, mut rare_count) = (0.0, 0);
    for (&count, &probability) in counts.iter().zip(&expected) {
        assert!(probability > 0.0 || count == 0, "a removed token was drawn");
        let mean = probability * DRAWS as f64;
        if mean >= 10.0 {
            statistic += (count as f64 - mean).powi(2) / mean;
            cells += 1.0;
        } else {
            rare_expected += mean;
            rare_count += count;
        }
    }
    if rare_expected >= 10.0 {
        statistic += (rare_count as f64 - rare_expected).powi(2) / rare_expected;
        cells += 1.0;
    }
    // Far outside five standard deviations of the chi-squared distribution means a wrong sampler.
    let freedom: f64 = cells - 1.0;
    assert!((statistic - freedom).abs() < 5.0 * (2.0 * freedom).sqrt(), "{statistic} with {freedom} degrees");
}

#[test]
fn plain_draws_follow_the_distribution() {
    follows_its_distribution(SamplingParams { temperature: 0.9, ..SamplingParams::default() }, 1500);
}

#[test]
fn truncated_draws_follow_the_distribution() {
    let params = SamplingParams { temperature: 1.2, top_p: 0.9, ..SamplingParams::default() };
    follows_its_distribution(params, 1500);
    let params = SamplingParams { temperature: 1.1, top_k: 60, min_p: 0.02, ..SamplingParams::default() };
    follows_its_distribution(params, 3000);
}

fn draws(seed: u64, stream: u32) -> Vec<u32> {
    let logits = row(500);
    let mut sampler =
        Sampler::new(SamplingParams { seed, ..SamplingParams::default() }, 500, stream).unwrap();
    let mut scratch = SamplerScratch::default();
    (0..32).map(|_| sampler.choose(&mut logits.clone(), &mut scratch).unwrap().token).collect()
}

#[test]
fn a_seed_and_a_stream_name_the_draws() {
    assert_eq!(draws(7, 0), draws(7, 0));
    assert_ne!(draws(7, 0), draws(8, 0));
    assert_ne!(draws(7, 0), draws(7, 1));
}

#[test]
fn equal_logits_are_all_kept_by_top_k_and_greedy_takes_the_first() {
    let mut logits = vec![0.0f32; 600];
    logits[400] = 1.0;
    logits[100] = 1.0;
    let mut sampler = Sampler::new(SamplingParams::greedy(), 600, 0).unwrap();
    assert_eq!(sampler.choose(&mut logits.clone(), &mut SamplerScratch::default()).unwrap().token, 100);
    let params = SamplingParams { top_k: 1, ..SamplingParams::default() };
    let kept = Sampler::new(params, 600, 0).unwrap().distribution(&logits).unwrap();
    assert_eq!(kept.iter().filter(|&&p| p == 0.5).count(), 2);
}

#[test]
fn bias_comes_before_the_penalty() {
    let params = SamplingParams {
        logit_bias: [(1, 2.0)].into(),
        repetition_penalty: 2.0,
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(params, 2, 0).unwrap();
    sampler.observe(&[1, 1]);
    // (1 + 2) / 2 = 1.5
    let found = sampler.distribution(&[1.5, 1.0]).unwrap();
    assert!((found[0] - 0.5).abs() < 1e-9, "{found:?}");
}

#[test]
fn log_probabilities_are_the_models_own() {
    let params = SamplingParams {
        logit_bias: [(0, 50.0)].into(),
        temperature: 0.3,
        logprobs: Some(2),
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(params, 3, 0).unwrap();
    let choice = sampler.choose(&mut [0.0, 2.0, 1.0], &mut SamplerScratch::default()).unwrap();
    assert_eq!(choice.token, 0);
    let logprobs = choice.logprobs.unwrap();
    let normaliser = (1.0 + 2f64.exp() + 1f64.exp()).ln();
    assert!((f64::from(logprobs.logprob) + normaliser).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 2]);
    assert!((f64::from(logprobs.top[0].1) - (2.0 - normaliser)).abs() < 1e-6);
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let mut sampler = Sampler::new(SamplingParams::recipe(), 3, 0).unwrap();
    let error = sampler.choose(&mut [0.0, f32::NAN, 1.0], &mut SamplerScratch::default()).unwrap_err();
    assert!(matches!(&error, Error::Logits(_)));
    assert!(error.to_string().contains("token 1"), "{error}");
}

#[test]
fn a_bias_outside_the_vocabulary_is_an_error() {
    let params = SamplingParams { logit_bias: [(9, 1.0)].into(), ..SamplingParams::default() };
    assert!(matches!(Sampler::new(params, 3, 0), Err(Error::Setting { key: "logit_bias", .. })));
}

#[test]
fn a_wide_nucleus_is_the_sorted_one() {
    let vocab = 5000;
    let logits = row(vocab);
    for top_p in [0.05, 0.5, 0.9, 0.99, 0.9999] {
        let params = SamplingParams { temperature: 3.0, top_p, ..SamplingParams::default() };
        let found = Sampler::new(params, vocab, 0).unwrap().distribution(&logits).unwrap();
        let plain = SamplingParams { temperature: 3.0, ..SamplingParams::default() };
        let whole = Sampler::new(plain, vocab, 0).unwrap().distribution(&logits).unwrap();
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let mut mass = 0.0;
        let mut borderline = 0;
        for &id in &order {
            let kept = mass < f64::from(top_p);
            // Only where the sum meets the threshold within rounding may the two differ.
            if (mass - f64::from(top_p)).abs() > 1e-6 {
                assert_eq!(found[id] > 0.0, kept, "{top_p}: token {id} at {mass}");
            } else {
                borderline += 1;
            }
            mass += whole[id];
        }
        assert!(borderline < 3);
        assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }
}
