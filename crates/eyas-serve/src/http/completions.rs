//! `/v1/completions`: raw continuation, and scoring of prompts with `echo` and `logprobs`.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use eyas_care::{AnswerGuard, CareResponse};
use eyas_data::{Role, Tokenizer, Turn};
use eyas_generate::{FinishReason, SamplingParams, TokenLogprobs};
use serde_json::{Value, json};

use super::chat::blocking;
use super::run::{Answering, Head, collect, events, finish_name, stream, usage};
use super::{App, body};
use crate::answerer::{Ask, Said};
use crate::care::{self, CareMode, CareSettings};
use crate::openai::completion::CompletionRequest;
use crate::openai::logprobs::CompletionLogprobs;
use crate::openai::{ApiError, Common};

/// Tokens of an answer where nothing is said, as OpenAI has it.
const DEFAULT_TOKENS: usize = 16;

/// Continues prompts.
pub(super) async fn answer(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let bytes = body::read(&app, request).await?;
    let common: Common = body::parse(&bytes)?;
    let completion: CompletionRequest = body::parse(&bytes)?;
    drop(bytes);
    let (place, model) = app.model(common.model.as_deref())?;
    let n = common.choices(app.config.limits.max_sequences)?;
    completion.check_supported(n)?;
    let reported = completion.reported()?;
    let mut params = common.params(&SamplingParams::default(), app.models.vocab())?;
    params.logprobs = reported;
    let echo = completion.echo.unwrap_or(false);

    let strict = app.cares(CareMode::Strict).is_some();
    if strict && reported.is_some() {
        let reason = "would give away what the safety layer holds back; it is in its strict mode here";
        return Err(ApiError::unsupported("logprobs", reason));
    }

    let shared = Arc::clone(&app);
    let (prompts, concern) = blocking(&app, move || {
        let tokenizer = shared.models.tokenizer();
        let prompts = completion.prompts(tokenizer, shared.models.vocab())?;
        let care = shared.cares(CareMode::Strict);
        let concern =
            care.and_then(|care| prompts.iter().find_map(|prompt| concern(care, tokenizer, prompt)));
        Ok((prompts, concern))
    })
    .await??;
    let most = app.config.limits.max_sequences;
    if prompts.len().saturating_mul(n) > most {
        let reason = format!("{} prompts with n = {n} are more than {most} sequences", prompts.len());
        return Err(ApiError::invalid("prompt", reason));
    }
    let mut asks = Vec::with_capacity(prompts.len() * n);
    let mut only_prompt = false;
    for prompt in &prompts {
        let tokens =
            common.length(common.max_tokens, false, DEFAULT_TOKENS, prompt.len(), app.models.positions());
        let tokens = tokens.map_err(|error| ApiError {
            param: Some("prompt".into()),
            message: error.message.replace("messages: ", "prompt: "),
            ..error
        })?;
        if tokens == 0 && !echo {
            return Err(ApiError::invalid(
                "max_tokens",
                "is 0, which asks for nothing without \"echo\": true",
            ));
        }
        only_prompt = tokens == 0;
        for stream in 0..n as u32 {
            asks.push(Ask {
                model: place,
                prompt: prompt.clone(),
                // The engine ends with a token, which is not reported then.
                params: SamplingParams { max_new_tokens: tokens.max(1), ..params.clone() },
                stream,
                prompt_logprobs: reported.filter(|_| echo),
            });
        }
    }
    let streams = common.streams();
    let head = Head::new("cmpl", "text_completion", &model.id, streams && common.includes_usage());
    if let Some((response, parts)) = concern {
        app.metrics.care_answers.inc();
        return Ok(care_answer(&head, &response, parts, asks.len(), streams));
    }
    let tokenizer = app.models.tokenizer();
    let mut choices = Vec::with_capacity(asks.len());
    for ask in &asks {
        choices.push(Choice::new(&app, ask, echo, tokenizer)?);
    }
    let answer = CompletionAnswer {
        head,
        choices,
        prompt_tokens: prompts.iter().map(Vec::len).sum(),
        only_prompt,
        streams,
        app: Arc::clone(&app),
    };
    let running = app.submit(asks)?;
    if streams { Ok(stream(running, answer)) } else { collect(running, answer).await }
}

/// The fixed answer where a prompt gives cause for concern, with its parts.
fn concern(care: &CareSettings, tokenizer: &Tokenizer, prompt: &[u32]) -> Option<(CareResponse, Value)> {
    let text = tokenizer.decode(prompt, true).ok()?;
    let language = care::language(None, &text);
    let region = care.region(None);
    let response = care.answer(&[Turn::new(Role::User, text)], region, language)?;
    let parts = care::parts(&response, region, language);
    Some((response, parts))
}

