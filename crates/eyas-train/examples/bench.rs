//! Measures training on the CPU: `bench MODEL [--batch 4] [--length 256] [--steps 5] [--f32]`.
//!
//! MODEL is a Hugging Face folder or a GGUF file. LoRA of rank 32 on every linear layer, dropout 0.05, the base in NF4
//! with double quantisation, random tokens, every token a target: what `tools/bench_cpu.py` asks of its peer too.
//! Prints one JSON object; the first step warms up and is not counted.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use eyas_backend::{Backend, CpuBackend, CpuOptions, MatmulKernel};
use eyas_data::Example;
use eyas_model::{LoadOptions, ModelSource};
use eyas_train::{Event, Job, Recipe, Trainer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    // Inside the pool, as the program itself runs.
    rayon::scope(|_| run())
}

fn run() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let model_path = words.next().ok_or("which model? Give a folder or a GGUF file")?;
    let (mut batch, mut length, mut steps, mut matmul) = (4, 256, 5, None);
    while let Some(word) = words.next() {
        let mut number = || -> Result<usize> { Ok(words.next().ok_or("a number is missing")?.parse()?) };
        match word.as_str() {
            "--batch" => batch = number()?,
            "--length" => length = number()?,
            "--steps" => steps = number()?,
            "--f32" => matmul = Some(MatmulKernel::F32),
            other => return Err(format!("`{other}` is not understood").into()),
        }
    }
    let backend = CpuBackend::new(CpuOptions { matmul })?;
    let source = ModelSource::open(Path::new(&model_path))?;
    let output = tempfile::tempdir()?;
    let recipe = Recipe::parse(
        "bench",
        &format!(
            "output_dir = {:?}\nr = 32\nlora_alpha = 32\nlora_dropout = 0.05\nlearning_rate = 2e-4\n\
             max_grad_norm = 0.3\nmax_steps = {}\nper_device_train_batch_size = {batch}\nmax_length = {length}\n\
             save_steps = 0\nlr_scheduler_type = \"constant\"\n",
            output.path(),
            steps + 1
        ),
    )?;
    let options =
        LoadOptions { quantize: recipe.quantization.config(), positions: length, embedding_on_host: false };
    let model = source.load(&backend, options, &mut |_, _| {})?;
    let vocab = model.decoder().vocab_size as u32;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let rows: Vec<Example> = (0..batch)
        .map(|_| {
            let input_ids = (0..length).map(|_| rng.random_range(0..vocab)).collect();
            Example { input_ids, target_mask: vec![true; length] }
        })
        .collect();
    let job = Job {
        backend: &backend,
        model: &model,
        recipe: &recipe,
        train: &rows,
        eval: &[],
        extra_files: Vec::new(),
    };
    let mut seconds = Vec::new();
    let mut observer = |event: &Event<'_>| {
        if let Event::Step(step) = event {
            seconds.push(step.seconds);
        }
    };
    Trainer::new(job)?.run(&mut observer, &AtomicBool::new(false))?;
    let mut counted = seconds.split_off(1);
    counted.sort_by(f64::total_cmp);
    let median = counted[counted.len() / 2];
    let peak = backend.used_memory().map_or(0, |(_, peak)| peak) as f64 / 1e9;
    println!(
        "{}",
        json!({
            "device": backend.name(),
            "s_step": median,
            "train_tok_s": (batch * length) as f64 / median,
            "peak_rss_GB": peak,
        })
    );
    Ok(())
}
