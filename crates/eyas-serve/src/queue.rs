//! The bounded queue between handlers and the worker.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::answerer::{Ask, Said};

/// A sequence on its way to the engine, and where what comes of it goes.
///
/// The channel has no bound, so that a slow reader never holds up the engine; an answer's length bounds it.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub ask: Ask,
    pub out: UnboundedSender<Said>,
    pub arrived: Instant,
}

/// The sequences of one request.
type Job = Vec<Waiting>;

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// So many requests wait already.
    Full(usize),
    /// The server is stopping.
    Closed,
}

/// How far the server is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Phase {
    Open,
    /// Nothing new; what runs is finished.
    Draining,
    /// Everything ends now.
    Cut,
}

#[derive(Debug)]
struct State {
    jobs: VecDeque<Job>,
    phase: Phase,
}

/// What the worker is to do next.
#[derive(Debug)]
pub(crate) enum Next {
    /// These sequences, as soon as there are slots.
    Job(Job),
    /// Go on with what there is.
    Nothing,
    /// Nothing will come any more.
    Drained,
    /// Let go of everything.
    Cut,
}

/// Requests that wait for the engine, first come first served.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    limit: usize,
}

impl Queue {
    pub fn new(limit: usize) -> Self {
        let state = State { jobs: VecDeque::new(), phase: Phase::Open };
        Self { state: Mutex::new(state), wake: Condvar::new(), limit }
    }

    /// Adds a request and returns a channel for each of its sequences. Dropping one ends its sequence.
    pub fn push(&self, asks: Vec<Ask>) -> Result<Vec<UnboundedReceiver<Said>>, Refused> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(Refused::Closed);
        }
        // Those whose client has gone hold no place.
        state.jobs.retain(|job| job.iter().any(|waiting| !waiting.out.is_closed()));
        if state.jobs.len() >= self.limit {
            return Err(Refused::Full(state.jobs.len()));
        }
        let arrived = Instant::now();
        let (job, receivers) = asks
            .into_iter()
            .map(|ask| {
                let (out, receiver) = unbounded_channel();
                (Waiting { ask, out, arrived }, receiver)
            })
            .unzip();
        state.jobs.push_back(job);
        self.wake.notify_one();
        Ok(receivers)
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        let state = self.lock();
        state.jobs.iter().filter(|job| job.iter().any(|waiting| !waiting.out.is_closed())).count()
    }

    /// The next request, if `wants` one. Waits for one where `idle` says that there is nothing else to do.
    pub fn next(&self, wants: bool, idle: bool) -> Next {
        let mut state = self.lock();
        loop {
            match state.phase {
                Phase::Cut => return Next::Cut,
                Phase::Draining if idle => return Next::Drained,
                Phase::Draining => return Next::Nothing,
                Phase::Open => {}
            }
            if wants && let Some(job) = state.jobs.pop_front() {
                return Next::Job(job);
            }
            if !idle {
                return Next::Nothing;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether requests are taken.
    pub fn is_open(&self) -> bool {
        self.lock().phase == Phase::Open
    }

    /// Takes nothing new, and lets those go that wait: their channels close.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// Ends what runs, too.
    pub fn cut(&self) {
        self.advance(Phase::Cut);
    }

    fn advance(&self, phase: Phase) {
        let mut state = self.lock();
        if state.phase < phase {
            state.phase = phase;
        }
        state.jobs.clear();
        self.wake.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use eyas_generate::SamplingParams;

    use super::*;

    fn ask(token: u32) -> Ask {
        Ask {
            model: 0,
            prompt: vec![token],
            params: SamplingParams::greedy(),
            stream: 0,
            prompt_logprobs: None,
        }
    }

    #[test]
    fn requests_come_out_in_their_order() {
        let queue = Queue::new(2);
        let _first = queue.push(vec![ask(1), ask(2)]).unwrap();
        let _second = queue.push(vec![ask(3)]).unwrap();
        assert_eq!(queue.push(vec![ask(4)]).unwrap_err(), Refused::Full(2));
        let Next::Job(job) = queue.next(true, true) else { panic!() };
        assert_eq!(job.iter().map(|waiting| waiting.ask.prompt[0]).collect::<Vec<_>>(), [1, 2]);
        assert!(matches!(queue.next(false, false), Next::Nothing));
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn who_has_gone_holds_no_place() {
        let queue = Queue::new(1);
        drop(queue.push(vec![ask(1)]).unwrap());
        assert_eq!(queue.len(), 0);
        let _kept = queue.push(vec![ask(2)]).unwrap();
        let Next::Job(job) = queue.next(true, true) else { panic!() };
        assert_eq!(job[0].ask.prompt, [2]);
    }

    #[test]
    fn draining_lets_those_go_that_wait() {
        let queue = Queue::new(1);
        let mut receivers = queue.push(vec![ask(1)]).unwrap();
        queue.drain();
        assert_eq!(
            receivers[0].try_recv().unwrap_err(),
            tokio::sync::mpsc::error::TryRecvError::Disconnected
        );
        assert_eq!(queue.push(vec![ask(1)]).unwrap_err(), Refused::Closed);
        assert!(matches!(queue.next(true, false), Next::Nothing));
        assert!(matches!(queue.next(true, true), Next::Drained));
        queue.cut();
        queue.drain();
        assert!(matches!(queue.next(true, false), Next::Cut));
    }
}
