//! Adapters to and from PEFT, metrics for TensorBoard and wandb: the Rust half of `tools/interop.py` and
//! `tools/interop_metrics.py`.
//!
//! ```text
//! interop train BASE ADAPTER LOGITS    trains an adapter and writes the logits that it gives
//! interop check BASE ADAPTER LOGITS    loads an adapter and compares its logits with those in the file
//! interop metrics BASE OUTPUT          trains, is stopped and goes on, with every kind of metrics written
//! ```
//!
//! LOGITS is a safetensors file: `input_ids` [T], `cu_seqlens` [sequences + 1], `logits` f32 [T, vocab].

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use eyas_backend::{Backend, CpuBackend, CpuOptions, Dtype, FlatBatch, MatmulKernel};
use eyas_checkpoint::{Checkpoint, TensorDtype, TensorView, write_safetensors};
use eyas_data::Example;
use eyas_model::{
    ActiveAdapter, DeviceBatch, LoadOptions, LoraAdapter, MemoryPlan, Model, ModelSource, Workspace,
};
use eyas_train::{Event, Job, Recipe, Trainer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["train", base, adapter, logits] => {
            let (backend, model) = load(base)?;
            train(&backend, &model, base, Path::new(adapter), Path::new(logits))
        }
        ["check", base, adapter, logits] => {
            let (backend, model) = load(base)?;
            check(&backend, &model, Path::new(adapter), Path::new(logits))
        }
        ["metrics", base, output] => {
            let (backend, model) = load(base)?;
            metrics(&backend, &model, base, Path::new(output))
        }
        _ => Err("usage: interop train|check BASE ADAPTER LOGITS, or interop metrics BASE OUTPUT".into()),
    }
}

fn load(base: &str) -> Result<(CpuBackend, Model<CpuBackend>)> {
    let backend = CpuBackend::new(CpuOptions { matmul: Some(MatmulKernel::F32) })?;
    let source = ModelSource::open(Path::new(base))?;
    let options = LoadOptions { quantize: None, positions: 64, embedding_on_host: false };
    let model = source.load(&backend, options, &mut |_, _| {})?;
    Ok((backend, model))
}

/// Random rows of 5 tokens and more.
fn rows(count: usize, vocab: u32) -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    (0..count)
        .map(|row| {
            let input_ids: Vec<u32> = (0..5 + row).map(|_| rng.random_range(1..vocab)).collect();
            Example { target_mask: vec![true; input_ids.len()], input_ids }
        })
        .collect()
}

/// Eight steps; the run ends after the fifth, one logged step after its last checkpoint, as if it had been killed.
fn metrics(backend: &CpuBackend, model: &Model<CpuBackend>, base: &str, output: &Path) -> Result<()> {
    let rows = rows(12, model.decoder().vocab_size as u32);
    let text = format!(
        "model_name_or_path = {base:?}\noutput_dir = {output:?}\nload_in_4bit = false\nr = 4\nlora_alpha = 8\n\
         max_steps = 8\nper_device_train_batch_size = 4\nsave_steps = 4\nlogging_steps = 1\neval_steps = 2\n\
         report_to = \"all\"\nrun_name = \"interop\"\n"
    );
    let mut recipe = Recipe::parse("interop", &text)?;
    let stop = AtomicBool::new(false);
    let (eval, train) = rows.split_at(2);
    let mut stop_after_five = |event: &Event<'_>| {
        if matches!(event, Event::Step(report) if report.global_step == 5) {
            stop.store(true, Ordering::Relaxed);
        }
    };
    Trainer::new(Job::alone(backend, model, &recipe, train, eval))?.run(&mut stop_after_five, &stop)?;
    std::fs::remove_dir_all(output.join("checkpoint-5"))?;
    recipe.set("resume_from_checkpoint=true")?;
    // The second time there is nothing left to do but to end once more.
    for _ in 0..2 {
        let job = Job::alone(backend, model, &recipe, train, eval);
        Trainer::new(job)?.run(&mut |_: &Event<'_>| {}, &AtomicBool::new(false))?;
    }
    Ok(())
}

