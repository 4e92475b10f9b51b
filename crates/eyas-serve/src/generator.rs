//! The real engine behind the server.

use std::collections::HashMap;

use eyas_backend::Backend;
use eyas_generate::{AdapterId, Error, Generator, Request, Result, SequenceId, TextEvent};

use crate::answerer::{Answerer, Ask, Said, Ticket};

/// An engine with the adapter of each served model, in their order; `None` is the base.
#[derive(Debug)]
pub struct EngineAnswerer<'m, B: Backend> {
    generator: Generator<'m, B>,
    adapters: Vec<Option<AdapterId>>,
    tickets: HashMap<SequenceId, Ticket>,
    events: Vec<TextEvent>,
}

impl<'m, B: Backend> EngineAnswerer<'m, B> {
    /// Serves each model of the server with the adapter at its place.
    pub fn new(generator: Generator<'m, B>, adapters: Vec<Option<AdapterId>>) -> Self {
        Self { generator, adapters, tickets: HashMap::new(), events: Vec::new() }
    }
}

impl<B: Backend> Answerer for EngineAnswerer<'_, B> {
    fn free_slots(&self) -> usize {
        self.generator.engine().free_slots()
    }

    fn reused_tokens(&self) -> u64 {
        self.generator.engine().reused_tokens()
    }

    fn submit(&mut self, ticket: Ticket, ask: Ask) -> Result<()> {
        let Some(&adapter) = self.adapters.get(ask.model) else {
            return Err(Error::Prompt(format!("model {} of the server is not in the engine", ask.model)));
        };
        let request = Request {
            stream: ask.stream,
            prompt_logprobs: ask.prompt_logprobs,
            ..Request::new(ask.prompt, ask.params, adapter)
        };
        let id = self.generator.submit(request)?;
        self.tickets.insert(id, ticket);
        Ok(())
    }

    fn remove(&mut self, ticket: Ticket) {
        let found = self.tickets.iter().find(|&(_, &other)| other == ticket).map(|(&id, _)| id);
        if let Some(id) = found {
            self.tickets.remove(&id);
            self.generator.remove(id);
        }
    }

    fn step(&mut self, said: &mut Vec<(Ticket, Said)>) -> Result<()> {
        let result = self.generator.step(&mut self.events);
        for event in self.events.drain(..) {
            let (sequence, gone, what) = match event {
                TextEvent::Prompt { sequence, logprobs } => (sequence, false, Said::Prompt(logprobs)),
                TextEvent::Token { sequence, token, text, logprobs, finish } => {
                    (sequence, finish.is_some(), Said::Token { token, text, logprobs, finish })
                }
                TextEvent::Failed { sequence, error } => (sequence, true, Said::Failed(error.to_string())),
            };
            let ticket =
                if gone { self.tickets.remove(&sequence) } else { self.tickets.get(&sequence).copied() };
            said.extend(ticket.map(|ticket| (ticket, what)));
        }
        result
    }
}
