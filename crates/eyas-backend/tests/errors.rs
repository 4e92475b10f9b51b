//! Operands that do not fit are errors that say what is wrong, never panics.

mod common;

use common::*;
use eyas_backend::{
    AdamW, AttentionSpec, Backend, Dtype, FlatBatch, HostMatrix, MomentStorage, NormKind, NormSpec,
    QkvLayout, Result, Storage,
};

fn assert_says(result: Result<()>, message: &str) {
    let error = result.expect_err(message).to_string();
    assert!(error.contains(message), "{error:?} does not say {message:?}");
}

#[test]
fn ids_beyond_the_vocabulary() {
    let backend = backend();
    let mut flat = FlatBatch::new();
    flat.push(&[1, 7], &[2, 9]).unwrap();
    let batch = load(&flat);
    let table = [0.0; 12];
    let table =
        backend.load_weight(HostMatrix::from_f32(6, 2, &table).unwrap(), Storage::Dense(Dtype::F32)).unwrap();
    assert_says(
        backend.embed(&batch, &table, &mut zeros(2, 2)),
        "token 1 has the id 7; the embedding has 6 rows",
    );

    let (mut logits, mut loss) = (zeros(2, 6), zeros(1, 1));
    let result = backend.cross_entropy(&batch, 0..2, &mut logits, &mut loss, None);
    assert_says(result, "token 1 has the target 9; there are 6 logits");
    assert_eq!(loss.data(), [0.0]);
    let result = backend.cross_entropy(&batch, 1..3, &mut logits, &mut loss, None);
    assert_says(result, "targets 1..3 asked of a batch that has 2");
    let mut negative = FlatBatch::new();
    negative.push(&[1], &[-7]).unwrap();
    let result = backend.cross_entropy(&load(&negative), 0..1, &mut logits, &mut loss, None);
    assert_says(result, "the target -7");
}

#[test]
fn positions_beyond_the_tables() {
    let backend = backend();
    let layout = QkvLayout::contiguous(2, 1, 8);
    let (batch, _) = batch(&[4], 10);
    let mut qkv = zeros(4, layout.width());
    assert_says(backend.rope(&batch, &layout, &rope(8, 3), &mut qkv, false), "at least 4 rows");
    let spec = AttentionSpec { layout, scale: 1.0, window: None, alibi: Some(zeros(2, 3)) };
    let (mut out, mut lse) = (zeros(4, 16), zeros(4, 2));
    let result = backend.attention(&batch, &spec, &qkv, &mut out, &mut lse);
    assert_says(result, "alibi has 3 positions; the longest sequence has 4");

    let (mut keys, mut values) = (zeros(6, 8), zeros(6, 8));
    let result = backend.cache_write(&batch, &layout, None, 3, &mut qkv, &mut keys, &mut values);
    assert_says(result, "position 3; a slot of the cache holds 3");
    let mut flat = FlatBatch::new();
    flat.push_cached(2, 0, &[1]).unwrap();
    let result = backend.cache_write(&load(&flat), &layout, None, 3, &mut qkv, &mut keys, &mut values);
    assert_says(result, "keys is 6 x 8; at least 9 rows");
}

#[test]
fn rows_that_cannot_be_copied() {
    let backend = backend();
    let mut tensor = zeros(6, 2);
    for (from, to) in [(0..3, 2), (2..5, 0), (0..2, 5), (5..7, 0), (0..1, 0), (0..2, usize::MAX)] {
        assert_says(backend.copy_rows(&mut tensor, from, to), "must not overlap, and there are 6");
    }
}

#[test]
fn shapes_that_do_not_fit() {
    let backend = backend();
    let layout = QkvLayout::contiguous(2, 1, 8);
    let (batch, _) = batch(&[4], 10);
    let (qkv, mut out, mut lse) = (zeros(4, 32), zeros(4, 16), zeros(4, 2));
    let mut spec = AttentionSpec { layout, scale: 1.0, window: Some(0), alibi: None };
    assert_says(backend.attention(&batch, &spec, &qkv, &mut out, &mut lse), "a window of 0");
    spec.window = None;
    spec.layout.kv_heads = 0;
    assert_says(backend.attention(&batch, &spec, &qkv, &mut out, &mut lse), "0 key/value heads");
    let odd = rope(6, 9);
    let odd = eyas_backend::Rope { dim: 7, ..odd };
    assert_says(backend.rope(&batch, &layout, &odd, &mut zeros(4, 32), false), "7 rotated elements");

    let spec = NormSpec { kind: NormKind::RmsNorm, eps: 1e-5 };
    let result = backend.norm(4, spec, &qkv, &zeros(1, 31), None, &mut zeros(4, 32), &mut zeros(4, 2));
    assert_says(result, "weight is 1 x 31");
    assert_says(backend.add(5, &qkv, &mut zeros(4, 32)), "x is 4 x 32; at least 5 rows");
    let spec = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        step: 0,
        max_grad_norm: None,
        loss_scale: 1.0,
    };
    let [grads, norm, mut params] = [0; 3].map(|_| zeros(1, 1));
    let mut moments = backend.new_moments(1, MomentStorage::default()).unwrap();
    let result = backend.adamw(spec, &grads, &norm, &mut params, &mut moments);
    assert_says(result, "steps are counted from 1");
    let mut short = backend.new_moments(0, MomentStorage::default()).unwrap();
    let spec = AdamW { step: 1, ..spec };
    let result = backend.adamw(spec, &grads, &norm, &mut params, &mut short);
    assert_says(result, "moments of 0 values");
}

/// A broken gradient reaches the parameters instead of being clipped to something that looks sound.
#[test]
fn a_norm_that_is_not_a_number_shows() {
    let backend = backend();
    let grads = tensor(1, 2, &[f32::NAN, 1.0]);
    let mut norm = zeros(1, 1);
    backend.grad_norm(&grads, &mut norm).unwrap();
    assert!(norm.data()[0].is_nan());
}