/// The fixed answer in the shape of continuations.
fn care_answer(head: &Head, response: &CareResponse, parts: Value, count: usize, streams: bool) -> Response {
    let choices = (0..count).map(
        |index| json!({"index": index, "text": response.text, "logprobs": null, "finish_reason": "stop"}),
    );
    let mut value = head.with(choices.collect());
    value["eyas"] = json!({"care": parts});
    value["usage"] = usage(0, 0);
    if streams {
        return events(futures_util::stream::iter([value]));
    }
    Json(value).into_response()
}

/// All continuations of one request.
struct CompletionAnswer {
    head: Head,
    app: Arc<App>,
    choices: Vec<Choice>,
    prompt_tokens: usize,
    /// Only the prompts are wanted.
    only_prompt: bool,
    streams: bool,
}

/// One continuation.
struct Choice {
    /// The prompt's ids where its log-probabilities are wanted.
    prompt: Vec<u32>,
    /// Prompt tokens whose log-probabilities came.
    scored: usize,
    /// Text that is not yet sent.
    text: String,
    logprobs: Option<CompletionLogprobs>,
    tokens: usize,
    finish: Option<FinishReason>,
    /// In the strict mode of the safety layer.
    guard: Option<AnswerGuard>,
}

impl Choice {
    fn new(app: &App, ask: &Ask, echo: bool, tokenizer: &Tokenizer) -> Result<Self, ApiError> {
        let failed = |error: eyas_data::Error| ApiError::internal(error.to_string());
        let text_of = tokenizer.decode(&ask.prompt, false).map_err(failed)?;
        let language = care::language(None, &text_of);
        let text = if echo { text_of.clone() } else { String::new() };
        let mut choice = Self {
            prompt: Vec::new(),
            scored: 0,
            text,
            logprobs: ask.params.logprobs.map(|_| CompletionLogprobs::default()),
            tokens: 0,
            finish: None,
            guard: app.cares(CareMode::Strict).map(|care| care.care.guard(&text_of, language)),
        };
        if ask.prompt_logprobs.is_some() {
            choice.prompt = ask.prompt.clone();
            choice.score(app, None);
        }
        Ok(choice)
    }

    /// Notes the next token of the prompt.
    fn score(&mut self, app: &App, found: Option<&TokenLogprobs>) {
        if let (Some(logprobs), Some(&id)) = (&mut self.logprobs, self.prompt.get(self.scored)) {
            logprobs.push(app.models.tokenizer(), id, found);
            self.scored += 1;
        }
    }

    /// The text that may be shown now. Sets `finish` where the guard wants no more.
    fn guarded(&mut self, text: String) -> String {
        let Some(guard) = &mut self.guard else { return text };
        let mut shown = guard.push(&text);
        if guard.is_stopped() && self.finish.is_none() {
            self.finish = Some(FinishReason::Stop);
        }
        if self.finish.is_some() {
            shown.push_str(&guard.finish());
        }
        shown
    }

    fn logprobs(&mut self) -> Value {
        self.logprobs.as_mut().map_or(Value::Null, CompletionLogprobs::take)
    }

    fn json(&mut self, index: usize) -> Value {
        json!({
            "index": index,
            "text": std::mem::take(&mut self.text),
            "logprobs": self.logprobs(),
            "finish_reason": self.finish.map(finish_name),
        })
    }
}

impl Answering for CompletionAnswer {
    fn take(&mut self, number: usize, said: Said, chunks: &mut VecDeque<Value>) -> bool {
        let choice = &mut self.choices[number];
        match said {
            Said::Prompt(found) => {
                found.iter().for_each(|logprobs| choice.score(&self.app, Some(logprobs)));
                return true;
            }
            Said::Token { finish, .. } if self.only_prompt => choice.finish = finish,
            Said::Token { token, text, logprobs, finish } => {
                choice.tokens += 1;
                choice.finish = finish;
                let shown = choice.guarded(text);
                choice.text.push_str(&shown);
                if let (Some(list), Some(found)) = (&mut choice.logprobs, &logprobs) {
                    list.push(self.app.models.tokenizer(), token, Some(found));
                }
            }
            Said::Failed(_) => return true,
        }
        let has_news = !choice.text.is_empty() || choice.logprobs.is_some() || choice.finish.is_some();
        if self.streams && has_news {
            let choice = choice.json(number);
            chunks.push_back(self.head.with(vec![choice]));
        }
        self.choices[number].finish.is_none()
    }

    fn end(&mut self, chunks: &mut VecDeque<Value>) {
        if self.head.includes_usage {
            let mut last = self.head.with(Vec::new());
            last["usage"] = self.usage();
            chunks.push_back(last);
        }
    }

    fn whole(mut self) -> Value {
        let usage = self.usage();
        let choices = self.choices.iter_mut().enumerate().map(|(index, choice)| choice.json(index));
        let mut value = self.head.with(choices.collect());
        value["usage"] = usage;
        value
    }
}

impl CompletionAnswer {
    fn usage(&self) -> Value {
        usage(self.prompt_tokens, self.choices.iter().map(|choice| choice.tokens).sum())
    }
}
