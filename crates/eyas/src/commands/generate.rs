//! `eyas generate`: one answer.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use eyas_generate::{ChatSession, FinishReason, Request, Tidy};

use crate::cli::GenerateArgs;
use crate::session::{self, Files, Settings};

pub fn run(args: GenerateArgs) -> Result<ExitCode> {
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
    let backend = session::cpu(&settings.recipe)?;
    let model = files.load(&backend, &settings.recipe, session::positions(&files))?;
    let folder = settings.adapter.as_deref().filter(|_| !args.base);
    let (mut generator, adapter) = session::generator(&backend, &model, &files.tokenizer, folder, 1)?;
    let prompt = if args.raw {
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
    let answer = generator.generate(Request::new(prompt, settings.sampling(), adapter), &mut |piece| {
        if args.raw { show(piece) } else { show(&tidy.push(piece)) }
    })?;
    if !args.raw {
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
