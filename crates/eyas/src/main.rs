//! Fine-tune, compare and chat with large language models: the command line. It parses, calls and prints; what it
//! calls is in the libraries.

mod cli;
mod commands;
mod interrupt;
mod progress;
mod session;

use std::num::NonZero;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use cli::{Cli, Command};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("EYAS_LOG").unwrap_or_else(|_| EnvFilter::new("warn")))
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .init();
    match threads(cli.threads).and_then(|()| rayon::scope(|_| run(cli.command))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command. It is called on a thread of the pool: otherwise each of the hundreds of operations of a step would
/// be handed over to one and waited for.
fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(args) => commands::demo::run(args),
        Command::Train(args) => commands::train::run(args),
        Command::Compare(args) => commands::compare::run(args),
        Command::Generate(args) => commands::generate::run(args),
        Command::Chat(args) => commands::chat::run(args),
        Command::Serve(args) => commands::serve::run(args),
        Command::Recipe => commands::recipe::run(),
    }
}

fn threads(threads: Option<NonZero<usize>>) -> Result<()> {
    let count = threads.map_or(0, NonZero::get);
    rayon::ThreadPoolBuilder::new().num_threads(count).build_global().context("the threads cannot be started")
}
