//! Every backward against finite differences of its forward.
//!
//! A forward's output is projected on a random vector, whose gradient is that vector; the backward's result, along
//! random directions, must be the derivative of the projection, by central differences of fourth order.

mod common;

use common::*;
use eyas_backend::{
    Activation, AttentionSpec, Backend, Dtype, FlatBatch, NormKind, NormSpec, QkvLayout, Storage, Write,
};

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

/// Compares `gradient` with the derivative of `loss` at `x` along eight random directions.
fn assert_gradient(x: &[f32], gradient: &[f32], loss: impl Fn(&[f32]) -> f64) {
    const STEP: f32 = 0.01;
    let norm = dot(gradient, gradient).sqrt();
    assert!(norm > 0.0, "the gradient is zero");
    for seed in 0..8 {
        let direction = random(x.len(), 1000 + seed);
        let at = |t: f32| loss(&x.iter().zip(&direction).map(|(x, d)| x + t * d).collect::<Vec<_>>());
        let slope =
            (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * f64::from(STEP));
        let expected = dot(gradient, &direction);
        // What a derivative along a random direction is on average.
        let scale = norm / 3f64.sqrt();
        let error = (slope - expected).abs() / scale;
        assert!(error < 2e-3, "slope {slope}, gradient says {expected}: {error:.1e}");
    }
}

#[test]
fn norm() {
    let (tokens, n) = (3, 37);
    let weight = random_tensor(1, n, 1);
    let bias = random_tensor(1, n, 2);
    let x = random(tokens * n, 3);
    let dy = random_tensor(tokens, n, 4);
    for (kind, bias) in [(NormKind::LayerNorm, Some(&bias)), (NormKind::RmsNorm, None)] {
        let spec = NormSpec { kind, eps: 1e-5 };
        let forward = |x: &[f32]| {
            let (mut y, mut stats) = (zeros(tokens, n), zeros(tokens, 2));
            backend().norm(tokens, spec, &tensor(tokens, n, x), &weight, bias, &mut y, &mut stats).unwrap();
            (y, stats)
        };
        let (_, stats) = forward(&x);
        let mut dx = zeros(tokens, n);
        let input = tensor(tokens, n, &x);
        backend().norm_backward(tokens, spec, &input, &weight, &stats, &dy, &mut dx, Write::Set).unwrap();
        assert_gradient(&x, dx.data(), |x| dot(forward(x).0.data(), dy.data()));
    }
}

#[test]
fn head_norm() {
    let layout = QkvLayout::grouped(4, 2, 10);
    let (tokens, width) = (3, layout.width());
    let (q_weight, k_weight) = (random_tensor(1, 10, 1), random_tensor(1, 10, 2));
    let x = random(tokens * width, 3);
    let mut gradient = random_tensor(tokens, width, 4);
    let dy = gradient.data().to_vec();
    let raw = tensor(tokens, width, &x);
    backend().head_norm_backward(tokens, &layout, 1e-5, &raw, &q_weight, &k_weight, &mut gradient).unwrap();
    assert_gradient(&x, gradient.data(), |x| {
        let (raw, mut qkv) = (tensor(tokens, width, x), zeros(tokens, width));
        backend().head_norm(tokens, &layout, 1e-5, &raw, &q_weight, &k_weight, &mut qkv).unwrap();
        dot(qkv.data(), &dy)
    });
}

#[test]
fn rope_backward_is_the_inverse() {
    let layout = QkvLayout::contiguous(3, 1, 12);
    let (batch, flat) = batch(&[5, 1, 9], 10);
    let (tokens, width) = (flat.tokens(), layout.width());
    let rope = rope(8, 9);
    let x = random(tokens * width, 1);
    let mut gradient = random_tensor(tokens, width, 2);
    let dy = gradient.data().to_vec();
    backend().rope(&batch, &layout, &rope, &mut gradient, true).unwrap();
    assert_gradient(&x, gradient.data(), |x| {
        let mut qkv = tensor(tokens, width, x);
        backend().rope(&batch, &layout, &rope, &mut qkv, false).unwrap();
        dot(qkv.data(), &dy)
    });
}

