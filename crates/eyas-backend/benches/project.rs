//! Projections at SmolLM2-135M's shapes, against what the processor could do.
//!
//! Items are floating-point operations. The floor of a training pass is two for each weight and token on every
//! multiply-add unit; run `peak` for the rate of this machine as its caches and clock have it, and `gemm_crate` for a
//! plain product of the same shape beside it. The floor of `decode` is reading each weight once: bytes are counted.
//!
//!     cargo bench -p eyas-backend --bench project

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use eyas_backend::cpu::CpuTensor;
use eyas_backend::{
    Adapter, Backend, CpuBackend, CpuOptions, Dropout, Dtype, HostMatrix, Linear, LoraSlot, Projection,
    Storage, Write,
};

const TOKENS: usize = 1024;
const RANK: usize = 32;
const SHAPES: [&str; 5] = ["qkv", "o", "gate_up", "down", "head"];

fn main() {
    divan::main();
}

/// Input and output widths.
fn widths(name: &str) -> (usize, Vec<usize>) {
    match name {
        "qkv" => (576, vec![576, 192, 192]),
        "o" => (576, vec![576]),
        "gate_up" => (576, vec![1536, 1536]),
        "down" => (1536, vec![576]),
        // A piece of the vocabulary: the time is in proportion.
        "head" => (576, vec![49152 / 8]),
        _ => unreachable!("{name}"),
    }
}

struct Layer {
    backend: CpuBackend,
    projection: Projection<CpuBackend>,
    params: CpuTensor,
    slots: Vec<Option<LoraSlot>>,
    weights: usize,
}

fn values(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

impl Layer {
    fn new(name: &str) -> Self {
        let backend = CpuBackend::new(CpuOptions::default()).unwrap();
        let (k, outs) = widths(name);
        let head = name == "head";
        let storage = if head { Storage::Dense(Dtype::Bf16) } else { Storage::Quantised(Default::default()) };
        let mut next = 0;
        let (mut parts, mut slots) = (Vec::new(), Vec::new());
        for &out in &outs {
            let host = values(out * k);
            let host = HostMatrix::from_f32(out, k, &host).unwrap();
            let weight = backend.load_weight(host, storage).unwrap();
            parts.push(Linear { weight, bias: None, out_features: out });
            slots.push((!head).then_some(LoraSlot { a: next, b: next + RANK * k, r: RANK, scaling: 1.0 }));
            next += RANK * (k + out);
        }
        let mut params = backend.zeros(Dtype::F32, 1, next).unwrap();
        backend.upload(&values(next), &mut params).unwrap();
        let projection = Projection { in_features: k, index: 0, parts };
        Self { backend, projection, params, slots, weights: k * outs.iter().sum::<usize>() }
    }

    fn adapter(&self) -> Adapter<'_, CpuBackend> {
        let dropout = Some(Dropout { p: 0.05, seed: 42, micro_batch: 0 });
        Adapter { params: &self.params, slots: &self.slots, dropout }
    }

    /// Multiply-adds of the low-rank matrices, for each token and pass.
    fn low_rank(&self) -> usize {
        let k = self.projection.in_features;
        let out = |i: usize| self.projection.parts[i].out_features;
        (0..self.slots.len()).filter(|&i| self.slots[i].is_some()).map(|i| RANK * (k + out(i))).sum()
    }

    fn tensor(&self, rows: usize, cols: usize) -> CpuTensor {
        let mut tensor = self.backend.zeros(Dtype::F32, rows, cols).unwrap();
        self.backend.upload(&values(rows * cols), &mut tensor).unwrap();
        tensor
    }
}

#[divan::bench(args = SHAPES)]
fn forward(bencher: Bencher, name: &str) {
    let layer = Layer::new(name);
    let adapter = layer.adapter();
    let x = layer.tensor(TOKENS, layer.projection.in_features);
    let mut y = layer.tensor(TOKENS, layer.projection.out_features());
    let mut hidden = layer.tensor(TOKENS, adapter.rank());
    bencher.counter(ItemsCount::new(2 * TOKENS * (layer.weights + layer.low_rank()))).bench_local(|| {
        let hidden = Some(&mut hidden);
        layer
            .backend
            .project(TOKENS, &layer.projection, Some(adapter), black_box(&x), &mut y, hidden, Write::Set)
            .unwrap();
    });
}

