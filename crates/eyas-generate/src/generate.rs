//! Text in, text out: an engine with a tokenizer, for one answer at a time or many.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eyas_backend::Backend;
use eyas_data::Tokenizer;

use crate::engine::{Engine, Event, FinishReason, Request, SequenceId};
use crate::sampling::TokenLogprobs;
use crate::stream::AnswerStream;
use crate::{Error, Result};

/// A finished answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The text, without the stop text that ended it.
    pub text: String,
    /// Its tokens, with the one that ended it.
    pub tokens: Vec<u32>,
    /// Log-probabilities of the tokens, where they were asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// From the start to the first token.
    pub first_token: Duration,
    /// From the start to the last token.
    pub total: Duration,
}

impl Answer {
    /// Tokens a second, after the first.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds = self.total.saturating_sub(self.first_token).as_secs_f64();
        if seconds > 0.0 { self.tokens.len().saturating_sub(1) as f64 / seconds } else { 0.0 }
    }
}

/// What a step made of one sequence, as text.
#[derive(Debug)]
pub enum TextEvent {
    /// Log-probabilities of prompt tokens, as in [`Event::Prompt`].
    Prompt {
        /// The sequence.
        sequence: SequenceId,
        /// Those of the next tokens of the prompt.
        logprobs: Vec<TokenLogprobs>,
    },
    /// A token.
    Token {
        /// The sequence.
        sequence: SequenceId,
        /// The token's id.
        token: u32,
        /// Text that may be shown now: whole characters, often those of earlier tokens, sometimes none.
        text: String,
        /// Where they were asked for.
        logprobs: Option<TokenLogprobs>,
        /// Set on the last token. The sequence is gone then.
        finish: Option<FinishReason>,
    },
    /// The sequence cannot go on and is gone; others are not affected.
    Failed {
        /// The sequence.
        sequence: SequenceId,
        /// Why.
        error: Error,
    },
}

/// An engine with a tokenizer.
#[derive(Debug)]
pub struct Generator<'m, B: Backend> {
    engine: Engine<'m, B>,
    tokenizer: &'m Tokenizer,
    streams: HashMap<SequenceId, AnswerStream<'m>>,
    events: Vec<Event>,
}

impl<'m, B: Backend> Generator<'m, B> {
    /// Puts a tokenizer before an engine.
    ///
    /// # Errors
    /// When the tokenizer has ids that the model lacks.
    pub fn new(engine: Engine<'m, B>, tokenizer: &'m Tokenizer) -> Result<Self> {
        let vocab = engine.model().decoder().vocab_size;
        if tokenizer.vocab_size() > vocab {
            return Err(Error::Prompt(format!(
                "the tokenizer has {} tokens, the model {vocab}; they belong to different models",
                tokenizer.vocab_size()
            )));
        }
        Ok(Self { engine, tokenizer, streams: HashMap::new(), events: Vec::new() })
    }

