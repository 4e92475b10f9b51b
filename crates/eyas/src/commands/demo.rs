//! `eyas demo`: the whole way in minutes.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use eyas_backend::Backend;
use eyas_train::{Ending, Recipe, Replica};

use crate::cli::DemoArgs;
use crate::commands::compare::{answers, held_out, terminal_width};
use crate::commands::train;
use crate::device::{Choice, Work};
use crate::rows;
use crate::session::{self, Files};

pub fn run(device: Choice, args: DemoArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let mut recipe = session::builtin("demo")?;
    if let Some(model) = args.model {
        recipe.model.model_name_or_path = Some(model);
    }
    recipe.training.output_dir = args.output.display().to_string();
    session::change(&mut recipe, &args.set)?;
    recipe.validate()?;
    let name = recipe.model.model_name_or_path.clone().context("the recipe names no model")?;

    heading(1, "the base model, in 4 bits");
    let files = Files::open(&name)?;
    device.run(&recipe, Demo { recipe: &recipe, files: &files, output: &args.output, start })
}

struct Demo<'a> {
    recipe: &'a Recipe,
    files: &'a Files,
    output: &'a Path,
    start: Instant,
}

impl Work for Demo<'_> {
    type Output = ExitCode;

    fn run<B: Backend>(self, backend: &B) -> Result<ExitCode> {
        let Self { recipe, files, output, start } = self;
        let model = files.load(backend, recipe, session::positions(files))?;

        heading(2, "learning from the built-in conversations");
        let rows = rows::load(recipe, files)?;
        eprintln!("{rows}");
        let outcome = train::train(vec![Replica::alone(backend, &model)], recipe, files, &rows)?;
        if outcome.ending == Ending::Interrupted {
            println!("stopped after step {}; start the demo again to begin anew", outcome.global_step);
            return Ok(ExitCode::from(130));
        }

        heading(3, "before and after");
        let (mut generator, adapter) = session::generator(
            backend,
            &model,
            &files.tokenizer,
            Some(output),
            eyas_data::builtin::QUESTIONS.len(),
        )?;
        let adapter = adapter.context("the adapter was not loaded")?;
        if !rows.eval.is_empty() {
            println!("{}", held_out(&generator, adapter, &rows.eval)?.table());
        }
        let questions = eyas_data::builtin::QUESTIONS.map(str::to_owned);
        let format = eyas_data::PromptFormat::recipe();
        let params = session::sampling(recipe, recipe.training.seed);
        for comparison in answers(&mut generator, &format, &questions, &params, adapter)? {
            println!("{}", comparison.columns(terminal_width()));
        }
        let minutes = start.elapsed().as_secs_f64() / 60.0;
        println!("done in {minutes:.1} minutes. The adapter is in {}.", output.display());
        println!("Talk to it:  eyas chat --adapter {}", output.display());
        Ok(ExitCode::SUCCESS)
    }
}

fn heading(number: usize, text: &str) {
    eprintln!("\n{number}. {text}");
}
