//! `eyas bench train`: speed and memory of training.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use eyas_backend::Backend;
use eyas_train::TrainingPlan;
use eyas_train::bench::{self, Ceilings, Lengths, Measured, Options};
use eyas_train::plan::display_bytes;
use serde_json::json;

use crate::cli::BenchTrainArgs;
use crate::commands::bench::{Subject, ceiling, operations_as_json, print_operations};
use crate::device::{self, Choice, Opened, SharedWork};
use crate::progress::count_bar;

pub fn run(device: Choice, args: BenchTrainArgs) -> Result<ExitCode> {
    let keys = [
        format!("r={}", args.rank),
        format!("per_device_train_batch_size={}", args.batch),
        format!("gradient_accumulation_steps={}", args.accumulation),
        format!("max_length={}", 4 * args.length),
        "learning_rate=2e-4".into(),
    ];
    let subject = Subject::new(&args.shape, &keys, &args.set, &device)?;
    device.run_on_all(&subject.recipe, Train { args: &args, subject: &subject })
}

struct Train<'a> {
    args: &'a BenchTrainArgs,
    subject: &'a Subject,
}

impl SharedWork for Train<'_> {
    type Output = ExitCode;

    fn run<B: Backend>(self, devices: &[Opened<B>]) -> Result<ExitCode> {
        let Self { args, subject } = self;
        let lengths =
            if args.lognormal { Lengths::LogNormal(args.length) } else { Lengths::Fixed(args.length) };
        let first = &devices[0].backend;
        let ceilings = bench::ceilings(first, ceiling::<B>())?;
        let begun = Instant::now();
        let positions = if args.lognormal { 4 * args.length } else { args.length };
        let models = devices
            .iter()
            .map(|device| subject.model(&device.backend, positions))
            .collect::<Result<Vec<_>>>()?;
        let loading = begun.elapsed().as_secs_f64();
        let replicas = device::replicas(devices, &models);
        let bar = count_bar("steps", args.steps as u64 + 2);
        let stop = crate::interrupt::stop_flag()?;
        let options = Options { lengths, steps: args.steps, seed: 1 };
        let measured = bench::train(&replicas, &subject.recipe, options, &stop, |done| {
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        if measured.seconds.is_empty() {
            return Ok(ExitCode::from(130));
        }
        let name = match devices.len() {
            1 => first.name(),
            count => format!("{count} x {}", first.name()),
        };
        if args.json {
            println!("{}", as_json(args, &name, &measured, &ceilings));
        } else {
            print(args, &name, &measured, &ceilings, loading);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Of the limit that the first device's ceiling sets for all devices.
fn share(measured: &Measured, ceilings: &Ceilings) -> f64 {
    measured.tokens_per_second() * measured.flops_per_token / (ceilings.product * measured.plans.len() as f64)
}

fn as_json(
    args: &BenchTrainArgs,
    device: &str,
    measured: &Measured,
    ceilings: &Ceilings,
) -> serde_json::Value {
    json!({
        "device": device,
        "devices": measured.plans.len(),
        "shape": args.shape,
        "batch": args.batch,
        "accumulation": args.accumulation,
        "length": args.length,
        "lognormal": args.lognormal,
        "tokens_per_second": measured.tokens_per_second(),
        "seconds_per_step": measured.median(),
        "seconds_in_all": measured.seconds.iter().sum::<f64>(),
        "steps": measured.seconds.len(),
        "first_step_seconds": measured.first_step,
        "share_of_limit": share(measured, ceilings),
        "product_flops": ceilings.product,
        "predicted_bytes": measured.plans.first().map(TrainingPlan::total),
        "peak_bytes": measured.peaks.first(),
        "kept_blocks": measured.plans.first().map(TrainingPlan::kept_blocks),
        "losses": measured.losses,
        "operations": operations_as_json(&measured.operations),
    })
}

fn print(args: &BenchTrainArgs, device: &str, measured: &Measured, ceilings: &Ceilings, loading: f64) {
    let of = if args.lognormal { "about " } else { "" };
    let each = if measured.plans.len() > 1 { " on each" } else { "" };
    println!(
        "{} on {device}: {} x {} rows of {of}{} tokens{each}",
        args.shape, args.accumulation, args.batch, args.length
    );
    for plan in &measured.plans {
        println!("{plan}");
    }
    let tokens = measured.tokens.iter().sum::<usize>() / measured.tokens.len();
    println!(
        "\n{:.0} tokens/s: {:.1} ms a step of {tokens} tokens (median of {})",
        measured.tokens_per_second(),
        1e3 * measured.median(),
        measured.seconds.len()
    );
    println!(
        "{:.0} % of the limit: the frozen products alone at {:.1} TFLOP/s, as measured here",
        100.0 * share(measured, ceilings),
        ceilings.product / 1e12
    );
    for (&peak, plan) in measured.peaks.iter().zip(&measured.plans) {
        let predicted = plan.total();
        println!(
            "memory: {} at the peak, {} predicted ({:+.1} %)",
            display_bytes(peak),
            display_bytes(predicted),
            100.0 * (predicted as f64 / peak as f64 - 1.0)
        );
    }
    println!(
        "weights made in {loading:.1} s; first step {:.1} s, allocation and tuning included",
        measured.first_step
    );
    print_operations(&measured.operations);
}
