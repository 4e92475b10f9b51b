//! Loss and log-probabilities against transformers' and PEFT's.

mod common;

use common::{BASES, adapter, backend, fixture, json, load};
use eyas_backend::{Backend, CpuBackend, Dtype};
use eyas_checkpoint::Checkpoint;
use eyas_data::Example;
use eyas_generate::{Error, Evaluator, evaluate};
use eyas_model::ActiveAdapter;

fn integers(checkpoint: &Checkpoint, name: &str) -> Vec<i32> {
    let bytes = checkpoint.read_bytes(name).unwrap();
    bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The golden's flat batch as rows with masks.
fn examples(base: &str) -> Vec<Example> {
    let checkpoint = Checkpoint::open(fixture(base).join("golden.safetensors")).unwrap();
    let ids = integers(&checkpoint, "flat.input_ids");
    let targets = integers(&checkpoint, "flat.targets");
    let ends = integers(&checkpoint, "flat.cu_seqlens");
    ends.windows(2)
        .map(|w| {
            let range = w[0] as usize..w[1] as usize;
            let mut target_mask = vec![false];
            target_mask
                .extend(targets[range.clone()].iter().take(range.len() - 1).map(|&target| target >= 0));
            Example { input_ids: ids[range].iter().map(|&id| id as u32).collect(), target_mask }
        })
        .collect()
}

#[test]
fn losses_are_those_of_transformers_and_peft_however_the_rows_are_batched() {
    let backend = backend();
    for base in BASES {
        let model = load(&backend, base, None);
        let examples = examples(base);
        let golden = json(&format!("{base}/golden.json"));
        let tuned = adapter(base, &model);
        let mut params = backend.zeros(Dtype::F32, 1, tuned.params.len()).unwrap();
        backend.upload(&tuned.params, &mut params).unwrap();
        let active = ActiveAdapter::<CpuBackend> { layout: &tuned.layout, params: &params, dropout: None };
        let longest = examples.iter().map(|example| example.input_ids.len()).max().unwrap();
        for (name, active) in [("base", None), ("adapter", Some(active))] {
            let expected = golden["loss"][name].as_f64().unwrap();
            for tokens in [longest, 2 * longest, 1000] {
                let mut evaluator = Evaluator::new(&backend, &model, tokens).unwrap();
                let mut last = None;
                let found =
                    evaluator.evaluate(&examples, active, &mut |progress| last = Some(progress)).unwrap();
                assert!(
                    (found.loss() - expected).abs() < 2e-5 * expected,
                    "{base} {name}: {found:?} {expected}"
                );
                assert_eq!(found.target_tokens as u64, golden["num_targets"].as_u64().unwrap());
                assert_eq!(found.examples, examples.len());
                assert!((found.perplexity().ln() - found.loss()).abs() < 1e-12);
                let last = last.unwrap();
                assert_eq!((last.done, last.total), (found.target_tokens, found.target_tokens));
            }
        }
    }
}

#[test]
fn log_probabilities_of_tokens_sum_to_the_loss() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let ids: Vec<u32> = (0..30).map(|i| (i * 13 + 5) % 96).collect();
    let mut evaluator = Evaluator::new(&backend, &model, 40).unwrap();
    let logprobs = evaluator.token_logprobs(&ids, None, 2).unwrap();
    assert_eq!(logprobs.len(), 29);
    let example = Example { target_mask: vec![true; 30], input_ids: ids };
    let loss = evaluate(&backend, &model, None, &[example], &mut |_| {}).unwrap();
    let sum: f64 = logprobs.iter().map(|found| f64::from(found.logprob)).sum();
    assert!((sum + loss.total_loss).abs() < 1e-4 * loss.total_loss, "{sum} {loss:?}");
    for found in logprobs {
        assert!(found.top.len() == 2 && found.top[0].1 >= found.top[1].1 && found.top[0].1 >= found.logprob);
    }
}

#[test]
fn rows_that_do_not_fit_are_named() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let row = |len: usize| Example { input_ids: vec![1; len], target_mask: vec![true; len] };
    let error = evaluate(&backend, &model, None, &[row(5), row(65)], &mut |_| {}).unwrap_err();
    assert!(matches!(&error, Error::Prompt(text) if text.contains("row 2 has 65 tokens")), "{error}");
    assert!(evaluate(&backend, &model, None, &[row(0)], &mut |_| {}).is_err());
}
