//! A step of generation, recorded where it repeats.

use std::collections::HashMap;

use eyas_backend::Backend;

use crate::Result;
use crate::activations::Workspace;
use crate::block::ActiveAdapter;
use crate::cache::Cache;
use crate::device_batch::DeviceBatch;
use crate::model::Model;

/// Recordings that are kept: a server's sequences come and go, and each number of them is a step of its own.
const MOST: usize = 64;
/// How often a step is tried to be recorded.
const ATTEMPTS: u8 = 3;

/// What a recorded step depends on, see [`Backend::record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Step {
    sequences: usize,
    reach: usize,
    adapter: Option<u64>,
}

#[derive(Debug)]
enum State<R> {
    /// Has run, so that nothing is left to be allocated or tuned, and could not be recorded so many times.
    Seen(u8),
    Recorded(R),
}

/// The steps of a workspace and a cache that a device has recorded. They hold no longer than these.
#[derive(Debug)]
pub struct Recordings<B: Backend>(HashMap<Step, State<B::Recording>>);

impl<B: Backend> Default for Recordings<B> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<B: Backend> Recordings<B> {
    /// Lets go what was recorded with an adapter, whose number may not be given to another before.
    pub fn forget(&mut self, adapter: u64) {
        self.0.retain(|step, _| step.adapter != Some(adapter));
    }

    /// Runs a step: as it is at first, recording it when it comes again, from the recording after that.
    fn run(&mut self, backend: &B, step: Step, mut work: impl FnMut() -> Result<()>) -> Result<()> {
        let failed = match self.0.get(&step) {
            Some(State::Recorded(recording)) if backend.replay(recording)? => return Ok(()),
            Some(State::Recorded(_)) => 0,
            Some(State::Seen(failed)) if *failed >= ATTEMPTS => return work(),
            Some(State::Seen(failed)) => *failed,
            None => {
                work()?;
                if self.0.len() >= MOST {
                    self.0.clear();
                }
                self.0.insert(step, State::Seen(0));
                return Ok(());
            }
        };
        let state = backend.record(work)?.map_or(State::Seen(failed + 1), State::Recorded);
        self.0.insert(step, state);
        Ok(())
    }
}

impl<B: Backend> Model<B> {
    /// Runs a batch that continues the sequences of a cache, up to the logits that follow each sequence's last token.
    /// [`Model::read_last_logits`] reads them. `adapter` comes with a number that is its own.
    ///
    /// A step of one token a sequence may be replayed from a recording. The caller has seen to it that ids, positions and
    /// slots are the model's and the cache's.
    ///
    /// # Errors
    /// When the device fails.
    pub fn decode(
        &self,
        backend: &B,
        batch: &DeviceBatch<B>,
        adapter: Option<(u64, ActiveAdapter<'_, B>)>,
        workspace: &mut Workspace<B>,
        cache: &mut Cache<B>,
        recordings: &mut Recordings<B>,
    ) -> Result<()> {
        let active = adapter.map(|(_, active)| active);
        let mut work = || {
            self.forward_cached(backend, batch, active, workspace, cache)?;
            self.queue_last_logits(backend, batch, workspace)
        };
        if batch.tokens() != batch.sequences() {
            return work();
        }
        let step = Step {
            sequences: batch.sequences(),
            reach: batch.reach(),
            adapter: adapter.map(|(number, _)| number),
        };
        recordings.run(backend, step, work)
    }
}
