//! `eyas estimate`: the memory plan of a run, without a card or weights.

use std::process::ExitCode;

use anyhow::Result;
use eyas_backend::{Backend, CpuBackend, Dtype, Storage};
use eyas_cuda::CudaBackend;
use eyas_model::config::Config;
use eyas_model::{Decoder, Footprint, LoadOptions, LoraLayout, ModelSource, family, shapes};
use eyas_train::plan::{Role, Shape};
use eyas_train::recipe::MemoryBudget;
use eyas_train::{Recipe, TrainingPlan};

use crate::cli::EstimateArgs;
use crate::device::{Choice, DeviceArg};
use crate::session;
use crate::transfer::TransferBar;

pub fn run(device: Choice, args: EstimateArgs) -> Result<ExitCode> {
    let mut recipe = match &args.recipe {
        Some(name) => session::recipe(name)?,
        None => {
            // Its modules have Falcon's names, and all of them are linear layers.
            let mut recipe = session::builtin("mental-health")?;
            recipe.set("target_modules=all-linear")?;
            recipe
        }
    };
    session::change(&mut recipe, &args.set)?;
    device.limit(&mut recipe);
    recipe.validate()?;
    let length = args.length.unwrap_or(recipe.data.max_length);
    let options = LoadOptions {
        quantize: recipe.quantization.config(),
        positions: length,
        embedding_on_host: recipe.is_tight(),
    };
    let bar = TransferBar::fetching();
    // A model on the hub is planned from its description: nobody wants its weights for an estimate.
    let config = match &args.model {
        Some(name) => eyas_hub::locate_config(name, &bar)?,
        None => None,
    };
    let source = match (&args.model, &config) {
        (Some(name), None) => Some(ModelSource::open(&eyas_hub::locate_model(name, &bar)?)?),
        _ => None,
    };
    let decoder = match (&source, &config) {
        (Some(source), _) => source.decoder().clone(),
        (None, Some(config)) => family::from_config(&Config::read(config)?)?,
        (None, None) => shapes::published(args.shape.as_deref().unwrap_or("falcon-7b"))?,
    };
    let budget = match recipe.training.memory_budget {
        MemoryBudget::Bytes(bytes) => Some(bytes),
        MemoryBudget::Auto => None,
    };
    let job = Estimate { recipe: &recipe, decoder: &decoder, source: source.as_ref(), options, budget };
    let devices = device.count()?;
    let (plans, place) = if device.device == DeviceArg::Cpu {
        (job.plans::<CpuBackend>(Dtype::F32, devices)?, "the processor".to_owned())
    } else {
        let place = if devices == 1 { "an NVIDIA card".into() } else { format!("{devices} NVIDIA cards") };
        (job.plans::<CudaBackend>(recipe.compute_dtype().unwrap_or(Dtype::Bf16), devices)?, place)
    };
    let training = &recipe.training;
    println!(
        "{} of {:.2} G parameters on {place}, {} rows of {length} tokens a micro-batch",
        decoder.family,
        decoder.parameters() as f64 / 1e9,
        training.per_device_train_batch_size
    );
    match &plans[..] {
        [plan] => println!("{plan}"),
        [first, others, ..] => {
            let (batch, accumulation) =
                (training.per_device_train_batch_size, training.gradient_accumulation_steps);
            let rows = batch.saturating_mul(accumulation).saturating_mul(devices);
            println!("{rows} rows a step: {devices} cards x {accumulation} micro-batches x {batch} rows");
            println!("the first card, which has the optimiser:\n{first}");
            println!("each of the others:\n{others}");
        }
        [] => {}
    }
    if budget.is_none() {
        println!("with all the memory it likes; --gpu-memory 24GB plans for less");
    }
    Ok(ExitCode::SUCCESS)
}

struct Estimate<'a> {
    recipe: &'a Recipe,
    decoder: &'a Decoder,
    source: Option<&'a ModelSource>,
    options: LoadOptions,
    budget: Option<u64>,
}

impl Estimate<'_> {
    /// The plans of so many devices of a kind. As in a run, all have the rows of logits of the one that is shortest of memory:
    /// the first, which has the optimiser.
    fn plans<B: Backend>(&self, dtype: Dtype, devices: usize) -> Result<Vec<TrainingPlan>> {
        let first = self.plan::<B>(dtype, Role::of(0, devices), None)?;
        let rows = Some(first.memory.logit_rows);
        let others = (1..devices).map(|number| self.plan::<B>(dtype, Role::of(number, devices), rows));
        std::iter::once(Ok(first)).chain(others).collect()
    }

    fn plan<B: Backend>(&self, dtype: Dtype, role: Role, logit_rows: Option<usize>) -> Result<TrainingPlan> {
        let Self { recipe, decoder, source, options, budget } = *self;
        let weights = match source {
            Some(source) => source.footprint::<B>(dtype, options),
            None => {
                let tables = Storage::Dense(Dtype::Bf16);
                let linears = options.quantize.map_or(tables, Storage::Quantised);
                Footprint::predict::<B>(decoder, dtype, linears, tables, options)
            }
        };
        let layout = LoraLayout::new(decoder, recipe.lora.config())?;
        let batch = recipe.training.per_device_train_batch_size;
        let tokens = batch.saturating_mul(options.positions);
        let shape = Shape {
            role,
            decoder,
            layout: &layout,
            weights: &weights,
            dtype,
            batch,
            max_tokens: tokens,
            max_sequences: batch,
            max_targets: tokens,
            moments: recipe.training.optim.moments(),
            // That of the machine which the card is in; this one may be another.
            host_memory: None,
        };
        Ok(TrainingPlan::new::<B>(&shape, recipe.training.gradient_checkpointing, budget, logit_rows)?)
    }
}