    /// The engine.
    pub fn engine(&self) -> &Engine<'m, B> {
        &self.engine
    }

    /// The engine, to add adapters.
    pub fn engine_mut(&mut self) -> &mut Engine<'m, B> {
        &mut self.engine
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &'m Tokenizer {
        self.tokenizer
    }

    /// Adds a sequence. Where the request names no end tokens, those of the tokenizer end it.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit(&mut self, mut request: Request) -> Result<SequenceId> {
        if request.params.eos_token_id.is_empty() {
            request.params.eos_token_id = self.tokenizer.eos_ids().to_vec();
        }
        let id = self.engine.submit(&request)?;
        self.streams.insert(id, AnswerStream::new(self.tokenizer, request.params.stop));
        Ok(id)
    }

    /// Ends a sequence before its time. Tells whether it was there.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        self.streams.remove(&id);
        self.engine.remove(id)
    }

    /// Runs every sequence one step and appends what came of it to `events`.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step(&mut self, events: &mut Vec<TextEvent>) -> Result<()> {
        let mut tokens = std::mem::take(&mut self.events);
        let result = self.engine.step(&mut tokens);
        events.extend(tokens.drain(..).map(|event| self.text_event(event)));
        self.events = tokens;
        result
    }

    fn text_event(&mut self, event: Event) -> TextEvent {
        match event {
            Event::Prompt { sequence, logprobs } => TextEvent::Prompt { sequence, logprobs },
            Event::Failed { sequence, error } => {
                self.streams.remove(&sequence);
                TextEvent::Failed { sequence, error }
            }
            Event::Token { sequence, token, logprobs, mut finish } => {
                match self.text_of(sequence, token, &mut finish) {
                    Ok(text) => TextEvent::Token { sequence, token, text, logprobs, finish },
                    Err(error) => {
                        self.remove(sequence);
                        TextEvent::Failed { sequence, error }
                    }
                }
            }
        }
    }

    fn text_of(
        &mut self,
        sequence: SequenceId,
        token: u32,
        finish: &mut Option<FinishReason>,
    ) -> Result<String> {
        let Some(stream) = self.streams.get_mut(&sequence) else { return Ok(String::new()) };
        let (mut text, mut stopped) =
            if *finish == Some(FinishReason::Eos) { (String::new(), false) } else { stream.push(token)? };
        if finish.is_some() && !stopped {
            let stream = self.streams.remove(&sequence);
            if let Some(stream) = stream {
                let (rest, found) = stream.finish()?;
                text.push_str(&rest);
                stopped = found;
            }
        }
        if stopped {
            *finish = Some(FinishReason::Stop);
            self.remove(sequence);
        }
        Ok(text)
    }

    /// One answer; `on_text` is given its text piece by piece.
    ///
    /// # Errors
    /// As [`Engine::submit`] and [`Engine::step`].
    pub fn generate(&mut self, request: Request, on_text: &mut dyn FnMut(&str)) -> Result<Answer> {
        self.generate_until(request, &AtomicBool::new(false), on_text)
    }

    /// As [`Generator::generate`], and ends with what there is after the step in which `stop` was raised.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn generate_until(
        &mut self,
        request: Request,
        stop: &AtomicBool,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Answer> {
        let mut answers = self.all_until(vec![request], stop, &mut |_, text| on_text(text))?;
        // One request makes one answer.
        answers.pop().ok_or(Error::Full { slots: self.engine.options().slots })
    }

    /// Answers to all requests, in their order, as many at once as the engine has free slots. `on_text` is given the
    /// request's number and a piece of its answer.
    ///
    /// # Errors
    /// The first error of any request; the sequences of the others are removed then.
    pub fn generate_all(
        &mut self,
        requests: Vec<Request>,
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<Vec<Answer>> {
        self.all_until(requests, &AtomicBool::new(false), on_text)
    }

    fn all_until(
        &mut self,
        requests: Vec<Request>,
        stop: &AtomicBool,
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<Vec<Answer>> {
        let mut running = HashMap::new();
        let result = self.run_all(requests, stop, &mut running, on_text);
        for id in running.into_keys() {
            self.remove(id);
        }
        result
    }

    fn run_all(
        &mut self,
        requests: Vec<Request>,
        stop: &AtomicBool,
        running: &mut HashMap<SequenceId, (usize, Answer, Instant)>,
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<Vec<Answer>> {
        let mut answers: Vec<Option<Answer>> = Vec::new();
        answers.resize_with(requests.len(), || None);
        let mut waiting: VecDeque<(usize, Request)> = requests.into_iter().enumerate().collect();
        let mut events = Vec::new();
        while !(waiting.is_empty() && running.is_empty()) {
            while self.engine.free_slots() > 0
                && let Some((number, request)) = waiting.pop_front()
            {
                let answer = Answer::empty(request.prompt.len());
                running.insert(self.submit(request)?, (number, answer, Instant::now()));
            }
            if running.is_empty() {
                return Err(Error::Full { slots: self.engine.options().slots });
            }
            if stop.load(Ordering::SeqCst) {
                for (number, request) in waiting {
                    answers[number] = Some(Answer::empty(request.prompt.len()));
                }
                for (number, mut answer, start) in running.values().cloned() {
                    answer.total = start.elapsed();
                    answers[number] = Some(answer);
                }
                break;
            }
            self.step(&mut events)?;
            for event in events.drain(..) {
                let (sequence, token, text, logprobs, finish) = match event {
                    TextEvent::Token { sequence, token, text, logprobs, finish } => {
                        (sequence, token, text, logprobs, finish)
                    }
                    TextEvent::Prompt { .. } => continue,
                    TextEvent::Failed { error, .. } => return Err(error),
                };
                let Some((number, answer, start)) = running.get_mut(&sequence) else { continue };
                if answer.tokens.is_empty() {
                    answer.first_token = start.elapsed();
                }
                answer.tokens.push(token);
                answer.logprobs.extend(logprobs);
                answer.text.push_str(&text);
                if !text.is_empty() {
                    on_text(*number, &text);
                }
                if let Some(finish) = finish {
                    answer.finish = finish;
                    answer.total = start.elapsed();
                    if let Some((number, answer, _)) = running.remove(&sequence) {
                        answers[number] = Some(answer);
                    }
                }
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }
}

impl Answer {
    fn empty(prompt_tokens: usize) -> Self {
        Self {
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            finish: FinishReason::Interrupted,
            prompt_tokens,
            first_token: Duration::ZERO,
            total: Duration::ZERO,
        }
    }
}
