//! Golden files, and models run on the CPU.
#![allow(dead_code)]

use eyas_backend::{Backend, CpuBackend, Dtype, FlatBatch};
use eyas_model::{ActiveAdapter, DeviceBatch, LoraAdapter, LoraLayout, MemoryPlan, Model, Retain, Workspace};

pub mod golden;
pub use golden::*;

/// As [`batch`], with a target everywhere, so that every token's logits are asked for.
pub fn all_targets(batch: &FlatBatch) -> FlatBatch {
    let mut all = FlatBatch::new();
    for range in batch.ranges() {
        all.push(&batch.input_ids()[range.clone()], &vec![0; range.len()]).unwrap();
    }
    all
}

/// Logits of every token, `[T, V]`.
pub fn logits(
    backend: &CpuBackend,
    model: &Model<CpuBackend>,
    batch: &FlatBatch,
    adapter: Option<&LoraAdapter>,
) -> Vec<f32> {
    let batch = all_targets(batch);
    let mut device = DeviceBatch::new(backend, batch.tokens(), batch.sequences()).unwrap();
    device.load(backend, &batch).unwrap();
    // Fewer rows of logits than tokens, so that chunks are exercised too.
    let plan = MemoryPlan::forward_only(batch.tokens(), batch.sequences(), 5);
    let layout = adapter.map(|adapter| &adapter.layout);
    let mut workspace = Workspace::new(backend, model.decoder(), layout, plan).unwrap();
    let params = adapter.map(|adapter| tensor(backend, &adapter.params));
    let active = adapter.zip(params.as_ref()).map(|(adapter, params)| ActiveAdapter {
        layout: &adapter.layout,
        params,
        dropout: None,
    });
    model.forward(backend, &device, active, &mut workspace).unwrap();
    let mut all = Vec::new();
    model.target_logits(backend, &device, &mut workspace, |_, rows| all.extend_from_slice(rows)).unwrap();
    all
}

pub fn tensor(backend: &CpuBackend, values: &[f32]) -> <CpuBackend as Backend>::Tensor {
    let mut tensor = backend.zeros(Dtype::F32, 1, values.len()).unwrap();
    backend.upload(values, &mut tensor).unwrap();
    tensor
}

/// Mean loss of a batch, and the gradient of the adapter.
pub fn loss_and_gradient(
    backend: &CpuBackend,
    model: &Model<CpuBackend>,
    batch: &FlatBatch,
    layout: &LoraLayout,
    params: &[f32],
    retain: Retain,
) -> (f32, Vec<f32>) {
    let mut device = DeviceBatch::new(backend, batch.tokens(), batch.sequences()).unwrap();
    device.load(backend, batch).unwrap();
    let plan = MemoryPlan {
        max_tokens: batch.tokens(),
        max_sequences: batch.sequences(),
        logit_rows: 4,
        blocks: vec![retain; model.decoder().blocks()],
    };
    let mut workspace = Workspace::new(backend, model.decoder(), Some(layout), plan).unwrap();
    let params = tensor(backend, params);
    let mut grads = backend.zeros(Dtype::F32, 1, layout.parameters()).unwrap();
    let mut loss = backend.zeros(Dtype::F32, 1, 1).unwrap();
    let adapter = ActiveAdapter { layout, params: &params, dropout: None };
    let targets = batch.target_tokens() as f32;
    model.forward(backend, &device, Some(adapter), &mut workspace).unwrap();
    model.loss(backend, &device, &mut workspace, &mut loss, Some(1.0 / targets)).unwrap();
    model.backward(backend, &device, adapter, &mut workspace, &mut grads).unwrap();
    let mut sum = [0.0];
    backend.download(&loss, &mut sum).unwrap();
    let mut gradient = vec![0.0; layout.parameters()];
    backend.download(&grads, &mut gradient).unwrap();
    (sum[0] / targets, gradient)
}

/// The norm of the difference over the norm of what was expected. NaN where there is one.
pub fn relative_error(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut actual.iter().zip(expected).map(|(a, e)| f64::from(*a) - f64::from(*e)));
    difference / square(&mut expected.iter().map(|e| f64::from(*e)))
}

#[track_caller]
pub fn assert_close(what: &str, actual: &[f32], expected: &[f32], tolerance: f64) {
    let error = relative_error(actual, expected);
    assert!(error <= tolerance, "{what}: relative error {error:.2e}, at most {tolerance:.0e} allowed");
}
