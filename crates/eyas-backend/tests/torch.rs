//! The operations of a step against torch's own, in f32 (`tools/golden_ops.py`).

mod common;

use common::*;
use eyas_backend::{
    Activation, AdamW, AttentionSpec, Backend, FlatBatch, HostMoments, MomentFormat, MomentStorage, NormKind,
    NormSpec, QkvLayout, Write,
};
use serde_json::Value;

fn golden(group: &str) -> Value {
    let file: Value = serde_json::from_str(include_str!("fixtures/ops.json")).unwrap();
    file[group].clone()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// The Euclidean distance, relative to torch's norm.
fn assert_close(got: &[f32], want: &[f32], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = want.iter().map(|&b| square(b)).sum();
    let error = (difference / norm).sqrt();
    assert!(error <= tolerance, "{what} differs by {error:.1e}");
}

#[test]
fn norms() {
    for case in golden("norms").as_array().unwrap() {
        let (n, x) = (number(&case["cols"]), floats(&case["x"]));
        let tokens = x.len() / n;
        let kind = if case["op"] == "layer_norm" { NormKind::LayerNorm } else { NormKind::RmsNorm };
        let spec = NormSpec { kind, eps: 1e-5 };
        let (x, weight) = (tensor(tokens, n, &x), tensor(1, n, &floats(&case["weight"])));
        let bias = (kind == NormKind::LayerNorm).then(|| tensor(1, n, &floats(&case["bias"])));
        let (mut y, mut stats, mut dx) = (zeros(tokens, n), zeros(tokens, 2), zeros(tokens, n));
        backend().norm(tokens, spec, &x, &weight, bias.as_ref(), &mut y, &mut stats).unwrap();
        assert_close(y.data(), &floats(&case["y"]), 2e-7, "norm");
        let dy = tensor(tokens, n, &floats(&case["dy"]));
        backend().norm_backward(tokens, spec, &x, &weight, &stats, &dy, &mut dx, Write::Set).unwrap();
        assert_close(dx.data(), &floats(&case["dx"]), 1e-6, "norm_backward");
    }
}

#[test]
fn activations() {
    for case in golden("activations").as_array().unwrap() {
        let kind = match case["op"].as_str().unwrap() {
            "gelu" => Activation::Gelu,
            "gelu_tanh" => Activation::GeluTanh,
            _ => Activation::SwiGlu,
        };
        let (wide, x) = (number(&case["cols"]), floats(&case["x"]));
        let (tokens, n) = (x.len() / wide, wide / kind.fan_in());
        let mut x = tensor(tokens, wide, &x);
        let mut y = zeros(tokens, n);
        backend().activation(tokens, kind, &x, &mut y).unwrap();
        assert_close(y.data(), &floats(&case["y"]), 2e-7, "activation");
        let dy = tensor(tokens, n, &floats(&case["dy"]));
        backend().activation_backward(tokens, kind, &dy, &mut x).unwrap();
        assert_close(x.data(), &floats(&case["dx"]), 1e-6, "activation_backward");
    }
}

#[test]
fn attention() {
    for case in golden("attention").as_array().unwrap() {
        let [heads, kv_heads, dim, tokens, window] =
            ["heads", "kv_heads", "head_dim", "tokens", "window"].map(|key| number(&case[key]));
        let layout = QkvLayout::contiguous(heads, kv_heads, dim);
        let scale = 1.0 / (dim as f32).sqrt();
        let spec = AttentionSpec { layout, scale, window: Some(window), alibi: None };
        let (batch, _) = batch(&[tokens], 10);
        let qkv = tensor(tokens, layout.width(), &floats(&case["x"]));
        let (mut out, mut lse) = (zeros(tokens, heads * dim), zeros(tokens, heads));
        backend().attention(&batch, &spec, &qkv, &mut out, &mut lse).unwrap();
        assert_close(out.data(), &floats(&case["y"]), 1e-6, "attention");
        let dout = tensor(tokens, heads * dim, &floats(&case["dy"]));
        let mut dqkv = zeros(tokens, layout.width());
        backend().attention_backward(&batch, &spec, &qkv, &out, &lse, &dout, &mut dqkv).unwrap();
        assert_close(dqkv.data(), &floats(&case["dx"]), 1e-6, "attention_backward");
    }
}

#[test]
fn cross_entropy() {
    let case = golden("cross_entropy");
    let targets: Vec<i32> =
        case["targets"].as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as i32).collect();
    let mut flat = FlatBatch::new();
    flat.push(&vec![0; targets.len()], &targets).unwrap();
    let (batch, vocab) = (load(&flat), number(&case["vocab"]));
    let all = tensor(targets.len(), vocab, &floats(&case["logits"]));
    let count = flat.target_tokens();
    let (mut logits, mut loss) = (zeros(count, vocab), zeros(1, 1));
    backend().gather_targets(&batch, 0..count, &all, &mut logits).unwrap();
    backend().cross_entropy(&batch, 0..count, &mut logits, &mut loss, Some(1.0)).unwrap();
    assert_close(loss.data(), &[case["loss"].as_f64().unwrap() as f32], 2e-7, "loss");
    let mut gradient = zeros(targets.len(), vocab);
    backend().scatter_targets(&batch, 0..count, &logits, &mut gradient).unwrap();
    assert_close(gradient.data(), &floats(&case["dlogits"]), 1e-6, "gradient");
}

