//! A request's sequences while they run: one stream of what they say.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use eyas_generate::FinishReason;
use futures_util::stream::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::App;
use crate::answerer::{Ask, Said};
use crate::openai::ApiError;
use crate::queue::Refused;
use crate::random;

/// The sequences of a request. Dropping it ends them.
pub(super) struct Running {
    /// `None` after the end.
    receivers: Vec<Option<UnboundedReceiver<Said>>>,
    /// Whose turn it is to be looked at first.
    first: usize,
}

impl App {
    /// Puts sequences into the queue.
    pub(super) fn submit(&self, asks: Vec<Ask>) -> Result<Running, ApiError> {
        let receivers = self.queue.push(asks).map_err(|refused| match refused {
            Refused::Closed => ApiError::shutting_down(),
            Refused::Full(waiting) => ApiError {
                retry_after: Some(self.metrics.retry_after(waiting, self.slots)),
                ..ApiError::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "queue_full",
                    format!("{waiting} requests are waiting already; try again in a while"),
                )
            },
        })?;
        Ok(Running { receivers: receivers.into_iter().map(Some).collect(), first: 0 })
    }
}

impl Running {
    /// What comes next, with the number of its sequence; `None` when all have ended.
    ///
    /// # Errors
    /// When a sequence failed, or the server stops.
    async fn next(&mut self) -> Option<Result<(usize, Said), ApiError>> {
        if self.receivers.iter().all(Option::is_none) {
            return None;
        }
        let (number, said) = poll_fn(|context| self.poll(context)).await;
        Some(match said {
            // A channel closes before its sequence's end only when the server lets go of it.
            None => Err(ApiError::shutting_down()),
            Some(Said::Failed(reason)) => Err(ApiError::internal(reason)),
            Some(said) => {
                if matches!(said, Said::Token { finish: Some(_), .. }) {
                    self.end(number);
                }
                Ok((number, said))
            }
        })
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<(usize, Option<Said>)> {
        let count = self.receivers.len();
        for number in (self.first..count).chain(0..self.first) {
            if let Some(receiver) = &mut self.receivers[number]
                && let Poll::Ready(said) = receiver.poll_recv(context)
            {
                self.first = (number + 1) % count;
                return Poll::Ready((number, said));
            }
        }
        Poll::Pending
    }

    /// Ends a sequence; its slot becomes free.
    fn end(&mut self, number: usize) {
        self.receivers[number] = None;
    }
}

/// Makes answers of what the sequences of a request say.
pub(super) trait Answering: Send + 'static {
    /// Takes what a sequence said, and adds chunks where the answer is streamed. Tells whether more is wanted of it.
    fn take(&mut self, number: usize, said: Said, chunks: &mut VecDeque<Value>) -> bool;

    /// Adds the last chunks, when all sequences have ended.
    fn end(&mut self, chunks: &mut VecDeque<Value>);

    /// The whole answer, where it is not streamed.
    fn whole(self) -> Value;
}

/// Answers at once, when everything was said.
pub(super) async fn collect(mut running: Running, mut answer: impl Answering) -> Result<Response, ApiError> {
    let mut chunks = VecDeque::new();
    while let Some(said) = running.next().await {
        let (number, said) = said?;
        if !answer.take(number, said, &mut chunks) {
            running.end(number);
        }
        chunks.clear();
    }
    answer.end(&mut chunks);
    Ok(Json(answer.whole()).into_response())
}

/// Answers while it is said, as server-sent events.
pub(super) fn stream(running: Running, answer: impl Answering) -> Response {
    let state = Streaming { running, answer, chunks: VecDeque::new(), ended: false };
    events(futures_util::stream::unfold(state, |mut state| async move {
        loop {
            if let Some(chunk) = state.chunks.pop_front() {
                return Some((chunk, state));
            }
            if state.ended {
                return None;
            }
            match state.running.next().await {
                Some(Ok((number, said))) => {
                    if !state.answer.take(number, said, &mut state.chunks) {
                        state.running.end(number);
                    }
                }
                Some(Err(error)) => {
                    state.ended = true;
                    state.chunks.push_back(error.json());
                }
                None => {
                    state.ended = true;
                    state.answer.end(&mut state.chunks);
                }
            }
        }
    }))
}

struct Streaming<A> {
    running: Running,
    answer: A,
    chunks: VecDeque<Value>,
    ended: bool,
}

/// Chunks as server-sent events, with `[DONE]` after the last.
pub(super) fn events(chunks: impl Stream<Item = Value> + Send + 'static) -> Response {
    let events = chunks.map(|chunk| Event::default().data(chunk.to_string()));
    let done = futures_util::stream::once(async { Event::default().data("[DONE]") });
    let events = events.chain(done).map(Ok::<_, std::convert::Infallible>);
    // A comment now and then keeps proxies from giving up, and shows whether the client is still there.
    let events = Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(10)));
    // Proxies that buffer would hold the answer back.
    ([(header::CACHE_CONTROL, "no-store"), (HeaderName::from_static("x-accel-buffering"), "no")], events)
        .into_response()
}

/// OpenAI's names: the model's own end and a stop text are one.
pub(super) fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Eos | FinishReason::Stop | FinishReason::Interrupted => "stop",
        FinishReason::Length => "length",
    }
}

/// Counts of a request.
pub(super) fn usage(prompt: usize, completion: usize) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

/// What every chunk and every answer of a request begins with.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    /// Chunks say "usage": null, and one more has the counts.
    pub includes_usage: bool,
}

impl Head {
    pub fn new(prefix: &str, object: &'static str, model: &str, includes_usage: bool) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            id: random::id(prefix),
            object,
            created: now.as_secs(),
            model: model.to_owned(),
            includes_usage,
        }
    }

    /// A chunk, or a whole answer, with these choices.
    pub fn with(&self, choices: Vec<Value>) -> Value {
        let mut value = json!({
            "id": self.id, "object": self.object, "created": self.created, "model": self.model, "choices": choices,
        });
        if self.includes_usage {
            value["usage"] = Value::Null;
        }
        value
    }
}
