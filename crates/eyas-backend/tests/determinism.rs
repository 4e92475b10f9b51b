//! Results depend on the inputs alone: not on the number of threads, nor on what else is in the batch, nor on how a
//! sequence is fed to the cache.

mod common;

use common::*;
use eyas_backend::{
    Activation, AdamW, AttentionSpec, Backend, CpuBackend, FlatBatch, MomentFormat, MomentStorage, NormKind,
    NormSpec, QkvLayout, Storage, Write,
};
use eyas_quant::QuantConfig;

/// Every operation once, at sizes of several tasks each; all outputs.
fn everything() -> Vec<Vec<f32>> {
    let backend = backend();
    let layout = QkvLayout::contiguous(9, 3, 64);
    let (batch, flat) = batch(&[200, 1, 77, 300], 997);
    let (tokens, n, width) = (flat.tokens(), 576, layout.width());
    let mut outputs = Vec::new();

    let x = random_tensor(tokens, n, 1);
    let weight = random_tensor(1, n, 2);
    let spec = NormSpec { kind: NormKind::LayerNorm, eps: 1e-5 };
    let (mut y, mut stats) = (zeros(tokens, n), zeros(tokens, 2));
    backend.norm(tokens, spec, &x, &weight, None, &mut y, &mut stats).unwrap();
    let mut dx = random_tensor(tokens, n, 3);
    backend.norm_backward(tokens, spec, &x, &weight, &stats, &y, &mut dx, Write::Add).unwrap();
    outputs.extend([y, stats, dx]);

    let mut qkv = random_tensor(tokens, width, 4);
    backend.rope(&batch, &layout, &rope(64, 300), &mut qkv, false).unwrap();
    let spec = AttentionSpec { layout, scale: 0.125, window: None, alibi: None };
    let (mut out, mut lse, mut dqkv) = (zeros(tokens, n), zeros(tokens, 9), zeros(tokens, width));
    backend.attention(&batch, &spec, &qkv, &mut out, &mut lse).unwrap();
    backend.attention_backward(&batch, &spec, &qkv, &out, &lse, &x, &mut dqkv).unwrap();
    outputs.extend([qkv, out, lse, dqkv]);

    let mut y = zeros(tokens, n / 2);
    backend.activation(tokens, Activation::SwiGlu, &x, &mut y).unwrap();
    let mut dx = zeros(tokens, n);
    backend.copy(tokens, &x, &mut dx).unwrap();
    backend.activation_backward(tokens, Activation::SwiGlu, &y, &mut dx).unwrap();
    outputs.extend([y, dx]);

    let targets = 0..flat.target_tokens();
    let (mut logits, mut loss) = (random_tensor(targets.len(), 997, 5), zeros(1, 1));
    backend.cross_entropy(&batch, targets, &mut logits, &mut loss, Some(0.1)).unwrap();
    outputs.extend([logits, loss]);

    let len = 300_001;
    let (grads, mut norm) = (random_tensor(1, len, 6), zeros(1, 1));
    backend.grad_norm(&grads, &mut norm).unwrap();
    let spec = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        step: 1,
        max_grad_norm: Some(1.0),
        loss_scale: 1.0,
    };
    for format in [MomentFormat::F32, MomentFormat::Blockwise8] {
        let mut params = random_tensor(1, len, 7);
        let mut moments = backend.new_moments(len, MomentStorage { format, paged: false }).unwrap();
        backend.adamw(spec, &grads, &norm, &mut params, &mut moments).unwrap();
        outputs.extend(moments.values().map(|values| tensor(1, len, &values)));
        outputs.push(params);
    }
    outputs.push(norm);

    let test = projection(n, [576, 192], 8, Storage::Quantised(QuantConfig::default()));
    let params = random_tensor(1, test.len, 8);
    let adapter = test.adapter(&params);
    let (mut y, mut hidden) = (zeros(tokens, 768), zeros(tokens, 16));
    let projection = &test.projection;
    backend.project(tokens, projection, Some(adapter), &x, &mut y, Some(&mut hidden), Write::Set).unwrap();
    let (mut grads, mut dx) = (zeros(1, test.len), zeros(tokens, n));
    let (updates, gradient) = (Some((adapter, &mut grads)), Some((&mut dx, Write::Set)));
    backend.project_backward(tokens, projection, updates, &x, Some(&hidden), &y, gradient).unwrap();
    outputs.extend([y, hidden, grads, dx]);
    outputs.iter().map(|tensor| tensor.data().to_vec()).collect()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let on =
        |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(everything);
    let one = on(1);
    for threads in [2, 5] {
        for (i, (a, b)) in one.iter().zip(on(threads)).enumerate() {
            assert!(
                a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()),
                "output {i}, {threads} threads"
            );
        }
    }
}

