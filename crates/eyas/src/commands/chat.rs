//! `eyas chat`: a conversation in the terminal.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use eyas_backend::Backend;
use eyas_generate::{AdapterId, ChatSession, Error, Generator, SamplingParams};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::cli::ChatArgs;
use crate::device::{Choice, Work};
use crate::session::{self, Files, Settings};

const HELP: &str = "\
/clear  forget the conversation
/base   let the base model answer
/tuned  let the tuned model answer
/retry  answer the last question again
/help   show this
/quit   end (or Ctrl-D); Ctrl-C stops an answer";

/// What this is, before the first message.
const NOTICE: &str = "\
You are talking to a program. It can be wrong, it is not a therapist, and it does not replace one.
If you or someone else is in danger, call your local emergency number or a crisis line now.";

pub fn run(device: Choice, args: ChatArgs) -> Result<ExitCode> {
    let settings = Settings::new(&args.model)?;
    let files = Files::open(&settings.model)?;
    let mut session = ChatSession::new(settings.format(&files)?).with_memory(args.memory);
    if let Some(system) = args.system {
        session = session.with_system(system);
    }
    let recipe = settings.recipe.clone();
    device.run(&recipe, Talk { settings, files, session })
}

struct Talk {
    settings: Settings,
    files: Files,
    session: ChatSession,
}

impl Work for Talk {
    type Output = ExitCode;

    fn run<B: Backend>(self, backend: &B) -> Result<ExitCode> {
        let Self { settings, files, session } = self;
        let model = files.load(backend, &settings.recipe, session::positions(&files))?;
        let (generator, adapter) =
            session::generator(backend, &model, &files.tokenizer, settings.adapter.as_deref(), 1)?;
        let stop = crate::interrupt::answer_flag()?;
        let mut chat = Chat {
            generator,
            session,
            params: settings.sampling(),
            tuned: adapter,
            active: adapter,
            answers: 0,
        };
        println!("{NOTICE}\n\n{HELP}\n");
        chat.talk(&stop)?;
        Ok(ExitCode::SUCCESS)
    }
}

struct Chat<'m, B: Backend> {
    generator: Generator<'m, B>,
    session: ChatSession,
    params: SamplingParams,
    /// The adapter, if there is one.
    tuned: Option<AdapterId>,
    /// The adapter that answers; `None` is the base.
    active: Option<AdapterId>,
    /// Answers given, so that a repeated question is not answered with the same draws.
    answers: u64,
}

impl<B: Backend> Chat<'_, B> {
    fn talk(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut editor = DefaultEditor::new().context("the terminal")?;
        let prompt = if std::io::stdin().is_terminal() { "you> " } else { "" };
        loop {
            let line = match editor.readline(prompt) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error).context("the terminal"),
            };
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            // Lines are kept for the arrow keys only, in memory.
            let _ = editor.add_history_entry(line);
            let Some(command) = line.strip_prefix('/') else {
                self.answer(line, stop)?;
                continue;
            };
            match command {
                "clear" => {
                    self.session.clear();
                    println!("the conversation is forgotten");
                }
                "base" => {
                    self.active = None;
                    println!("the base model answers");
                }
                "tuned" if self.tuned.is_some() => {
                    self.active = self.tuned;
                    println!("the tuned model answers");
                }
                "tuned" => println!("there is no adapter; start with --adapter FOLDER"),
                "retry" => match self.session.forget_last() {
                    Some(exchange) => self.answer(&exchange.question, stop)?,
                    None => println!("nothing was asked yet"),
                },
                "quit" | "exit" => return Ok(()),
                "help" => println!("{HELP}"),
                other => println!("/{other} is not known\n{HELP}"),
            }
        }
    }

    fn answer(&mut self, question: &str, stop: &AtomicBool) -> Result<()> {
        let params =
            SamplingParams { seed: self.params.seed.wrapping_add(self.answers), ..self.params.clone() };
        self.answers += 1;
        stop.store(false, Ordering::SeqCst);
        let mut failed = None;
        let asked =
            self.session.ask(&mut self.generator, question, &params, self.active, stop, &mut |text| {
                if let Err(error) = show(text) {
                    failed.get_or_insert(error);
                }
            });
        match asked {
            Ok(_) => println!("\n"),
            // What was typed cannot be answered; something else can.
            Err(error @ (Error::Prompt(_) | Error::PromptTooLong { .. })) => println!("{error}"),
            Err(error) => return Err(error.into()),
        }
        failed.map_or(Ok(()), Err)
    }
}

fn show(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}
