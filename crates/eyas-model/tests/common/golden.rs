//! The tiny models of the golden files, for the tests of every crate that runs one.
#![allow(dead_code)] // each test uses its part

use std::path::{Path, PathBuf};

use eyas_backend::spec::QuantConfig;
use eyas_backend::{Backend, CpuBackend, CpuOptions, FlatBatch, MatmulKernel};
use eyas_checkpoint::Checkpoint;
use eyas_model::{LoadOptions, Model, ModelSource};

/// Every base with golden answers of its own.
pub const BASES: [&str; 10] = [
    "llama2",
    "llama3",
    "smollm2",
    "mistral",
    "qwen2",
    "qwen3",
    "falcon-7b",
    "falcon-40b",
    "falcon-11b",
    "falcon-rw",
];

/// A golden file or folder.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../eyas-model/tests/fixtures").join(name)
}

/// Products in f32, as the goldens have them.
pub fn backend() -> CpuBackend {
    CpuBackend::new(CpuOptions { matmul: Some(MatmulKernel::F32) }).unwrap()
}

/// A base by its name.
pub fn load<B: Backend>(backend: &B, name: &str, quantize: Option<QuantConfig>) -> Model<B> {
    load_from(backend, &fixture(name), quantize)
}

pub fn load_from<B: Backend>(backend: &B, path: &Path, quantize: Option<QuantConfig>) -> Model<B> {
    let source = ModelSource::open(path).unwrap();
    source
        .load(backend, LoadOptions { quantize, positions: 64, embedding_on_host: false }, &mut |_, _| {})
        .unwrap()
}

/// A folder with a base whose linears bitsandbytes quantised, bit for bit.
pub fn quantised(base: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in [("config.json", "config.json"), ("model.nf4.safetensors", "model.safetensors")] {
        std::fs::copy(fixture(base).join(from), folder.path().join(to)).unwrap();
    }
    folder
}

pub fn floats(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let mut values = Vec::new();
    checkpoint.read_f32(name, &mut values).unwrap();
    values
}

pub fn integers(checkpoint: &Checkpoint, name: &str) -> Vec<i32> {
    let bytes = checkpoint.read_bytes(name).unwrap();
    bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// A batch that the goldens answer, by its keys' prefix (`flat`, `train.0`).
pub fn batch(golden: &Checkpoint, prefix: &str) -> FlatBatch {
    let ids = integers(golden, &format!("{prefix}.input_ids"));
    let targets = integers(golden, &format!("{prefix}.targets"));
    let bounds = integers(golden, &format!("{prefix}.cu_seqlens"));
    let mut batch = FlatBatch::new();
    for window in bounds.windows(2) {
        let range = window[0] as usize..window[1] as usize;
        let input_ids: Vec<u32> = ids[range.clone()].iter().map(|&id| id as u32).collect();
        batch.push(&input_ids, &targets[range]).unwrap();
    }
    batch
}
