//! What the integration tests share: random tensors and batches.
#![allow(dead_code)]

use eyas_backend::{
    Adapter, Backend, CpuBackend, CpuOptions, DeviceTensor, Dropout, Dtype, FlatBatch, HostMatrix, Linear,
    LoraSlot, MatmulKernel, Projection, Rope, Storage,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub type Tensor = <CpuBackend as Backend>::Tensor;
pub type Batch = <CpuBackend as Backend>::Batch;

pub fn backend() -> CpuBackend {
    CpuBackend::new(CpuOptions { matmul: Some(MatmulKernel::F32) }).unwrap()
}

/// Uniform values in (-1, 1).
pub fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

pub fn tensor(rows: usize, cols: usize, values: &[f32]) -> Tensor {
    let backend = backend();
    let mut tensor = backend.zeros(Dtype::F32, rows, cols).unwrap();
    backend.upload(values, &mut tensor).unwrap();
    tensor
}

pub fn zeros(rows: usize, cols: usize) -> Tensor {
    backend().zeros(Dtype::F32, rows, cols).unwrap()
}

pub fn random_tensor(rows: usize, cols: usize, seed: u64) -> Tensor {
    tensor(rows, cols, &random(rows * cols, seed))
}

/// A batch on the device of sequences of these lengths, every token but the last with a target.
pub fn batch(lengths: &[usize], vocab: usize) -> (Batch, FlatBatch) {
    let mut flat = FlatBatch::new();
    for &length in lengths {
        let ids: Vec<u32> = (0..length).map(|i| (i * 7 % vocab) as u32).collect();
        flat.push_causal(&ids, &vec![true; length]).unwrap();
    }
    (load(&flat), flat)
}

pub fn load(flat: &FlatBatch) -> Batch {
    let backend = backend();
    let mut batch = backend.new_batch(flat.tokens(), flat.sequences()).unwrap();
    backend.load_batch(flat, &mut batch).unwrap();
    batch
}

/// The usual angles, for `positions` positions.
pub fn rope(dim: usize, positions: usize) -> Rope<CpuBackend> {
    let half = dim / 2;
    let angle = |i: usize| (i / half) as f32 * 10_000f32.powf(-((i % half) as f32) / half as f32);
    let table = |f: fn(f32) -> f32| {
        tensor(positions, half, &(0..positions * half).map(|i| f(angle(i))).collect::<Vec<_>>())
    };
    Rope { dim, cos: table(f32::cos), sin: table(f32::sin) }
}

/// Two layers that read one input, with an update each, and the adapter's parameters.
pub fn projection(in_features: usize, outs: [usize; 2], r: usize, storage: Storage) -> TestProjection {
    let backend = backend();
    let parts = outs.map(|n| {
        let matrix = random(n * in_features, n as u64);
        let matrix = HostMatrix::from_f32(n, in_features, &matrix).unwrap();
        let weight = backend.load_weight(matrix, storage).unwrap();
        Linear { weight, bias: Some(random_tensor(1, n, 99)), out_features: n }
    });
    let mut len = 0;
    let mut take = |n: usize| {
        len += n;
        len - n
    };
    let slots =
        outs.map(|n| Some(LoraSlot { a: take(r * in_features), b: take(n * r), r, scaling: 0.5 })).to_vec();
    TestProjection {
        projection: Projection { in_features, index: 3, parts: parts.into_iter().collect() },
        slots,
        len,
    }
}

pub struct TestProjection {
    pub projection: Projection<CpuBackend>,
    pub slots: Vec<Option<LoraSlot>>,
    pub len: usize,
}

impl TestProjection {
    pub fn adapter<'a>(&'a self, params: &'a Tensor) -> Adapter<'a, CpuBackend> {
        let dropout = Some(Dropout { p: 0.25, seed: 11, micro_batch: 2 });
        Adapter { params, slots: &self.slots, dropout }
    }
}

pub fn rows(tensor: &Tensor) -> usize {
    tensor.shape().0
}
