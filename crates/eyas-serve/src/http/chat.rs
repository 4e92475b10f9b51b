//! `/v1/chat/completions`.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use eyas_data::{PromptFormat, conversation::HUMAN};
use eyas_generate::{FinishReason, Tidy, TidyStream};
use serde_json::{Value, json};

use super::run::{Answering, Head, collect, finish_name, stream, usage};
use super::{App, body};
use crate::answerer::{Ask, Said};
use crate::openai::chat::ChatRequest;
use crate::openai::{ApiError, Common, logprobs};
use crate::prompt;

/// Answers a conversation.
pub(super) async fn answer(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let bytes = body::read(&app, request).await?;
    let common: Common = body::parse(&bytes)?;
    let chat: ChatRequest = body::parse(&bytes)?;
    drop(bytes);
    chat.check_supported()?;
    let (place, model) = app.model(common.model.as_deref())?;
    let turns = chat.turns()?;
    let n = common.choices(app.config.limits.max_sequences)?;
    let reported = chat.reported()?;
    let extension = chat.eyas.clone().unwrap_or_default();
    let tidy = extension.tidy.unwrap_or(false);
    if tidy && reported.is_some() {
        return Err(ApiError::invalid("logprobs", "are of tokens, which eyas.tidy cuts; ask for one of the two"));
    }
    let mut params = common.params(&model.defaults, app.models.vocab())?;
    params.logprobs = reported;
    if matches!(model.format, PromptFormat::HumanAssistant { .. }) {
        // The answer is one turn; the base runs on with invented ones.
        params.stop.push(HUMAN.into());
    }
    let remember = extension.remember.map(|turns| usize::try_from(turns).unwrap_or(usize::MAX));
    let asked = chat.max_completion_tokens.or(common.max_tokens);
    let default = model.defaults.max_new_tokens;
    let wanted = asked.map_or(default, |tokens| usize::try_from(tokens).unwrap_or(usize::MAX));

    // A long conversation takes a while to turn into tokens, which must not hold up others.
    let shared = Arc::clone(&app);
    let prompt = blocking(move || {
        let model = &shared.models.list()[place];
        prompt::chat(&shared.models, model, &turns, remember, wanted)
    })
    .await??;
    params.max_new_tokens = common.length(asked, default, prompt.len(), app.models.positions())?;
    if params.max_new_tokens == 0 {
        return Err(ApiError::invalid("max_tokens", "is 0; an answer has at least one token"));
    }

    let streams = common.streams();
    let object = if streams { "chat.completion.chunk" } else { "chat.completion" };
    let answer = ChatAnswer {
        head: Head::new("chatcmpl", object, &model.id, streams && common.includes_usage()),
        app: Arc::clone(&app),
        choices: (0..n).map(|_| Choice::new(tidy)).collect(),
        prompt_tokens: prompt.len(),
        streams,
    };
    let asks = (0..n as u32).map(|stream| Ask {
        model: place,
        prompt: prompt.clone(),
        params: params.clone(),
        stream,
        prompt_logprobs: None,
    });
    let running = app.submit(asks.collect())?;
    if streams { Ok(stream(running, answer)) } else { collect(running, answer).await }
}

/// Runs what takes long beside the threads that serve connections.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let failed = |_| ApiError::internal("the server made a mistake with this request");
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

/// All answers to one request.
struct ChatAnswer {
    head: Head,
    app: Arc<App>,
    choices: Vec<Choice>,
    prompt_tokens: usize,
    streams: bool,
}

/// One answer.
struct Choice {
    tidy: Option<TidyStream>,
    text: String,
    logprobs: Vec<Value>,
    tokens: usize,
    finish: Option<FinishReason>,
    begun: bool,
}

impl Choice {
    fn new(tidy: bool) -> Self {
        Self {
            tidy: tidy.then(|| Tidy::recipe().stream()),
            text: String::new(),
            logprobs: Vec::new(),
            tokens: 0,
            finish: None,
            begun: false,
        }
    }

    /// The text that may be shown now.
    fn push(&mut self, text: String, finish: Option<FinishReason>) -> String {
        let mut shown = match &mut self.tidy {
            Some(tidy) => tidy.push(&text),
            None => text,
        };
        if let Some(finish) = finish {
            self.finish = Some(finish);
            if let Some(tidy) = self.tidy.take() {
                shown.push_str(&tidy.finish(finish != FinishReason::Length));
            }
        }
        shown
    }

    fn logprobs(&mut self) -> Value {
        match std::mem::take(&mut self.logprobs) {
            found if found.is_empty() => Value::Null,
            found => json!({"content": found, "refusal": null}),
        }
    }
}

impl ChatAnswer {
    fn chunk(&self, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> Value {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        self.head.with(vec![choice])
    }

    fn completion_tokens(&self) -> usize {
        self.choices.iter().map(|choice| choice.tokens).sum()
    }
}

impl Answering for ChatAnswer {
    fn take(&mut self, number: usize, said: Said, chunks: &mut VecDeque<Value>) {
        let Said::Token { token, text, logprobs, finish } = said else { return };
        let choice = &mut self.choices[number];
        choice.tokens += 1;
        if let Some(found) = logprobs {
            choice.logprobs.push(logprobs::chat_token(self.app.models.tokenizer(), token, &found));
        }
        let shown = choice.push(text, finish);
        if !self.streams {
            choice.text.push_str(&shown);
            return;
        }
        if !choice.begun {
            choice.begun = true;
            let delta = json!({"role": "assistant", "content": ""});
            chunks.push_back(self.chunk(number, delta, Value::Null, None));
        }
        let logprobs = self.choices[number].logprobs();
        if !shown.is_empty() || !logprobs.is_null() {
            chunks.push_back(self.chunk(number, json!({"content": shown}), logprobs, None));
        }
        if let Some(finish) = finish {
            chunks.push_back(self.chunk(number, json!({}), Value::Null, Some(finish_name(finish))));
        }
    }

    fn end(&mut self, chunks: &mut VecDeque<Value>) {
        if self.head.includes_usage {
            let mut last = self.head.with(Vec::new());
            last["usage"] = usage(self.prompt_tokens, self.completion_tokens());
            chunks.push_back(last);
        }
    }

    fn whole(mut self) -> Value {
        let completion = self.completion_tokens();
        let choices = self.choices.iter_mut().enumerate().map(|(index, choice)| {
            json!({
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": null},
                "logprobs": choice.logprobs(),
                "finish_reason": choice.finish.map(finish_name),
            })
        });
        let mut value = self.head.with(choices.collect());
        value["usage"] = usage(self.prompt_tokens, completion);
        value
    }
}
