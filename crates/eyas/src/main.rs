//! Fine-tune, compare and chat with large language models: the command line. It parses, calls and prints; what it
//! calls is in the libraries.

mod card;
mod cli;
mod commands;
mod device;
mod interrupt;
mod progress;
mod rows;
mod session;
mod transfer;

use std::num::NonZero;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use cli::{BenchCommand, Cli, Command};
use device::Choice;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let device = Choice { device: cli.device, memory: cli.gpu_memory };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("EYAS_LOG").unwrap_or_else(|_| EnvFilter::new("warn")))
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .init();
    match threads(cli.threads).and_then(|()| rayon::scope(|_| run(device, cli.command))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command. It is called on a thread of the pool: otherwise each of the hundreds of operations of a step would
/// be handed over to one and waited for.
fn run(device: Choice, command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(args) => commands::demo::run(device, args),
        Command::Train(args) => commands::train::run(device, args),
        Command::Compare(args) => commands::compare::run(device, args),
        Command::Generate(args) => commands::generate::run(device, args),
        Command::Chat(args) => commands::chat::run(device, args),
        Command::Merge(args) => commands::merge::run(args),
        Command::Serve(args) => commands::serve::run(device, args),
        Command::Push(args) => commands::push::run(args),
        Command::Recipe => commands::recipe::run(),
        Command::Estimate(args) => commands::estimate::run(device, args),
        Command::Doctor(args) => commands::doctor::run(device, args),
        Command::Bench(BenchCommand::Train(args)) => commands::bench_train::run(device, args),
        Command::Bench(BenchCommand::Generate(args)) => commands::bench_generate::run(device, args),
    }
}

fn threads(threads: Option<NonZero<usize>>) -> Result<()> {
    let count = threads.map_or(0, NonZero::get);
    rayon::ThreadPoolBuilder::new().num_threads(count).build_global().context("the threads cannot be started")
}
