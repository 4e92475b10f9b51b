//! The loop of the engine's thread.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use crate::answerer::{Answerer, Said, Ticket};
use crate::metrics::Metrics;
use crate::queue::{Next, Queue, Waiting};

/// A sequence in the engine.
struct Running {
    out: UnboundedSender<Said>,
    started: Instant,
    arrived: Instant,
    last_token: Option<Instant>,
}

/// Runs jobs until the queue says that it is over.
pub(crate) fn run(answerer: &mut dyn Answerer, queue: &Queue, metrics: &Metrics) {
    let mut worker =
        Worker { answerer, metrics, running: HashMap::new(), waiting: VecDeque::new(), next_ticket: 0 };
    let mut said = Vec::new();
    let mut reused = worker.answerer.reused_tokens();
    loop {
        worker.let_go();
        let wants = worker.waiting.is_empty() && worker.answerer.free_slots() > 0;
        let idle = worker.running.is_empty() && worker.waiting.is_empty();
        match queue.next(wants, idle) {
            Next::Job(job) => {
                worker.waiting.extend(job);
                worker.admit();
                // There may be room for more before the step.
                continue;
            }
            Next::Nothing => worker.admit(),
            Next::Drained | Next::Cut => return,
        }
        if worker.running.is_empty() {
            continue;
        }
        let result = worker.answerer.step(&mut said);
        let before = std::mem::replace(&mut reused, worker.answerer.reused_tokens());
        metrics.reused_tokens.inc_by(reused.saturating_sub(before));
        for (ticket, what) in said.drain(..) {
            worker.pass_on(ticket, what);
        }
        if let Err(error) = result {
            worker.fail_all(&error.to_string());
        }
        metrics.active.set(worker.running.len() as i64);
    }
}

struct Worker<'a> {
    answerer: &'a mut dyn Answerer,
    metrics: &'a Metrics,
    running: HashMap<Ticket, Running>,
    /// The rest of a request that needs more slots than there were.
    waiting: VecDeque<Waiting>,
    next_ticket: Ticket,
}

impl Worker<'_> {
    /// Frees the slots of those whose client has gone.
    fn let_go(&mut self) {
        let gone = self.running.iter().filter(|(_, running)| running.out.is_closed());
        for ticket in gone.map(|(&ticket, _)| ticket).collect::<Vec<_>>() {
            self.answerer.remove(ticket);
            self.running.remove(&ticket);
            self.metrics.cancelled.inc();
        }
        self.waiting.retain(|waiting| !waiting.out.is_closed());
        self.metrics.active.set(self.running.len() as i64);
    }

    fn admit(&mut self) {
        while self.answerer.free_slots() > 0
            && let Some(Waiting { ask, out, arrived }) = self.waiting.pop_front()
        {
            let ticket = self.next_ticket;
            self.next_ticket += 1;
            let prompt = ask.prompt.len() as u64;
            match self.answerer.submit(ticket, ask) {
                Ok(()) => {
                    self.metrics.prompt_tokens.inc_by(prompt);
                    let started = Instant::now();
                    self.running.insert(ticket, Running { out, started, arrived, last_token: None });
                }
                // A client that has gone needs no message.
                Err(error) => drop(out.send(Said::Failed(error.to_string()))),
            }
        }
    }

    fn pass_on(&mut self, ticket: Ticket, what: Said) {
        let Some(running) = self.running.get_mut(&ticket) else { return };
        let gone = match &what {
            Said::Prompt(_) => false,
            Said::Failed(_) => true,
            Said::Token { finish, .. } => {
                let now = Instant::now();
                match running.last_token.replace(now) {
                    None => self.metrics.first_token.observe((now - running.arrived).as_secs_f64()),
                    Some(before) => self.metrics.each_token.observe((now - before).as_secs_f64()),
                }
                self.metrics.generated_tokens.inc();
                finish.is_some()
            }
        };
        // A client that has gone is noticed before the next step.
        let _ = running.out.send(what);
        if gone {
            self.metrics.note_duration(running.started.elapsed());
            self.running.remove(&ticket);
        }
    }

    /// After a failure of the device nothing is known about any sequence.
    fn fail_all(&mut self, reason: &str) {
        tracing::error!("the engine failed: {reason}");
        for (ticket, running) in self.running.drain() {
            self.answerer.remove(ticket);
            let _ = running.out.send(Said::Failed(reason.to_owned()));
        }
    }
}
