//! Base and adapter side by side: answers to the same questions, and the loss on held-out rows.

mod columns;

use std::fmt::Write;

use eyas_backend::Backend;
use eyas_data::{Example, PromptFormat};
use serde::Serialize;

use crate::conversation::ChatSession;
use crate::engine::{AdapterId, FinishReason, Request};
use crate::evaluate::{Evaluation, Evaluator, Progress};
use crate::generate::{Answer, Generator};
use crate::postprocess::Tidy;
use crate::sampling::SamplingParams;
use crate::{Error, Result};

/// A question with both models' answers: the same prompt, the same settings, the same seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The question.
    pub question: String,
    /// What both models saw.
    pub prompt: String,
    /// The base model's answer.
    pub base: Answer,
    /// The adapter's answer.
    pub tuned: Answer,
}

/// Which of the two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The base model.
    Base,
    /// The base model with its adapter.
    Tuned,
}

/// Answers every question with the base and with the adapter. `on_answer` is told the question's number and the side
/// of each answer that is finished.
///
/// # Errors
/// When a question does not fit, or the model fails.
pub fn compare<B: Backend>(
    generator: &mut Generator<'_, B>,
    format: &PromptFormat,
    questions: &[String],
    params: &SamplingParams,
    adapter: AdapterId,
    on_answer: &mut dyn FnMut(usize, Side, &Answer),
) -> Result<Vec<Comparison>> {
    let session = ChatSession::new(format.clone());
    let positions = generator.engine().options().positions;
    let prompts = questions
        .iter()
        .map(|question| session.prompt(question, generator.tokenizer(), positions))
        .collect::<Result<Vec<_>>>()?;
    let mut sides = Vec::with_capacity(2);
    for (side, adapter) in [(Side::Base, None), (Side::Tuned, Some(adapter))] {
        let requests = prompts.iter().map(|prompt| Request::new(prompt.ids.clone(), params.clone(), adapter));
        let answers = generator.generate_all(requests.collect(), &mut |_, _| {})?;
        answers.iter().enumerate().for_each(|(number, answer)| on_answer(number, side, answer));
        sides.push(answers);
    }
    let (Some(tuned), Some(base)) = (sides.pop(), sides.pop()) else {
        unreachable!("both sides were answered")
    };
    let answers = base.into_iter().zip(tuned);
    Ok(questions
        .iter()
        .zip(prompts)
        .zip(answers)
        .map(|((question, prompt), (base, tuned))| Comparison {
            question: question.clone(),
            prompt: prompt.text,
            base,
            tuned,
        })
        .collect())
}

/// Dashes of the published notebook's lines.
const DASHES: usize = 49;

impl Comparison {
    /// An answer by the recipe's post-processing; what the model ended itself keeps its last sentence.
    pub fn tidied(answer: &Answer) -> String {
        Tidy { unfinished: answer.finish == FinishReason::Length, ..Tidy::recipe() }.apply(&answer.text)
    }

    /// Both answers as the published notebook prints them: one after the other between lines of dashes, each after its
    /// prompt and without post-processing, so that what the base invents can be seen.
    pub fn recipe_text(&self) -> String {
        let line = "-".repeat(DASHES);
        let mut text = format!("{line}\n");
        for (title, answer) in [("ORIGINAL", &self.base), ("PEFT", &self.tuned)] {
            let _ =
                write!(text, "{title} MODEL RESPONSE:\n{}{}\n{line}\n", self.prompt, answer.text.trim_end());
        }
        text
    }

    /// The question and the tidied answers in two columns for a terminal of `width` columns, one below the other where
    /// it is too narrow.
    pub fn columns(&self, width: usize) -> String {
        columns::render(&self.question, ["base", "tuned"], [&self.base, &self.tuned].map(Self::tidied), width)
    }
}

/// The loss of both models on the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct HeldOut {
    /// Of the base model.
    pub base: Evaluation,
    /// Of the base model with its adapter.
    pub tuned: Evaluation,
}

impl HeldOut {
    /// Evaluates both models.
    ///
    /// # Errors
    /// When there are no rows, one does not fit, or the model fails.
    pub fn measure<B: Backend>(
        generator: &Generator<'_, B>,
        adapter: AdapterId,
        examples: &[Example],
        progress: &mut dyn FnMut(Side, Progress),
    ) -> Result<Self> {
        if examples.iter().all(|example| example.target_tokens() == 0) {
            return Err(Error::Prompt("there are no held-out rows to compare on".into()));
        }
        let engine = generator.engine();
        let mut evaluator = Evaluator::for_examples(engine.backend(), engine.model(), examples)?;
        let base = evaluator.evaluate(examples, None, &mut |p| progress(Side::Base, p))?;
        let adapter = engine.adapter(adapter)?;
        let tuned = evaluator.evaluate(examples, Some(adapter), &mut |p| progress(Side::Tuned, p))?;
        Ok(Self { base, tuned })
    }

    /// A table of loss and perplexity, three lines.
    pub fn table(&self) -> String {
        let mut text =
            format!("held out: {} rows, {} target tokens\n", self.base.examples, self.base.target_tokens);
        for (name, found) in [("base", self.base), ("tuned", self.tuned)] {
            let _ = writeln!(
                text,
                "{name:<6} loss {:>7.4}   perplexity {:>9.3}",
                found.loss(),
                found.perplexity()
            );
        }
        text
    }
}