fn spec(layout: QkvLayout, window: Option<usize>, positions: usize) -> AttentionSpec<CpuBackend> {
    AttentionSpec { layout, scale: 0.2, window, alibi: Some(random_tensor(layout.heads, positions, 9)) }
}

/// Attention's output, log-sum-exp and gradient of sequences of these lengths.
fn attend(spec: &AttentionSpec<CpuBackend>, lengths: &[usize], qkv: &[f32], dout: &[f32]) -> [Vec<f32>; 3] {
    let layout = &spec.layout;
    let (batch, flat) = batch(lengths, 10);
    let (tokens, columns) = (flat.tokens(), layout.heads * layout.head_dim);
    let qkv = tensor(tokens, layout.width(), qkv);
    let (mut out, mut lse) = (zeros(tokens, columns), zeros(tokens, layout.heads));
    let mut dqkv = zeros(tokens, layout.width());
    backend().attention(&batch, spec, &qkv, &mut out, &mut lse).unwrap();
    let dout = tensor(tokens, columns, dout);
    backend().attention_backward(&batch, spec, &qkv, &out, &lse, &dout, &mut dqkv).unwrap();
    [out, lse, dqkv].map(|tensor| tensor.data().to_vec())
}

/// The flat batch gives each sequence what it gets alone, as a padded batch would.
#[test]
fn sequences_do_not_see_each_other() {
    for (layout, window) in [
        (QkvLayout::contiguous(9, 3, 64), None),
        (QkvLayout::contiguous(11, 1, 24), Some(50)),
        (QkvLayout::grouped(4, 4, 80), None),
    ] {
        let lengths = [130, 1, 257, 64];
        let tokens: usize = lengths.iter().sum();
        let (width, columns) = (layout.width(), layout.heads * layout.head_dim);
        let spec = spec(layout, window, 257);
        let (qkv, dout) = (random(tokens * width, 1), random(tokens * columns, 2));
        let together = attend(&spec, &lengths, &qkv, &dout);
        let mut start = 0;
        for length in lengths {
            let rows = |values: &[f32], n: usize| values[start * n..(start + length) * n].to_vec();
            let alone = attend(&spec, &[length], &rows(&qkv, width), &rows(&dout, columns));
            for ((together, alone), n) in together.iter().zip(&alone).zip([columns, layout.heads, width]) {
                assert_eq!(&rows(together, n), alone, "sequence of {length} at {start}");
            }
            start += length;
        }
    }
}

/// Fed to the cache in pieces of any size, a sequence gets what it gets whole.
#[test]
fn the_cache_gives_what_the_whole_sequence_gives() {
    for (layout, window) in
        [(QkvLayout::contiguous(6, 2, 64), None), (QkvLayout::grouped(5, 1, 20), Some(33))]
    {
        let (width, columns, positions, length) = (layout.width(), layout.heads * layout.head_dim, 200, 150);
        let spec = spec(layout, window, positions);
        let qkv = random(length * width, 1);
        let [whole, ..] = attend(&spec, &[length], &qkv, &vec![0.0; length * columns]);
        let backend = backend();
        let kv_columns = layout.kv_heads * layout.head_dim;
        let (mut keys, mut values) = (zeros(3 * positions, kv_columns), zeros(3 * positions, kv_columns));
        let mut start = 0;
        for piece in [70, 1, 1, 60, 18] {
            let mut flat = FlatBatch::new();
            flat.push_cached(2, start as u32, &vec![0; piece]).unwrap();
            let batch = load(&flat);
            let mut qkv = tensor(piece, width, &qkv[start * width..(start + piece) * width]);
            let mut out = zeros(piece, columns);
            backend.cache_write(&batch, &layout, None, positions, &mut qkv, &mut keys, &mut values).unwrap();
            backend.attention_cached(&batch, &spec, positions, &qkv, &keys, &values, &mut out).unwrap();
            assert_eq!(
                out.data(),
                &whole[start * columns..(start + piece) * columns],
                "{piece} from {start}"
            );
            start += piece;
        }
        assert_eq!(start, length);
    }
}