/// The optimizer of a case, before its step `i`.
fn adamw_spec(case: &Value, i: usize) -> AdamW {
    AdamW {
        lr: 2e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: case["weight_decay"].as_f64().unwrap() as f32,
        step: i as u32 + 1,
        max_grad_norm: case["max_grad_norm"].as_f64().map(|x| x as f32),
        loss_scale: 1.0,
    }
}

/// Twenty steps, so that a difference in a constant would add up.
#[test]
fn adamw() {
    for case in golden("adamw").as_array().unwrap() {
        let start = floats(&case["start"]);
        let n = start.len();
        let mut params = tensor(1, n, &start);
        let mut moments = backend().new_moments(n, MomentStorage::default()).unwrap();
        for (i, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let (grads, mut norm) = (tensor(1, n, &floats(&step["gradient"])), zeros(1, 1));
            backend().grad_norm(&grads, &mut norm).unwrap();
            if step["norm"] != 0.0 {
                assert_close(norm.data(), &[step["norm"].as_f64().unwrap() as f32], 2e-7, "norm");
            }
            backend().adamw(adamw_spec(case, i), &grads, &norm, &mut params, &mut moments).unwrap();
            let [first, second] = moments.values();
            assert_close(params.data(), &floats(&step["params"]), 1e-7, "params");
            assert_close(&first, &floats(&step["first_moment"]), 3e-7, "first moment");
            assert_close(&second, &floats(&step["second_moment"]), 3e-7, "second moment");
        }
    }
}

/// Eight steps of bitsandbytes' AdamW8bit. A value midway between two levels may go to either: the order of roundings
/// differs in the last place.
#[test]
fn adamw_with_moments_of_8_bits() {
    let bytes = |value: &Value| -> Vec<u8> {
        value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u8).collect()
    };
    for case in golden("adamw_8bit").as_array().unwrap() {
        let start = floats(&case["start"]);
        let n = start.len();
        let mut params = tensor(1, n, &start);
        let storage = MomentStorage { format: MomentFormat::Blockwise8, paged: false };
        let mut moments = backend().new_moments(n, storage).unwrap();
        for (i, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let grads = tensor(1, n, &floats(&step["gradient"]));
            backend().adamw(adamw_spec(case, i), &grads, &zeros(1, 1), &mut params, &mut moments).unwrap();
            assert_close(params.data(), &floats(&step["params"]), 2e-6, "params");
            let HostMoments::Blockwise8(moments) = &moments else { panic!("the moments are in 8 bits") };
            for (moment, got) in moments.iter().enumerate() {
                assert_close(&got.absmax, &floats(&step["absmax"][moment]), 1e-6, "absmax");
                let want = bytes(&step["codes"][moment]);
                let off: Vec<u8> = got.codes.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).collect();
                assert!(off.iter().all(|off| *off <= 1), "step {i}, moment {moment}: {off:?}");
                assert!(
                    off.iter().filter(|off| **off == 1).count() <= 3,
                    "step {i}, moment {moment}: {off:?}"
                );
            }
        }
    }
}
