//! The CPU backend's operations at the shapes of SmolLM2-135M and Falcon-7B, beside the speed of memory.
//!
//! Bytes are those that an operation must read and write once; `copy` is the measure of what memory gives. Items of
//! attention are multiply-adds, the causal half alone.
//!
//!     cargo bench -p eyas-backend --bench ops

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use eyas_backend::{
    Activation, AdamW, AttentionSpec, Backend, CpuBackend, CpuOptions, DeviceTensor, Dtype, FlatBatch,
    HostMatrix, MomentFormat, MomentStorage, NormKind, NormSpec, QkvLayout, Rope, Storage, Write,
};

fn main() {
    divan::main();
}

type Tensor = <CpuBackend as Backend>::Tensor;
type Batch = <CpuBackend as Backend>::Batch;

/// A model's sizes.
#[derive(Clone, Copy, Debug)]
struct Model {
    name: &'static str,
    hidden: usize,
    mlp: usize,
    activation: Activation,
    norm: NormKind,
    layout: QkvLayout,
    vocab: usize,
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const SMOLLM2: Model = Model {
    name: "SmolLM2",
    hidden: 576,
    mlp: 1536,
    activation: Activation::SwiGlu,
    norm: NormKind::RmsNorm,
    layout: QkvLayout::contiguous(9, 3, 64),
    vocab: 49_152,
};

const FALCON: Model = Model {
    name: "Falcon-7B",
    hidden: 4544,
    mlp: 18_176,
    activation: Activation::Gelu,
    norm: NormKind::LayerNorm,
    layout: QkvLayout::contiguous(71, 1, 64),
    vocab: 65_024,
};

const MODELS: [Model; 2] = [SMOLLM2, FALCON];
/// Sequences of 256 tokens.
const SEQUENCES: usize = 4;
const TOKENS: usize = 256 * SEQUENCES;

fn backend() -> CpuBackend {
    CpuBackend::new(CpuOptions::default()).unwrap()
}

/// Values without a pattern that arithmetic would profit from.
fn tensor(backend: &CpuBackend, rows: usize, cols: usize) -> Tensor {
    let mut tensor = backend.zeros(Dtype::F32, rows, cols).unwrap();
    let values: Vec<f32> = (0..rows * cols)
        .map(|i| ((i.wrapping_mul(2_654_435_761) >> 8) % 4096) as f32 / 1024.0 - 2.0)
        .collect();
    backend.upload(&values, &mut tensor).unwrap();
    tensor
}

fn batch(backend: &CpuBackend, lengths: &[usize], vocab: usize) -> Batch {
    let mut flat = FlatBatch::new();
    for &length in lengths {
        let ids: Vec<u32> = (0..length).map(|i| (i * 7919 % vocab) as u32).collect();
        flat.push_causal(&ids, &vec![true; length]).unwrap();
    }
    let mut batch = backend.new_batch(flat.tokens(), flat.sequences()).unwrap();
    backend.load_batch(&flat, &mut batch).unwrap();
    batch
}

fn bytes(tensors: &[&Tensor]) -> BytesCount {
    let elements: usize = tensors.iter().map(|tensor| tensor.shape().0 * tensor.shape().1).sum();
    BytesCount::new(elements * 4)
}

#[divan::bench(args = MODELS)]
fn copy(bencher: Bencher<'_, '_>, model: Model) {
    let backend = backend();
    let x = tensor(&backend, TOKENS, model.mlp);
    let mut y = tensor(&backend, TOKENS, model.mlp);
    bencher.counter(bytes(&[&x, &y])).bench_local(|| backend.copy(TOKENS, &x, &mut y));
}

#[divan::bench(args = MODELS)]
fn add(bencher: Bencher<'_, '_>, model: Model) {
    let backend = backend();
    let x = tensor(&backend, TOKENS, model.hidden);
    let mut y = tensor(&backend, TOKENS, model.hidden);
    bencher.counter(bytes(&[&x, &y, &y])).bench_local(|| backend.add(TOKENS, &x, &mut y));
}

#[divan::bench(args = MODELS)]
fn embed(bencher: Bencher<'_, '_>, model: Model) {
    let backend = backend();
    let matrix: Vec<f32> = (0..8192 * model.hidden).map(|i| (i % 97) as f32).collect();
    let matrix = HostMatrix::from_f32(8192, model.hidden, &matrix).unwrap();
    let table = backend.load_weight(matrix, Storage::Dense(Dtype::Bf16)).unwrap();
    let batch = batch(&backend, &[256; SEQUENCES], 8192);
    let mut x = tensor(&backend, TOKENS, model.hidden);
    let counter = BytesCount::new(TOKENS * model.hidden * 6);
    bencher.counter(counter).bench_local(|| backend.embed(&batch, &table, &mut x));
}

#[divan::bench(args = MODELS)]
fn norm(bencher: Bencher<'_, '_>, model: Model) {
    let backend = backend();
    let spec = NormSpec { kind: model.norm, eps: 1e-5 };
    let x = tensor(&backend, TOKENS, model.hidden);
    let weight = tensor(&backend, 1, model.hidden);
    let mut y = tensor(&backend, TOKENS, model.hidden);
    let mut stats = tensor(&backend, TOKENS, 2);
    bencher
        .counter(bytes(&[&x, &y]))
        .bench_local(|| backend.norm(TOKENS, spec, &x, &weight, None, &mut y, &mut stats));
}

#[divan::bench(args = MODELS)]
fn norm_backward(bencher: Bencher<'_, '_>, model: Model) {
    let backend = backend();
    let spec = NormSpec { kind: model.norm, eps: 1e-5 };
    let x = tensor(&backend, TOKENS, model.hidden);
    let weight = tensor(&backend, 1, model.hidden);
    let dy = tensor(&backend, TOKENS, model.hidden);
    let mut dx = tensor(&backend, TOKENS, model.hidden);
    let stats = tensor(&backend, TOKENS, 2);
    bencher
        .counter(bytes(&[&x, &dy, &dx]))
        .bench_local(|| backend.norm_backward(TOKENS, spec, &x, &weight, &stats, &dy, &mut dx, Write::Set));
}

#[divan::bench(args = MODELS)]
fn rope(bencher: Bencher<'_, '_>, model: Model) {
    let backend = backend();
    let dim = model.layout.head_dim;
    // A quarter of a turn keeps the values' size, however often they are rotated.
    let mut rope = Rope { dim, cos: tensor(&backend, 256, dim / 2), sin: tensor(&backend, 256, dim / 2) };
    backend.upload(&vec![0.0; 128 * dim], &mut rope.cos).unwrap();
    backend.upload(&vec![1.0; 128 * dim], &mut rope.sin).unwrap();
    let batch = batch(&backend, &[256; SEQUENCES], 10);
    let mut qkv = tensor(&backend, TOKENS, model.layout.width());
    let rotated = (model.layout.heads + model.layout.kv_heads) * dim;
    bencher
        .counter(BytesCount::new(TOKENS * rotated * 8))
        .bench_local(|| backend.rope(&batch, &model.layout, &rope, &mut qkv, false));
}

#[divan::bench(args = MODELS)]
fn activation(bencher: Bencher<'_, '_>, model: Model) {
    let backend = backend();
    let x = tensor(&backend, TOKENS, model.mlp * model.activation.fan_in());
    let mut y = tensor(&backend, TOKENS, model.mlp);
    bencher
        .counter(bytes(&[&x, &y]))
        .bench_local(|| backend.activation(TOKENS, model.activation, &x, &mut y));
}

#[divan::bench(args = MODELS)]
fn activation_backward(bencher: Bencher<'_, '_>, model: Model) {
    let backend = backend();
    let mut x = tensor(&backend, TOKENS, model.mlp * model.activation.fan_in());
    let dy = tensor(&backend, TOKENS, model.mlp);
    bencher
        .counter(bytes(&[&x, &x, &dy]))
        .bench_local(|| backend.activation_backward(TOKENS, model.activation, &dy, &mut x));
}

/// 256 rows of logits: one forward and gradient.
#[divan::bench(args = MODELS)]
fn cross_entropy(bencher: Bencher<'_, '_>, model: Model) {
    let backend = backend();
    let batch = batch(&backend, &[257], model.vocab);
    let mut logits = tensor(&backend, 256, model.vocab);
    let mut loss = tensor(&backend, 1, 1);
    bencher
        .counter(bytes(&[&logits, &logits]))
        .bench_local(|| backend.cross_entropy(&batch, 0..256, &mut logits, &mut loss, Some(1e-3)));
}

#[divan::bench]
fn grad_norm(bencher: Bencher<'_, '_>) {
    let backend = backend();
    let grads = tensor(&backend, 1, 5_000_000);
    let mut norm = tensor(&backend, 1, 1);
    bencher.counter(bytes(&[&grads])).bench_local(|| backend.grad_norm(&grads, &mut norm));
}

#[divan::bench(args = [MomentFormat::F32, MomentFormat::Blockwise8])]
fn adamw(bencher: Bencher<'_, '_>, format: MomentFormat) {
    let backend = backend();
    let [grads, mut params] = [0; 2].map(|_| tensor(&backend, 1, 5_000_000));
    let norm = tensor(&backend, 1, 1);
    let storage = MomentStorage { format, paged: false };
    let mut moments = backend.new_moments(5_000_000, storage).unwrap();
    let spec = AdamW {
        lr: 1e-9,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        step: 3,
        max_grad_norm: Some(0.3),
        loss_scale: 1.0,
    };
    bencher
        .counter(BytesCount::new(5_000_000 * 3 * 4 + 2 * storage.bytes(5_000_000)))
        .bench_local(|| backend.adamw(spec, &grads, &norm, &mut params, &mut moments));
}

fn attention_spec(model: &Model) -> AttentionSpec<CpuBackend> {
    AttentionSpec { layout: model.layout, scale: 0.125, window: None, alibi: None }
}

/// Multiply-adds of `products` matrix products over the causal half of `sequences` of `length`.
fn multiply_adds(model: &Model, sequences: usize, length: usize, products: usize) -> ItemsCount {
    let pairs = sequences * length * (length + 1) / 2;
    ItemsCount::new(pairs * model.layout.heads * model.layout.head_dim * products)
}

/// What attention reads and writes: a batch, `qkv`, the output and its logarithms.
fn attention_operands(backend: &CpuBackend, model: &Model) -> (Batch, [Tensor; 3]) {
    let QkvLayout { heads, head_dim, .. } = model.layout;
    let columns = [model.layout.width(), heads * head_dim, heads];
    (batch(backend, &[256; SEQUENCES], 10), columns.map(|columns| tensor(backend, TOKENS, columns)))
}

#[divan::bench(args = MODELS)]
fn attention(bencher: Bencher<'_, '_>, model: Model) {
    let backend = backend();
    let spec = attention_spec(&model);
    let (batch, [qkv, mut out, mut lse]) = attention_operands(&backend, &model);
    bencher
        .counter(multiply_adds(&model, SEQUENCES, 256, 2))
        .bench_local(|| backend.attention(&batch, &spec, &qkv, &mut out, &mut lse));
}

#[divan::bench(args = MODELS)]
fn attention_backward(bencher: Bencher<'_, '_>, model: Model) {
    let backend = backend();
    let spec = attention_spec(&model);
    let (batch, [qkv, mut out, mut lse]) = attention_operands(&backend, &model);
    backend.attention(&batch, &spec, &qkv, &mut out, &mut lse).unwrap();
    let dout = tensor(&backend, TOKENS, out.shape().1);
    let mut dqkv = tensor(&backend, TOKENS, qkv.shape().1);
    bencher
        .counter(multiply_adds(&model, SEQUENCES, 256, 5))
        .bench_local(|| backend.attention_backward(&batch, &spec, &qkv, &out, &lse, &dout, &mut dqkv));
}

/// One sequence's next token over 2047 cached ones; bytes are the keys and values of one layer.
#[divan::bench(args = MODELS)]
fn attention_cached(bencher: Bencher<'_, '_>, model: Model) {
    let backend = backend();
    let spec = attention_spec(&model);
    let mut flat = FlatBatch::new();
    flat.push_cached(0, 2047, &[1]).unwrap();
    let mut batch = backend.new_batch(1, 1).unwrap();
    backend.load_batch(&flat, &mut batch).unwrap();
    let columns = model.layout.kv_heads * model.layout.head_dim;
    let qkv = tensor(&backend, 1, model.layout.width());
    let (keys, values) = (tensor(&backend, 2048, columns), tensor(&backend, 2048, columns));
    let mut out = tensor(&backend, 1, model.layout.heads * model.layout.head_dim);
    bencher
        .counter(bytes(&[&keys, &values]))
        .bench_local(|| backend.attention_cached(&batch, &spec, 2048, &qkv, &keys, &values, &mut out));
}