/// A few real steps on random rows, so that both matrices of every update have moved.
fn train(
    backend: &CpuBackend,
    model: &Model<CpuBackend>,
    base: &str,
    out: &Path,
    logits: &Path,
) -> Result<()> {
    let vocab = model.decoder().vocab_size as u32;
    let rows = rows(8, vocab);
    let text = format!(
        "model_name_or_path = {base:?}\noutput_dir = {out:?}\noverwrite_output_dir = true\n\
         load_in_4bit = false\nr = 4\nlora_alpha = 8\nlora_dropout = 0.1\nlearning_rate = 1e-2\n\
         max_steps = 6\nper_device_train_batch_size = 4\nsave_steps = 0\n"
    );
    let recipe = Recipe::parse("interop", &text)?;
    let job = Job::alone(backend, model, &recipe, &rows, &[]);
    Trainer::new(job)?.run(&mut |_: &Event<'_>| {}, &AtomicBool::new(false))?;

    let mut batch = FlatBatch::new();
    for row in &rows[..3] {
        batch.push(&row.input_ids, &vec![0; row.input_ids.len()])?;
    }
    let values = run(backend, model, &LoraAdapter::load(out, model.decoder())?, &batch)?;
    let as_i32 = |values: &[u32]| values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect::<Vec<u8>>();
    let (ids, bounds) = (as_i32(batch.input_ids()), as_i32(batch.cu_seqlens()));
    let floats: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let tensors = [
        TensorView { name: "input_ids", shape: &[batch.tokens()], dtype: TensorDtype::I32, data: &ids },
        TensorView {
            name: "cu_seqlens",
            shape: &[batch.sequences() + 1],
            dtype: TensorDtype::I32,
            data: &bounds,
        },
        TensorView {
            name: "logits",
            shape: &[batch.tokens(), vocab as usize],
            dtype: TensorDtype::F32,
            data: &floats,
        },
    ];
    write_safetensors(logits, &tensors, &BTreeMap::new())?;
    Ok(())
}

fn check(backend: &CpuBackend, model: &Model<CpuBackend>, adapter: &Path, logits: &Path) -> Result<()> {
    let file = Checkpoint::open(logits)?;
    let integers = |name: &str| -> Result<Vec<u32>> {
        let size = file.info(name)?.dtype.block_bytes();
        let bytes = file.read_bytes(name)?;
        Ok(bytes.chunks_exact(size).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    let (ids, bounds) = (integers("input_ids")?, integers("cu_seqlens")?);
    let mut expected = Vec::new();
    file.read_f32("logits", &mut expected)?;
    let mut batch = FlatBatch::new();
    for window in bounds.windows(2) {
        let ids = &ids[window[0] as usize..window[1] as usize];
        batch.push(ids, &vec![0; ids.len()])?;
    }
    let actual = run(backend, model, &LoraAdapter::load(adapter, model.decoder())?, &batch)?;
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut actual.iter().zip(&expected).map(|(a, e)| f64::from(*a) - f64::from(*e)));
    let error = difference / norm(&mut expected.iter().map(|e| f64::from(*e)));
    println!("relative difference of the logits: {error:.1e}");
    // Not a number must fail too.
    if error <= 1e-5 { Ok(()) } else { Err("the logits differ by more than 1e-5".into()) }
}

/// Logits of every token.
fn run(
    backend: &CpuBackend,
    model: &Model<CpuBackend>,
    adapter: &LoraAdapter,
    batch: &FlatBatch,
) -> Result<Vec<f32>> {
    let mut device = DeviceBatch::new(backend, batch.tokens(), batch.sequences())?;
    device.load(backend, batch)?;
    let plan = MemoryPlan::forward_only(batch.tokens(), batch.sequences(), batch.tokens());
    let mut workspace = Workspace::new(backend, model.decoder(), Some(&adapter.layout), plan)?;
    let mut params = backend.zeros(Dtype::F32, 1, adapter.params.len())?;
    backend.upload(&adapter.params, &mut params)?;
    let active = ActiveAdapter { layout: &adapter.layout, params: &params, dropout: None };
    model.forward(backend, &device, Some(active), &mut workspace)?;
    let mut all = Vec::new();
    model.target_logits(backend, &device, &mut workspace, |_, rows| all.extend_from_slice(rows))?;
    Ok(all)
}