fn attention_gradient(layout: QkvLayout, lengths: &[usize], window: Option<usize>, alibi: bool) {
    let (batch, flat) = batch(lengths, 10);
    let (tokens, width, columns) = (flat.tokens(), layout.width(), layout.heads * layout.head_dim);
    let positions = flat.max_seqlen();
    let alibi = alibi.then(|| random_tensor(layout.heads, positions, 5));
    let spec = AttentionSpec { layout, scale: 1.0 / (layout.head_dim as f32).sqrt(), window, alibi };
    let forward = |x: &[f32]| {
        let (mut out, mut lse) = (zeros(tokens, columns), zeros(tokens, layout.heads));
        backend().attention(&batch, &spec, &tensor(tokens, width, x), &mut out, &mut lse).unwrap();
        (out, lse)
    };
    let x: Vec<f32> = random(tokens * width, 1).iter().map(|x| 2.0 * x).collect();
    let dout = random_tensor(tokens, columns, 2);
    let (out, lse) = forward(&x);
    let mut dqkv = tensor(tokens, width, &vec![f32::NAN; tokens * width]);
    let qkv = tensor(tokens, width, &x);
    backend().attention_backward(&batch, &spec, &qkv, &out, &lse, &dout, &mut dqkv).unwrap();
    assert_gradient(&x, dqkv.data(), |x| dot(forward(x).0.data(), dout.data()));
}

#[test]
fn attention_grouped() {
    attention_gradient(QkvLayout::contiguous(6, 2, 24), &[1, 70, 13], None, false);
}

#[test]
fn attention_multi_query() {
    attention_gradient(QkvLayout::contiguous(11, 1, 16), &[120, 2], None, false);
}

#[test]
fn attention_with_a_window_and_biases() {
    attention_gradient(QkvLayout::grouped(4, 2, 20), &[9, 110], Some(21), true);
}

#[test]
fn attention_of_one_odd_head() {
    attention_gradient(QkvLayout::grouped(1, 1, 5), &[3, 40], None, true);
}

#[test]
fn activation() {
    let (tokens, n) = (3, 21);
    for kind in [Activation::Gelu, Activation::GeluTanh, Activation::SwiGlu] {
        let wide = n * kind.fan_in();
        let x: Vec<f32> = random(tokens * wide, 1).iter().map(|x| 3.0 * x).collect();
        let dy = random_tensor(tokens, n, 2);
        let mut dx = tensor(tokens, wide, &x);
        backend().activation_backward(tokens, kind, &dy, &mut dx).unwrap();
        assert_gradient(&x, dx.data(), |x| {
            let mut y = zeros(tokens, n);
            backend().activation(tokens, kind, &tensor(tokens, wide, x), &mut y).unwrap();
            dot(y.data(), dy.data())
        });
    }
}

#[test]
fn cross_entropy() {
    let vocab = 41;
    let mut flat = FlatBatch::new();
    flat.push(&[1, 2, 3, 4], &[5, -100, 40, 0]).unwrap();
    let batch = load(&flat);
    let loss = |x: &[f32], gradient: Option<f32>| {
        let (mut logits, mut loss) = (tensor(3, vocab, x), zeros(1, 1));
        backend().cross_entropy(&batch, 0..3, &mut logits, &mut loss, gradient).unwrap();
        (f64::from(loss.data()[0]), logits)
    };
    let x = random(3 * vocab, 1);
    let (with, gradient) = loss(&x, Some(1.0));
    let (without, untouched) = loss(&x, None);
    assert!((with - without).abs() < 1e-5 * with, "the loss depends on whether its gradient is asked for");
    assert_eq!(untouched.data(), x);
    assert_gradient(&x, gradient.data(), |x| loss(x, None).0);
}

#[test]
fn project() {
    let (tokens, n) = (5, 30);
    let test = projection(n, [17, 9], 4, Storage::Dense(Dtype::F32));
    let (x, params) = (random(tokens * n, 1), random(test.len, 2));
    let dy = random_tensor(tokens, 26, 3);
    let forward = |x: &[f32], params: &[f32]| {
        let params = tensor(1, test.len, params);
        let adapter = test.adapter(&params);
        let (mut y, mut hidden) = (zeros(tokens, 26), zeros(tokens, adapter.rank()));
        let x = tensor(tokens, n, x);
        backend()
            .project(tokens, &test.projection, Some(adapter), &x, &mut y, Some(&mut hidden), Write::Set)
            .unwrap();
        (y, hidden)
    };
    let (_, hidden) = forward(&x, &params);
    let device_params = tensor(1, test.len, &params);
    let (mut grads, mut dx) = (zeros(1, test.len), zeros(tokens, n));
    backend()
        .project_backward(
            tokens,
            &test.projection,
            Some((test.adapter(&device_params), &mut grads)),
            &tensor(tokens, n, &x),
            Some(&hidden),
            &dy,
            Some((&mut dx, Write::Set)),
        )
        .unwrap();
    assert_gradient(&x, dx.data(), |x| dot(forward(x, &params).0.data(), dy.data()));
    assert_gradient(&params, grads.data(), |params| dot(forward(&x, params).0.data(), dy.data()));
}