#[divan::bench(args = SHAPES)]
fn backward(bencher: Bencher, name: &str) {
    let layer = Layer::new(name);
    let adapter = layer.adapter();
    let x = layer.tensor(TOKENS, layer.projection.in_features);
    let hidden = layer.tensor(TOKENS, adapter.rank());
    let dy = layer.tensor(TOKENS, layer.projection.out_features());
    let mut dx = layer.tensor(TOKENS, layer.projection.in_features);
    let mut grads = layer.tensor(1, layer.params.data().len());
    bencher.counter(ItemsCount::new(2 * TOKENS * (layer.weights + 2 * layer.low_rank()))).bench_local(|| {
        let adapter = Some((adapter, &mut grads));
        let dx = Some((&mut dx, Write::Set));
        layer
            .backend
            .project_backward(TOKENS, &layer.projection, adapter, &x, Some(&hidden), black_box(&dy), dx)
            .unwrap();
    });
}

/// The same shapes without low-rank updates, by the crate `gemm` in `f32` on all threads.
#[divan::bench(args = SHAPES)]
fn gemm_crate(bencher: Bencher, name: &str) {
    let (k, outs) = widths(name);
    let n: usize = outs.iter().sum();
    let (x, w) = (values(TOKENS * k), values(n * k));
    let mut y = vec![0.0f32; TOKENS * n];
    bencher.counter(ItemsCount::new(2 * TOKENS * n * k)).bench_local(|| {
        // SAFETY: the slices hold [TOKENS, k], [n, k] and [TOKENS, n].
        unsafe {
            gemm::gemm(
                TOKENS,
                n,
                k,
                y.as_mut_ptr(),
                1,
                n as isize,
                false,
                black_box(x.as_ptr()),
                1,
                k as isize,
                w.as_ptr(),
                k as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(0),
            );
        }
    });
}

#[divan::bench(args = SHAPES, consts = [1, 4, 8])]
fn decode<const N: usize>(bencher: Bencher, name: &str) {
    let layer = Layer::new(name);
    let x = layer.tensor(N, layer.projection.in_features);
    let mut y = layer.tensor(N, layer.projection.out_features());
    let bytes: u64 = layer.projection.parts.iter().map(|part| layer.backend.weight_bytes(&part.weight)).sum();
    bencher.counter(BytesCount::new(bytes)).counter(ItemsCount::new(layer.weights)).bench_local(|| {
        layer.backend.project(N, &layer.projection, None, black_box(&x), &mut y, None, Write::Set).unwrap();
    });
}

/// One token through all products of SmolLM2-135M: 30 layers in 4 bits and the head in bf16. Bytes are those of the
/// weights; an item is a token.
#[divan::bench]
fn decode_model(bencher: Bencher) {
    let layer = |name: &str| {
        let layer = Layer::new(name);
        let x = layer.tensor(1, layer.projection.in_features);
        let y = layer.tensor(1, layer.projection.out_features());
        (layer, x, y)
    };
    let mut layers = Vec::new();
    for _ in 0..30 {
        layers.extend(["qkv", "o", "gate_up", "down"].map(layer));
    }
    layers.extend((0..8).map(|_| layer("head")));
    let bytes: u64 = layers
        .iter()
        .flat_map(|(layer, ..)| {
            layer.projection.parts.iter().map(|part| layer.backend.weight_bytes(&part.weight))
        })
        .sum();
    let pool = rayon::ThreadPoolBuilder::new().build().unwrap();
    bencher.counter(BytesCount::new(bytes)).counter(ItemsCount::new(1usize)).bench_local(|| {
        // On a thread of the pool, as a program should: each hand-over from outside costs several microseconds.
        pool.install(|| {
            for (layer, x, y) in &mut layers {
                layer.backend.project(1, &layer.projection, None, x, y, None, Write::Set).unwrap();
            }
        });
    });
}

/// Multiply-adds on registers alone, on every thread: the rate that a product cannot pass.
#[divan::bench]
fn peak(bencher: Bencher) {
    const STEPS: usize = 1 << 20;
    let threads = rayon::current_num_threads();
    bencher.counter(ItemsCount::new(2 * 96 * STEPS * threads)).bench_local(|| {
        rayon::broadcast(|_| {
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: the processor has the instructions.
                return unsafe { multiply_adds(STEPS) };
            }
            0.0
        })
    });
}

/// `steps` times 12 independent vectors of 8 multiply-adds.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_adds(steps: usize) -> f32 {
    use std::arch::x86_64::*;
    let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-3)));
    let mut sums = [_mm256_setzero_ps(); 12];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, a, b);
        }
    }
    let sum = sums.into_iter().reduce(|a, b| _mm256_add_ps(a, b)).unwrap_or(a);
    _mm256_cvtss_f32(sum)
}
