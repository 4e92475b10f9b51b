//! `eyas train`: fine-tune a model by a recipe.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use eyas_backend::Backend;
use eyas_train::recipe::ResumeFrom;
use eyas_train::{Ending, ExtraFile, Job, Outcome, Recipe, Replica, Rows, Trainer};

use crate::cli::TrainArgs;
use crate::commands::push;
use crate::device::{self, Choice, Opened, SharedWork};
use crate::progress::TrainBar;
use crate::rows;
use crate::session::{self, Files, RECIPE_FILE};

pub fn run(device: Choice, args: TrainArgs) -> Result<ExitCode> {
    let mut recipe = session::recipe(&args.recipe)?;
    if let Some(model) = args.model {
        recipe.model.model_name_or_path = Some(model);
    }
    if let Some(dataset) = args.dataset {
        recipe.data.dataset = Some(dataset);
    }
    if let Some(output) = args.output {
        recipe.training.output_dir = output.display().to_string();
    }
    if args.resume {
        recipe.training.resume_from_checkpoint = ResumeFrom::Last;
    }
    session::change(&mut recipe, &args.set)?;
    device.limit(&mut recipe);
    device.check()?;
    recipe.validate()?;
    let name = recipe
        .model
        .model_name_or_path
        .clone()
        .context("no model is named; give --model, or set model_name_or_path in the recipe")?;
    let files = Files::open(&name)?;
    let rows = rows::load(&recipe, &files)?;
    eprintln!("{rows}");
    let is_pushed = push::foretell(&recipe);
    let outcome = device.run_on_all(&recipe, Run { recipe: &recipe, files: &files, rows: &rows })?;
    let code = report(&recipe, &outcome);
    if outcome.ending != Ending::Finished || !recipe.training.push_to_hub {
        return Ok(code);
    }
    if is_pushed {
        return Ok(push::after_training(&recipe));
    }
    println!("{}", push::again(&recipe));
    Ok(code)
}

struct Run<'a> {
    recipe: &'a Recipe,
    files: &'a Files,
    rows: &'a Rows,
}

impl SharedWork for Run<'_> {
    type Output = Outcome;

    fn run<B: Backend>(self, devices: &[Opened<B>]) -> Result<Outcome> {
        let models = self.files.load_on_all(devices, self.recipe, self.recipe.data.max_length)?;
        train(device::replicas(devices, &models), self.recipe, self.files, self.rows)
    }
}

/// Runs a recipe, with a bar, until it is done or Ctrl-C stops it.
pub fn train<B: Backend>(
    replicas: Vec<Replica<'_, B>>,
    recipe: &Recipe,
    files: &Files,
    rows: &Rows,
) -> Result<Outcome> {
    let stop = crate::interrupt::stop_flag()?;
    let extra_files = extra_files(recipe, files, rows, replicas.len())?;
    let trainer = Trainer::new(Job { replicas, recipe, train: &rows.train, eval: &rows.eval, extra_files })?;
    let mut bar = TrainBar::new();
    Ok(trainer.run(&mut bar, &stop)?)
}

/// What lies beside an adapter, so that others know how it came about and how its tokens are made.
fn extra_files(recipe: &Recipe, files: &Files, rows: &Rows, devices: usize) -> Result<Vec<ExtraFile>> {
    let mut extra = vec![
        ExtraFile { name: RECIPE_FILE.into(), contents: recipe.to_toml().into_bytes() },
        rows::summary(recipe, rows, devices),
    ];
    extra.extend(files.tokenizer_files()?);
    Ok(extra)
}

/// What a run came to, and the way on.
pub fn report(recipe: &Recipe, outcome: &Outcome) -> ExitCode {
    let folder = Path::new(&recipe.training.output_dir).display();
    match outcome.ending {
        Ending::Finished => {
            let rate = outcome.num_tokens as f64 / outcome.train_seconds.max(f64::EPSILON);
            println!(
                "trained for {:.0} s on {} tokens ({rate:.0} tokens/s); the adapter is in {folder}",
                outcome.train_seconds, outcome.num_tokens
            );
            if let (Some(first), Some(last)) = (outcome.first_evaluation, outcome.last_evaluation) {
                println!(
                    "held-out loss {first:.3} -> {last:.3}, perplexity {:.2} -> {:.2}",
                    first.exp(),
                    last.exp()
                );
            }
            println!("next: eyas compare --adapter {folder}");
            ExitCode::SUCCESS
        }
        Ending::Interrupted => {
            match &outcome.checkpoint {
                Some(checkpoint) => println!(
                    "stopped after step {}; {} is saved. To go on, run the same command with --resume",
                    outcome.global_step,
                    checkpoint.display()
                ),
                None => println!("stopped before the first step; nothing was saved"),
            }
            ExitCode::from(130)
        }
    }
}
