//! `eyas generate`: one answer.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use eyas_backend::Backend;
use eyas_generate::{ChatSession, FinishReason, Request, Tidy};

use crate::cli::GenerateArgs;
use crate::device::{Choice, Work};
use crate::session::{self, Files, Settings};

pub fn run(device: Choice, args: GenerateArgs) -> Result<ExitCode> {
    let settings = Settings::new(&args.model)?;
    let question = match args.question.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input")?;
            text
        }
        text => text.to_owned(),
    };
    let files = Files::open(&settings.model)?;
    let format = settings.format(&files)?;
    let recipe = settings.recipe.clone();
    device.run(&recipe, Answer { settings, files, format, question, raw: args.raw, base: args.base })
}

struct Answer {
    settings: Settings,
    files: Files,
    format: eyas_data::PromptFormat,
    question: String,
    raw: bool,
    base: bool,
}

impl Work for Answer {
    type Output = ExitCode;

    fn run<B: Backend>(self, backend: &B) -> Result<ExitCode> {
        let Self { settings, files, format, question, raw, base } = self;
        let model = files.load(backend, &settings.recipe, session::positions(&files))?;
        let folder = settings.adapter.as_deref().filter(|_| !base);
        let (mut generator, adapter) = session::generator(backend, &model, &files.tokenizer, folder, 1)?;
        let prompt = if raw {
            files.tokenizer.encode(&question, true)?
        } else {
            ChatSession::new(format).prompt(&question, &files.tokenizer, model.positions())?.ids
        };

        let mut out = std::io::stdout().lock();
        let mut tidy = Tidy::recipe().stream();
        let mut failed = None;
        let mut show = |text: &str| {
            if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                failed.get_or_insert(error);
            }
        };
        let answer =
            generator.generate(Request::new(prompt, settings.sampling(), adapter), &mut |piece| {
                if raw { show(piece) } else { show(&tidy.push(piece)) }
            })?;
        if !raw {
            show(&tidy.finish(answer.finish == FinishReason::Eos));
        }
        show("\n");
        if let Some(error) = failed {
            return Err(error).context("standard output");
        }
        eprintln!(
            "{} prompt tokens, {} new ones, {:.1} tokens/s",
            answer.prompt_tokens,
            answer.tokens.len(),
            answer.tokens_per_second()
        );
        Ok(ExitCode::SUCCESS)
    }
}
