//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use eyas_care::{CareResponse, Language, ReminderKind};
use eyas_data::{PromptFormat, Role, Turn, conversation::HUMAN};
use serde_json::{Value, json};

use super::chat_answer::{ChatAnswer, Choice};
use super::run::{Head, collect, events, stream, usage};
use super::{App, body};
use crate::answerer::Ask;
use crate::care::{self, CareMode};
use crate::openai::chat::{ChatRequest, Extension};
use crate::openai::{ApiError, Common};
use crate::prompt;
use crate::storage::Exchange;

/// Answers a conversation.
pub(super) async fn answer(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let bytes = body::read(&app, request).await?;
    let common: Common = body::parse(&bytes)?;
    let chat: ChatRequest = body::parse(&bytes)?;
    drop(bytes);
    chat.check_supported()?;
    let (place, model) = app.model(common.model.as_deref())?;
    let turns = Arc::new(chat.turns()?);
    let n = common.choices(app.config.limits.max_sequences)?;
    let reported = chat.reported()?;
    let extension = chat.eyas.clone().unwrap_or_default();
    let tidy = extension.tidy.unwrap_or(false);
    if tidy && reported.is_some() {
        return Err(ApiError::invalid(
            "logprobs",
            "are of tokens, which eyas.tidy cuts; ask for one of the two",
        ));
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
    if wanted == 0 {
        return Err(ApiError::invalid("max_tokens", "is 0; an answer has at least one token"));
    }

    // A long conversation takes a while to read, which must not hold up others.
    let (shared, spoken) = (Arc::clone(&app), Arc::clone(&turns));
    let lengths = common.clone();
    let (care, reading) = blocking(&app, move || {
        let fits = prompt::check_length(&shared.models, &spoken, remember);
        // A cry for help is answered, however long it is; of what no model could read, both ends are looked at.
        let (care, concern) = match fits {
            Ok(()) => Careful::new(&shared, &spoken, &extension),
            Err(_) => Careful::new(&shared, &[ends(last_question(&spoken))], &extension),
        };
        if let Some(response) = concern {
            return Ok((care, Reading::Concern(response)));
        }
        fits?;
        let model = &shared.models.list()[place];
        let prompt = prompt::chat(&shared.models, model, &spoken, remember, wanted)?;
        let length =
            lengths.length(asked, remember.is_some(), default, prompt.len(), shared.models.positions())?;
        Ok((care, Reading::Question { prompt, length }))
    })
    .await??;

    let streams = common.streams();
    let object = if streams { "chat.completion.chunk" } else { "chat.completion" };
    let head = Head::new("chatcmpl", object, &model.id, streams && common.includes_usage());
    let kept = care.consented.then(|| Exchange {
        model: model.id.clone(),
        turns: turns.to_vec(),
        answers: Vec::new(),
        care: None,
    });
    let (prompt, length) = match reading {
        Reading::Question { prompt, length } => (prompt, length),
        Reading::Concern(response) => {
            app.metrics.care_answers.inc();
            if let Some(kept) = kept {
                let (answers, care) = (vec![response.text.clone()], Some(json!(response.category)));
                app.store(&Exchange { answers, care, ..kept });
            }
            return Ok(care_answer(&head, &response, &care, n, streams));
        }
    };
    params.max_new_tokens = length;
    let question = last_question(&turns);
    let guard = |_| app.cares(CareMode::On).map(|care_of| care_of.care.guard(question, care.language));
    let answer = ChatAnswer::new(
        Arc::clone(&app),
        head,
        (0..n).map(|number| Choice::new(tidy, guard(number))).collect(),
        prompt.len(),
        streams,
        care.reminder,
        kept,
    );
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
///
/// Few requests are read at a time, so that reading never takes the processor from the engine for long.
pub(super) async fn blocking<T: Send + 'static>(
    app: &App,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let reader = Arc::clone(&app.readers).acquire_owned().await;
    let failed = |_| ApiError::internal("the server made a mistake with this request");
    // The place is taken until the work ends, also where its client has gone.
    let work = move || {
        let result = work();
        drop(reader);
        result
    };
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

fn last_question(turns: &[Turn]) -> &str {
    turns.iter().rfind(|turn| turn.role == Role::User).map_or("", |turn| &turn.content)
}

/// The beginning and the end of a message.
fn ends(text: &str) -> Turn {
    const CHARACTERS: usize = 2000;
    let start = text.char_indices().nth(CHARACTERS).map_or(text.len(), |(at, _)| at);
    let end = text.char_indices().nth_back(CHARACTERS).map_or(0, |(at, _)| at).max(start);
    Turn::new(Role::User, format!("{}\n{}", &text[..start], &text[end..]))
}

/// What a request turns out to be.
enum Reading {
    /// The safety layer answers.
    Concern(CareResponse),
    /// The model answers, with at most `length` tokens.
    Question { prompt: Vec<u32>, length: usize },
}

/// What the safety layer and the person's consent say about a request.
struct Careful {
    language: Language,
    region: Option<String>,
    /// Said before the answer.
    reminder: Option<String>,
    consented: bool,
}

impl Careful {
    /// And the answer to a concern.
    fn new(app: &App, turns: &[Turn], extension: &Extension) -> (Self, Option<CareResponse>) {
        let last = last_question(turns);
        let language = care::language(extension.language.as_deref(), last);
        let region = app.config.care.region(extension.region.as_deref()).map(str::to_owned);
        let care = app.cares(CareMode::On);
        let concern = care.and_then(|care| care.answer(turns, region.as_deref(), language));
        let reminder = care
            .filter(|care| concern.is_none() && care.care.is_asking_if_human(last))
            .map(|care| care.care.reminder(ReminderKind::Asked, language).to_owned());
        let consented = match (&app.config.storage, &extension.consent) {
            (Some(storage), Some(consent)) => consent == storage.consent_id(),
            _ => false,
        };
        (Self { language, region, reminder, consented }, concern)
    }
}

/// The fixed answer to a concern, in the shape of any other.
fn care_answer(head: &Head, response: &CareResponse, care: &Careful, n: usize, streams: bool) -> Response {
    let parts = json!({"care": care::parts(response, care.region.as_deref(), care.language)});
    if !streams {
        let choices = (0..n).map(|index| {
            json!({
                "index": index,
                "message": {"role": "assistant", "content": response.text, "refusal": null},
                "logprobs": null,
                "finish_reason": "stop",
            })
        });
        let mut value = head.with(choices.collect());
        value["usage"] = usage(0, 0);
        value["eyas"] = parts;
        return Json(value).into_response();
    }
    let chunk = |index: usize, delta: Value, finish: Value| {
        head.with(vec![json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish})])
    };
    let mut chunks = Vec::new();
    for index in 0..n {
        let mut first = chunk(index, json!({"role": "assistant", "content": ""}), Value::Null);
        first["eyas"] = parts.clone();
        chunks.push(first);
        for line in response.text.split_inclusive('\n') {
            chunks.push(chunk(index, json!({"content": line}), Value::Null));
        }
        chunks.push(chunk(index, json!({}), json!("stop")));
    }
    if head.includes_usage {
        let mut last = head.with(Vec::new());
        last["usage"] = usage(0, 0);
        chunks.push(last);
    }
    events(futures_util::stream::iter(chunks))
}
