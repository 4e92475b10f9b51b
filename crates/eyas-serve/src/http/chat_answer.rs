//! The answers to a chat request while they come: tidied, guarded, in chunks or whole.

use std::collections::VecDeque;
use std::sync::Arc;

use eyas_care::{AnswerGuard, Reason};
use eyas_generate::{FinishReason, Tidy, TidyStream};
use serde_json::{Value, json};

use super::App;
use super::run::{Answering, Head, finish_name, usage};
use crate::answerer::Said;
use crate::openai::logprobs;
use crate::storage::Exchange;

/// All answers to one request.
pub(super) struct ChatAnswer {
    app: Arc<App>,
    head: Head,
    choices: Vec<Choice>,
    prompt_tokens: usize,
    streams: bool,
    /// Said before each answer.
    reminder: Option<String>,
    /// What is stored when all answers are there.
    kept: Option<Exchange>,
}

/// One answer.
pub(super) struct Choice {
    tidy: Option<TidyStream>,
    guard: Option<AnswerGuard>,
    text: String,
    logprobs: Vec<Value>,
    tokens: usize,
    finish: Option<FinishReason>,
    begun: bool,
}

impl Choice {
    pub fn new(tidy: bool, guard: Option<AnswerGuard>) -> Self {
        Self {
            tidy: tidy.then(|| Tidy::recipe().stream()),
            guard,
            text: String::new(),
            logprobs: Vec::new(),
            tokens: 0,
            finish: None,
            begun: false,
        }
    }

    /// The text that may be shown now. Sets `finish` where the answer ends.
    fn push(&mut self, text: String, finish: Option<FinishReason>) -> String {
        let mut shown = match &mut self.tidy {
            Some(tidy) => tidy.push(&text),
            None => text,
        };
        self.finish = finish;
        if let Some(finish) = finish
            && let Some(tidy) = self.tidy.take()
        {
            shown.push_str(&tidy.finish(finish != FinishReason::Length));
        }
        if let Some(guard) = &mut self.guard {
            shown = guard.push(&shown);
            if guard.is_stopped() && self.finish.is_none() {
                self.finish = Some(FinishReason::Stop);
            }
            if self.finish.is_some() {
                shown.push_str(&guard.finish());
            }
        }
        shown
    }

    /// Why something was replaced.
    fn replaced(&self) -> &[Reason] {
        self.guard.as_ref().map_or(&[], AnswerGuard::reasons)
    }

    /// The log-probabilities that may be told now. They would give away what the guard holds back or replaces, so
    /// that behind a guard they come with the end, and only where nothing was replaced.
    fn logprobs(&mut self) -> Value {
        if self.guard.is_some() && (self.finish.is_none() || !self.replaced().is_empty()) {
            return Value::Null;
        }
        match std::mem::take(&mut self.logprobs) {
            found if found.is_empty() => Value::Null,
            found => json!({"content": found, "refusal": null}),
        }
    }
}

impl ChatAnswer {
    pub fn new(
        app: Arc<App>,
        head: Head,
        choices: Vec<Choice>,
        prompt_tokens: usize,
        streams: bool,
        reminder: Option<String>,
        kept: Option<Exchange>,
    ) -> Self {
        Self { app, head, choices, prompt_tokens, streams, reminder, kept }
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> Value {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        self.head.with(vec![choice])
    }

    fn usage(&self) -> Value {
        usage(self.prompt_tokens, self.choices.iter().map(|choice| choice.tokens).sum())
    }
}

impl Answering for ChatAnswer {
    fn take(&mut self, number: usize, said: Said, chunks: &mut VecDeque<Value>) -> bool {
        let Said::Token { token, text, logprobs, finish } = said else { return true };
        let begins = !self.choices[number].begun;
        let choice = &mut self.choices[number];
        choice.begun = true;
        choice.tokens += 1;
        if let Some(found) = logprobs {
            choice.logprobs.push(logprobs::chat_token(self.app.models.tokenizer(), token, &found));
        }
        let mut shown = choice.push(text, finish);
        let finish = choice.finish;
        if begins && let Some(reminder) = &self.reminder {
            shown = format!("{reminder}\n\n{shown}");
        }
        if !self.streams || self.kept.is_some() {
            choice.text.push_str(&shown);
        }
        if !self.streams {
            return finish.is_none();
        }
        let logprobs = choice.logprobs();
        if begins {
            let mut first =
                self.chunk(number, json!({"role": "assistant", "content": ""}), Value::Null, None);
            if self.reminder.is_some() {
                first["eyas"] = json!({"reminder": "asked"});
            }
            chunks.push_back(first);
        }
        if !shown.is_empty() || !logprobs.is_null() {
            chunks.push_back(self.chunk(number, json!({"content": shown}), logprobs, None));
        }
        if let Some(finish) = finish {
            let mut last = self.chunk(number, json!({}), Value::Null, Some(finish_name(finish)));
            let replaced = self.choices[number].replaced();
            if !replaced.is_empty() {
                last["eyas"] = json!({"replaced": replaced});
            }
            chunks.push_back(last);
        }
        finish.is_none()
    }

    fn end(&mut self, chunks: &mut VecDeque<Value>) {
        if self.head.includes_usage {
            let mut last = self.head.with(Vec::new());
            last["usage"] = self.usage();
            chunks.push_back(last);
        }
        if let Some(kept) = self.kept.take() {
            let answers = self.choices.iter().map(|choice| choice.text.clone()).collect();
            self.app.store(&Exchange { answers, ..kept });
        }
    }

    fn whole(mut self) -> Value {
        let usage = self.usage();
        let mut replaced: Vec<Reason> =
            self.choices.iter().flat_map(|choice| choice.replaced()).copied().collect();
        replaced.sort();
        replaced.dedup();
        let choices = self.choices.iter_mut().enumerate().map(|(index, choice)| {
            json!({
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": null},
                "logprobs": choice.logprobs(),
                "finish_reason": choice.finish.map(finish_name),
            })
        });
        let mut value = self.head.with(choices.collect());
        value["usage"] = usage;
        if !replaced.is_empty() {
            value["eyas"] = json!({"replaced": replaced});
        }
        if self.reminder.is_some() {
            value["eyas"]["reminder"] = json!("asked");
        }
        value
    }
}
