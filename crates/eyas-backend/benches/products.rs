//! GFLOP/s of the projections at SmolLM2-135M's shapes, by kernel: `products [TOKENS] [FILTER]`.
//!
//! Every kernel that the processor has runs every shape forward and backward, LoRA of rank 32 and its dropout included
//! (the head has neither). The best of several rounds counts; the rounds go through all kernels, so that a change of
//! the clock meets all of them. The last column is one pass over all layers of the model, in milliseconds.
//!
//!     cargo bench -p eyas-backend --bench products

use std::time::Instant;

use eyas_backend::cpu::CpuTensor;
use eyas_backend::{
    Adapter, Backend, CpuBackend, CpuOptions, Dropout, Dtype, HostMatrix, Linear, LoraSlot, MatmulKernel,
    Projection, Storage, Write,
};

const RANK: usize = 32;
const ROUNDS: usize = 4;

/// A shape: name, input width, output widths, how often the model has it.
type Shape = (&'static str, usize, &'static [usize], usize);

const SHAPES: [Shape; 5] = [
    ("qkv", 576, &[576, 192, 192], 30),
    ("o", 576, &[576], 30),
    ("gate_up", 576, &[1536, 1536], 30),
    ("down", 1536, &[576], 30),
    ("head", 576, &[49152], 1),
];

fn values(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

struct Layer {
    backend: CpuBackend,
    projection: Projection<CpuBackend>,
    params: CpuTensor,
    grads: CpuTensor,
    slots: Vec<Option<LoraSlot>>,
    tensors: [CpuTensor; 5],
    /// Floating-point operations forward and backward.
    operations: [f64; 2],
    tokens: usize,
}

impl Layer {
    fn new(kernel: MatmulKernel, (name, k, outs, _): Shape, tokens: usize) -> Self {
        let backend = CpuBackend::new(CpuOptions { matmul: Some(kernel) }).unwrap();
        let storage = match name {
            "head" => Storage::Dense(Dtype::Bf16),
            _ => Storage::Quantised(Default::default()),
        };
        let (mut parts, mut slots, mut next) = (Vec::new(), Vec::new(), 0);
        for &out in outs {
            let host = values(out * k);
            let host = HostMatrix::from_f32(out, k, &host).unwrap();
            let weight = backend.load_weight(host, storage).unwrap();
            parts.push(Linear { weight, bias: None, out_features: out });
            let slot = LoraSlot { a: next, b: next + RANK * k, r: RANK, scaling: 1.0 };
            slots.push((name != "head").then_some(slot));
            next += RANK * (k + out);
        }
        let projection = Projection { in_features: k, index: 0, parts };
        let out = projection.out_features();
        let rank = slots.iter().flatten().count() * RANK;
        let tensor = |rows, cols| {
            let mut tensor = backend.zeros(Dtype::F32, rows, cols).unwrap();
            backend.upload(&values(rows * cols), &mut tensor).unwrap();
            tensor
        };
        let tensors = [
            tensor(tokens, k),
            tensor(tokens, out),
            tensor(tokens, rank),
            tensor(tokens, out),
            tensor(tokens, k),
        ];
        let low_rank: usize = outs.iter().map(|out| RANK * (k + out)).sum::<usize>() * (rank > 0) as usize;
        let operations = [out * k + low_rank, out * k + 2 * low_rank].map(|n| 2.0 * (n * tokens) as f64);
        let (params, grads) = (tensor(1, next), tensor(1, next));
        Self { backend, projection, params, grads, slots, tensors, operations, tokens }
    }

    /// Seconds of the forward and of the backward.
    fn run(&mut self) -> [f64; 2] {
        let Self { backend, projection, params, grads, slots, tensors, tokens, .. } = self;
        let [x, y, hidden, dy, dx] = tensors;
        let dropout = Some(Dropout { p: 0.05, seed: 42, micro_batch: 0 });
        let adapter = slots.iter().any(Option::is_some).then_some(Adapter { params, slots, dropout });
        let start = Instant::now();
        let kept = adapter.map(|_| &mut *hidden);
        backend.project(*tokens, projection, adapter, x, y, kept, Write::Set).unwrap();
        let forward = start.elapsed();
        let with_grads = adapter.map(|adapter| (adapter, grads));
        let kept = adapter.map(|_| &*hidden);
        let dx = Some((dx, Write::Set));
        backend.project_backward(*tokens, projection, with_grads, x, kept, dy, dx).unwrap();
        [forward, start.elapsed() - forward].map(|time| time.as_secs_f64())
    }
}

fn main() {
    // Inside the pool, as the program itself runs.
    rayon::scope(|_| run());
}

fn run() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let tokens = words.first().and_then(|word| word.parse().ok()).unwrap_or(1024);
    let filter = words.get(1).map_or("", String::as_str);
    let kernels: Vec<_> = MatmulKernel::ALL.into_iter().filter(|kernel| kernel.is_supported()).collect();
    println!("{} threads, {tokens} tokens; GFLOP/s forward, backward", rayon::current_num_threads());
    println!("{:10} {:>16} x times", "", kernels.iter().map(|k| format!("{k:>16}")).collect::<String>());
    let mut totals = vec![0.0; kernels.len()];
    for shape in SHAPES.into_iter().filter(|shape| shape.0.contains(filter)) {
        let mut layers: Vec<_> = kernels.iter().map(|&kernel| Layer::new(kernel, shape, tokens)).collect();
        let mut best = vec![[f64::INFINITY; 2]; kernels.len()];
        for _ in 0..ROUNDS {
            for (layer, best) in layers.iter_mut().zip(&mut best) {
                for (best, time) in best.iter_mut().zip(layer.run()) {
                    *best = best.min(time);
                }
            }
        }
        let mut line = String::new();
        for ((layer, best), total) in layers.iter().zip(&best).zip(&mut totals) {
            *total += 1e3 * shape.3 as f64 * (best[0] + best[1]);
            for (operations, time) in layer.operations.iter().zip(best) {
                line += &format!(" {:7.0}", operations / time / 1e9);
            }
        }
        println!("{:10} {line} x {}", shape.0, shape.3);
    }
    println!("{:10} {} ms a step", "all", totals.iter().map(|ms| format!(" {ms:15.1}")).collect::<String>());
}
