//! `eyas compare`: base and tuned model side by side.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use eyas_backend::Backend;
use eyas_generate::{AdapterId, Comparison, Generator, HeldOut, SamplingParams, Side, compare};
use eyas_train::Rows;
use serde_json::json;

use crate::cli::CompareArgs;
use crate::device::{Choice, Work};
use crate::progress::count_bar;
use crate::session::{self, Files, Settings};

pub fn run(device: Choice, args: CompareArgs) -> Result<ExitCode> {
    let mut settings = Settings::new(&args.model)?;
    let folder = settings.adapter.clone().context(
        "there is no adapter to compare with; give --adapter FOLDER, or run `eyas demo` first, which leaves one in \
         runs/demo",
    )?;
    let files = Files::open(&settings.model)?;
    let format = settings.format(&files)?;
    let rows = match args.dataset {
        Some(dataset) => {
            settings.recipe.data.dataset = Some(dataset);
            // Every row is compared on.
            settings.recipe.data.eval_share = 0.0;
            settings.recipe.data.eval_dataset = None;
            Some(crate::rows::load(&settings.recipe, &files)?)
        }
        None => None,
    };
    let questions = if args.questions.is_empty() {
        eyas_data::builtin::QUESTIONS.map(str::to_owned).to_vec()
    } else {
        args.questions
    };
    let recipe = settings.recipe.clone();
    device.run(
        &recipe,
        Compare { settings, files, format, folder, rows, questions, json: args.json, raw: args.raw },
    )
}

struct Compare {
    settings: Settings,
    files: Files,
    format: eyas_data::PromptFormat,
    folder: PathBuf,
    rows: Option<Rows>,
    questions: Vec<String>,
    json: bool,
    raw: bool,
}

impl Work for Compare {
    type Output = ExitCode;

    fn run<B: Backend>(self, backend: &B) -> Result<ExitCode> {
        let Self { settings, files, format, folder, rows, questions, json, raw } = self;
        let model = files.load(backend, &settings.recipe, session::positions(&files))?;
        let (mut generator, adapter) =
            session::generator(backend, &model, &files.tokenizer, Some(&folder), questions.len().min(8))?;
        let adapter = adapter.context("the adapter was not loaded")?;
        if let Some(rows) = rows {
            print!("{}", held_out(&generator, adapter, &rows.train)?.table());
        }
        let comparisons = answers(&mut generator, &format, &questions, &settings.sampling(), adapter)?;
        for comparison in &comparisons {
            if json {
                println!("{}", as_json(comparison));
            } else if raw {
                println!("{}", comparison.recipe_text());
            } else {
                println!("{}", comparison.columns(terminal_width()));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The loss of both models on rows, with a bar.
pub fn held_out<B: Backend>(
    generator: &Generator<'_, B>,
    adapter: AdapterId,
    rows: &[eyas_data::Example],
) -> Result<HeldOut> {
    let bar = count_bar("evaluating", 0);
    let found = HeldOut::measure(generator, adapter, rows, &mut |side, progress| {
        bar.set_length(2 * progress.total as u64);
        let before = if side == Side::Tuned { progress.total } else { 0 };
        bar.set_position((before + progress.done) as u64);
    })?;
    bar.finish_and_clear();
    Ok(found)
}

/// Both models' answers, with a bar.
pub fn answers<B: Backend>(
    generator: &mut Generator<'_, B>,
    format: &eyas_data::PromptFormat,
    questions: &[String],
    params: &SamplingParams,
    adapter: AdapterId,
) -> Result<Vec<Comparison>> {
    let bar = count_bar("answering", 2 * questions.len() as u64);
    let comparisons = compare(generator, format, questions, params, adapter, &mut |_, _, _| bar.inc(1))?;
    bar.finish_and_clear();
    Ok(comparisons)
}

fn as_json(comparison: &Comparison) -> serde_json::Value {
    json!({
        "question": comparison.question,
        "prompt": comparison.prompt,
        "base": Comparison::tidied(&comparison.base),
        "tuned": Comparison::tidied(&comparison.tuned),
        "base_raw": comparison.base.text,
        "tuned_raw": comparison.tuned.text,
    })
}

/// Columns of the terminal, within what can be read.
pub fn terminal_width() -> usize {
    usize::from(console::Term::stdout().size().1).clamp(60, 140)
}
