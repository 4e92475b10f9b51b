//! `eyas bench generate`: how fast prompts are read and answered.

use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use eyas_backend::Backend;
use eyas_generate::SamplingParams;
use eyas_generate::bench::{self, Measured, Options};
use eyas_model::LoraLayout;
use eyas_train::bench::{Ceilings, ceilings};
use eyas_train::plan::display_bytes;
use serde_json::json;

use crate::cli::BenchGenerateArgs;
use crate::commands::bench::{Subject, ceiling, operations_as_json, print_operations};
use crate::device::{Choice, Work};
use crate::progress::count_bar;
use crate::session;

pub fn run(device: Choice, args: BenchGenerateArgs) -> Result<ExitCode> {
    for (name, value) in [("--prompt", args.prompt), ("--tokens", args.tokens)] {
        ensure!(value > 0, "{name} is 0; at least one token is measured");
    }
    for &sequences in &args.sequences {
        ensure!((1..1 << 16).contains(&sequences), "--sequences {sequences}: 1 to 65535 can run at once");
    }
    let subject = Subject::new(&args.shape, &[format!("r={}", args.rank)], &args.set, &device)?;
    device.run(&subject.recipe, Generate { args: &args, subject: &subject })
}

struct Generate<'a> {
    args: &'a BenchGenerateArgs,
    subject: &'a Subject,
}

impl Work for Generate<'_> {
    type Output = ExitCode;

    fn run<B: Backend>(self, backend: &B) -> Result<ExitCode> {
        let Self { args, subject } = self;
        let most = args.sequences.iter().max().copied().unwrap_or(1);
        let chunk = args.prefill_chunk.unwrap_or(B::PROMPT_TOKENS);
        let ceilings = ceilings(backend, ceiling::<B>())?;
        // Those that answer while other prompts are being read need room for it.
        let positions = 2 * (args.prompt + args.tokens) + most * args.prompt / chunk.max(1) + 2 * most;
        let model = subject.model(backend, positions)?;
        let layout = LoraLayout::new(&subject.decoder, subject.recipe.lora.config())?;
        let params =
            if args.greedy { SamplingParams::greedy() } else { session::sampling(&subject.recipe, 1) };
        let stop = crate::interrupt::stop_flag()?;
        if !args.json {
            println!("{} on {}: prompts of {} tokens", args.shape, backend.name(), args.prompt);
        }
        for &sequences in &args.sequences {
            for &adapters in args.adapters.iter().filter(|&&adapters| adapters <= sequences) {
                let options = Options {
                    prompt: args.prompt,
                    tokens: args.tokens,
                    sequences,
                    adapters,
                    prefill_chunk: chunk,
                    params: params.clone(),
                    profile: args.profile,
                };
                let bar = count_bar("tokens", args.tokens as u64);
                let measured = bench::generate(backend, &model, &layout, &options, &stop, |done| {
                    bar.set_position(done as u64);
                })?;
                bar.finish_and_clear();
                if stop.load(Ordering::Relaxed) {
                    return Ok(ExitCode::from(130));
                }
                if args.json {
                    println!("{}", as_json(args, &options, &backend.name(), &measured, &ceilings));
                } else {
                    print(&options, &measured, &ceilings);
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Seconds in which the device reads the weights of a step once, at the rate of a large copy.
fn floor(measured: &Measured, ceilings: &Ceilings) -> f64 {
    measured.floor_bytes as f64 / ceilings.memory
}

fn as_json(
    args: &BenchGenerateArgs,
    options: &Options,
    device: &str,
    measured: &Measured,
    ceilings: &Ceilings,
) -> serde_json::Value {
    json!({
        "device": device,
        "shape": args.shape,
        "prompt": args.prompt,
        "sequences": options.sequences,
        "adapters": options.adapters,
        "greedy": args.greedy,
        "prefill_chunk": options.prefill_chunk,
        "prompt_tokens_per_second": measured.prompt_tokens_per_second(),
        "tokens_per_second": measured.tokens_per_second(),
        "tokens_per_second_of_each": measured.tokens_per_second() / options.sequences as f64,
        "seconds_per_step": measured.median(),
        "floor_seconds": floor(measured, ceilings),
        "share_of_floor": floor(measured, ceilings) / measured.median(),
        "memory_rate": ceilings.memory,
        "planned_bytes": measured.planned,
        "peak_bytes": measured.peak,
        "operations": operations_as_json(&measured.operations),
    })
}

fn print(options: &Options, measured: &Measured, ceilings: &Ceilings) {
    let sequences = options.sequences;
    let adapters = match options.adapters {
        0 => "the base alone".into(),
        1 => "an adapter".into(),
        several => format!("{several} adapters"),
    };
    println!("\n{sequences} at once, {adapters}");
    println!(
        "  answers: {:.1} tokens/s in all, {:.1} each; {:.2} ms a step (median of {})",
        measured.tokens_per_second(),
        measured.tokens_per_second() / sequences as f64,
        1e3 * measured.median(),
        measured.seconds.len()
    );
    println!(
        "  {:.0} % of the floor: reading {} of weights once at {:.0} GB/s, as measured here, takes {:.2} ms",
        100.0 * floor(measured, ceilings) / measured.median(),
        display_bytes(measured.floor_bytes),
        ceilings.memory / 1e9,
        1e3 * floor(measured, ceilings)
    );
    println!(
        "  prompts: {:.0} tokens/s, {:.1} ms to the first token of the last",
        measured.prompt_tokens_per_second(),
        1e3 * measured.prompt_seconds
    );
    match measured.peak {
        Some(peak) => println!(
            "  memory: {} at the peak so far, {} planned",
            display_bytes(peak),
            display_bytes(measured.planned)
        ),
        None => println!("  memory: {} planned", display_bytes(measured.planned)),
    }
    print_operations(&measured.operations);
}
