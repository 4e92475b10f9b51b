//! Pinned host memory on a card: activations away and back, paged moments. Without a card the tests say so and pass.

use eyas_backend::{Backend, Dtype, FlatBatch, MomentFormat, MomentStorage};
use eyas_cuda::{CudaBackend, CudaOptions};
use eyas_model::config::Config;
use eyas_model::{
    ActiveAdapter, DeviceBatch, LoadOptions, LoraConfig, LoraLayout, MemoryPlan, Model, Retain,
};

fn backend(dtype: Dtype) -> Option<CudaBackend> {
    match CudaBackend::new(CudaOptions { compute_dtype: Some(dtype), ..CudaOptions::default() }) {
        Ok(backend) => Some(backend),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Large enough that a copy which nobody waits for is not over in time.
#[test]
fn copies_are_waited_for() {
    let Some(backend) = backend(Dtype::F32) else { return };
    let (rows, cols) = (4096, 4096);
    let tensor = || backend.zeros(Dtype::F32, rows, cols).unwrap();
    let (mut x, mut back) = (tensor(), [tensor(), tensor()]);
    let buffer = || backend.new_host_buffer(Dtype::F32, rows, cols).unwrap();
    let mut host = [buffer(), buffer(), buffer(), buffer()];
    for (i, host) in host.iter_mut().enumerate() {
        // What went out before must be out before this is written.
        backend.upload(&vec![i as f32; rows * cols], &mut x).unwrap();
        backend.offload(rows, &x, host).unwrap();
        backend.await_copy(host).unwrap();
        backend.clear(&mut x).unwrap();
    }
    let mut values = vec![0.0; rows * cols];
    for (i, host) in host.iter().enumerate().rev() {
        let to = &mut back[i % 2];
        backend.fetch(rows, host, to).unwrap();
        backend.await_copy(host).unwrap();
        backend.download(to, &mut values).unwrap();
        assert!(values.iter().all(|value| *value == i as f32), "buffer {i}");
    }
}

/// The host reads what a copy brought and writes what one has taken, with no wait but that of asking for the values.
#[test]
fn the_host_waits_for_copies() {
    let Some(backend) = backend(Dtype::Bf16) else { return };
    let cols = 1 << 24;
    let mut x = backend.zeros(Dtype::F32, 1, cols).unwrap();
    let mut buffer = backend.new_host_buffer(Dtype::F32, 1, cols).unwrap();
    let mut values = vec![0.0; cols];
    for round in 1..4 {
        let value = round as f32;
        backend.upload(&vec![value; cols], &mut x).unwrap();
        backend.offload(1, &x, &mut buffer).unwrap();
        assert!(backend.host_values(&buffer).unwrap().iter().all(|seen| *seen == value), "{round}");
        backend.host_values_mut(&mut buffer).unwrap().fill(-value);
        backend.fetch(1, &buffer, &mut x).unwrap();
        backend.host_values_mut(&mut buffer).unwrap().fill(f32::NAN);
        backend.await_copy(&buffer).unwrap();
        backend.download(&x, &mut values).unwrap();
        assert!(values.iter().all(|seen| *seen == -value), "{round}");
    }
    let half = backend.new_host_buffer(Dtype::Bf16, 1, 8).unwrap();
    assert!(backend.host_values(&half).unwrap_err().to_string().contains("F32 is needed"));
}

#[test]
fn paged_moments_take_no_memory_of_the_card() {
    let Some(backend) = backend(Dtype::F32) else { return };
    let before = backend.memory().unwrap().used;
    let paged = MomentStorage { format: MomentFormat::F32, paged: true };
    let moments = backend.new_moments(1 << 22, paged).unwrap();
    assert_eq!(backend.memory().unwrap().used, before);
    assert!(backend.read_moments(&moments).unwrap().values().iter().flatten().all(|value| *value == 0.0));
    let resident = backend.new_moments(1 << 22, MomentStorage { paged: false, ..paged }).unwrap();
    assert_eq!(
        backend.memory().unwrap().used - before,
        CudaBackend::moment_bytes(1 << 22, MomentStorage::default())
    );
    drop(resident);
}

fn gradient(backend: &CudaBackend, model: &Model<CudaBackend>, retain: Retain) -> Vec<f32> {
    let layout = LoraLayout::new(model.decoder(), LoraConfig { r: 8, ..LoraConfig::default() }).unwrap();
    let values: Vec<f32> = (0..layout.parameters()).map(|i| (i as f32 * 0.37).sin() * 0.05).collect();
    let mut params = backend.zeros(Dtype::F32, 1, values.len()).unwrap();
    backend.upload(&values, &mut params).unwrap();
    let mut flat = FlatBatch::new();
    for length in [1000, 1, 500, 547] {
        let ids: Vec<u32> = (0..length).map(|i| (i * 7 % 251) as u32).collect();
        flat.push_causal(&ids, &vec![true; length]).unwrap();
    }
    let plan = MemoryPlan {
        max_tokens: flat.tokens(),
        max_sequences: flat.sequences(),
        logit_rows: 512,
        blocks: vec![retain; model.decoder().blocks()],
    };
    let mut workspace = eyas_model::Workspace::new(backend, model.decoder(), Some(&layout), plan).unwrap();
    let mut batch = DeviceBatch::new(backend, flat.tokens(), flat.sequences()).unwrap();
    batch.load(backend, &flat).unwrap();
    let mut grads = backend.zeros(Dtype::F32, 1, values.len()).unwrap();
    let mut loss = backend.zeros(Dtype::F32, 1, 1).unwrap();
    let adapter = ActiveAdapter { layout: &layout, params: &params, dropout: None };
    for _ in 0..3 {
        model.forward(backend, &batch, Some(adapter), &mut workspace).unwrap();
        model.loss(backend, &batch, &mut workspace, &mut loss, Some(1e-3)).unwrap();
        model.backward(backend, &batch, adapter, &mut workspace, &mut grads).unwrap();
    }
    let mut gradient = vec![0.0; values.len()];
    backend.download(&grads, &mut gradient).unwrap();
    gradient
}

#[test]
fn inputs_in_host_memory_change_no_bit() {
    let Some(backend) = backend(Dtype::Bf16) else { return };
    let config = r#"{"model_type": "llama", "vocab_size": 256, "hidden_size": 512, "intermediate_size": 1024,
        "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": false}"#;
    let decoder = eyas_model::family::from_config(&Config::parse("a model".into(), config).unwrap()).unwrap();
    let options =
        LoadOptions { quantize: Some(Default::default()), positions: 1024, embedding_on_host: false };
    let model = Model::random(&backend, &decoder, options, 5, &mut |_, _| {}).unwrap();
    let want = gradient(&backend, &model, Retain::Recompute);
    assert!(want.iter().any(|value| *value != 0.0));
    for _ in 0..3 {
        assert!(gradient(&backend, &model, Retain::RecomputeFromHost) == want);
    }
}
