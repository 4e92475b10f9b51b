//! The room of a run: rows a micro-batch and the memory for them. It is settled before the first step, and anew where
//! the device turns out to have less memory than was planned with: somebody else has taken it.
//!
//! The rows of a step are the same whatever the room: a smaller micro-batch means more of them.

use eyas_backend::memory::host_memory;
use eyas_backend::{Backend, FlatBatch};
use eyas_data::{Example, Sampler};
use eyas_model::{LoraLayout, Model};

use crate::engine::{Engine, State};
use crate::plan::{self, Shape, TrainingPlan, display_bytes};
use crate::prepare::{Largest, within};
use crate::recipe::{MemoryBudget, Training};
use crate::{Error, Result};

/// How the rows of a step are shared out. The product is the recipe's, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Rows a micro-batch.
    pub batch: usize,
    /// Micro-batches a step.
    pub accumulation: usize,
}

impl Share {
    /// What a recipe asks for.
    pub fn of(training: &Training) -> Self {
        Self {
            batch: training.per_device_train_batch_size,
            accumulation: training.gradient_accumulation_steps,
        }
    }

    /// The same rows a step in micro-batches of `batch` rows; `None` where they do not divide.
    pub fn with_batch(self, batch: usize) -> Option<Self> {
        let times = self.batch.checked_div(batch).filter(|_| self.batch.is_multiple_of(batch))?;
        Some(Self { batch, accumulation: self.accumulation.checked_mul(times)? })
    }

    /// Micro-batches of half the rows, or of the most that divide them evenly; `None` of one row.
    pub fn smaller(self) -> Option<Self> {
        let odd = || (3..).step_by(2).take_while(|factor| *factor <= self.batch / factor);
        let factor = match self.batch {
            0 | 1 => return None,
            batch if batch.is_multiple_of(2) => 2,
            batch => odd().find(|factor| batch.is_multiple_of(*factor)).unwrap_or(batch),
        };
        self.with_batch(self.batch / factor)
    }
}

/// What a run has settled for.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    pub share: Share,
    pub plan: TrainingPlan,
    /// The rows held out, in batches that the plan has memory for.
    pub eval_batches: Vec<FlatBatch>,
}

/// A room that was not to be had.
#[derive(Debug)]
pub(crate) struct Lacking {
    pub asked: Room,
    pub why: String,
}

/// What a run needs room for.
#[derive(Debug)]
pub(crate) struct Planner<'a, B: Backend> {
    pub backend: &'a B,
    pub model: &'a Model<B>,
    pub training: &'a Training,
    pub train: &'a [Example],
    pub eval: &'a [Example],
    pub layout: LoraLayout,
    pub sampler: Sampler,
    /// Passes that the run begins.
    pub epochs: u64,
}

impl<'a, B: Backend> Planner<'a, B> {
    /// Bytes that the run may take.
    fn budget(&self) -> Result<Option<u64>> {
        plan::budget(self.backend, self.model.footprint(), self.training.memory_budget)
    }

    /// The room for micro-batches of so many rows. `logit_rows` fixes the rows of logits.
    ///
    /// # Errors
    /// [`Error::Memory`] when no plan fits.
    fn room(&self, share: Share, budget: Option<u64>, logit_rows: Option<usize>) -> Result<Room> {
        let Self { backend, model, training, train, eval, .. } = *self;
        let largest = Largest::of(train, &self.sampler, share.batch, share.accumulation, self.epochs);
        let longest_eval = eval.iter().map(|example| example.input_ids.len()).max().unwrap_or(0);
        let max_tokens = largest.tokens.max(longest_eval);
        let eval_batches = within(eval, training.per_device_eval_batch_size, max_tokens)?;
        let eval_sequences = eval_batches.iter().map(FlatBatch::sequences).max().unwrap_or(0);
        let shape = Shape {
            decoder: model.decoder(),
            layout: &self.layout,
            weights: model.footprint(),
            dtype: backend.compute_dtype(),
            batch: share.batch,
            max_tokens,
            max_sequences: largest.rows.max(eval_sequences),
            max_targets: largest.targets,
            moments: training.optim.moments(),
            host_memory: host_memory(),
        };
        let plan = TrainingPlan::new::<B>(&shape, training.gradient_checkpointing, budget, logit_rows)?;
        Ok(Room { share, plan, eval_batches })
    }

    /// The room of a run that has begun: what fits of, in this order, a plan that changes no result, one with fewer rows
    /// of logits, and smaller micro-batches.
    ///
    /// # Errors
    /// [`Error::Memory`] when micro-batches of one row do not fit.
    fn fit(&self, share: Share, budget: Option<u64>, logit_rows: usize) -> Result<Room> {
        let mut share = share;
        loop {
            let room = match self.room(share, budget, Some(logit_rows)) {
                Err(Error::Memory { .. }) => self.room(share, budget, None),
                room => room,
            };
            share = match (room, share.smaller()) {
                (Err(Error::Memory { .. }), Some(smaller)) => smaller,
                (room, _) => return room,
            };
        }
    }

    /// The room to start with, allocated. With `logit_rows` the run has begun before, with so many rows of logits. Where
    /// the room takes less than was asked for, that one comes along.
    ///
    /// # Errors
    /// [`Error::Memory`] when no plan of a new run fits, or none at all of one that has begun.
    pub fn start(
        &self,
        share: Share,
        logit_rows: Option<usize>,
        state: &State,
    ) -> Result<(Room, Engine<'a, B>, Option<Lacking>)> {
        let budget = self.budget()?;
        let (planned, mut lacking) = match (self.room(share, budget, logit_rows), logit_rows) {
            (Err(Error::Memory { needed, budget: allowed, .. }), Some(rows)) => {
                let [needed, allowed] = [needed, allowed].map(display_bytes);
                let why = format!("{needed} are needed and {allowed} may be taken");
                let asked = self.room(share, None, logit_rows)?;
                (self.fit(share, budget, rows)?, Some(Lacking { asked, why }))
            }
            (room, _) => (room?, None),
        };
        let (room, engine, error) = self.settle(planned.clone(), state)?;
        if let Some(error) = error {
            lacking = lacking.or(Some(Lacking { asked: planned, why: error.to_string() }));
        }
        Ok((room, engine, lacking))
    }

    /// The room in what is left, after the device lacked `missing` bytes for one. It takes less, whatever is said to
    /// be free by now, so that trying again comes to an end.
    ///
    /// # Errors
    /// As [`Planner::fit`].
    pub fn refit(&self, failed: &Room, missing: u64) -> Result<Room> {
        self.backend.release()?;
        let (backend, weights) = (self.backend, self.model.footprint());
        let free = plan::budget(backend, weights, MemoryBudget::Auto)?;
        let allowed = match self.training.memory_budget {
            MemoryBudget::Bytes(bytes) => Some(bytes),
            MemoryBudget::Auto => None,
        };
        let less = failed.plan.total().saturating_sub(missing.max(1));
        let budget = [free, allowed].into_iter().flatten().fold(less, u64::min);
        self.fit(failed.share, Some(budget), failed.plan.memory.logit_rows)
    }

    /// Allocates a room, or one that takes less where the device has no room for it; says why in that case.
    ///
    /// # Errors
    /// When nothing fits, or the device fails.
    pub fn settle(&self, room: Room, state: &State) -> Result<(Room, Engine<'a, B>, Option<Error>)> {
        let mut room = room;
        let mut why = None;
        loop {
            let TrainingPlan { memory, moments, .. } = room.plan.clone();
            let layout = self.layout.clone();
            match Engine::resumed(self.backend, self.model, layout, state, moments, memory) {
                Ok(engine) => return Ok((room, engine, why)),
                Err(error) => {
                    let Some(missing) = error.missing_memory() else { return Err(error) };
                    room = self.refit(&room, missing)?;
                    why = Some(error);
                }
            }
        }
    }
}

impl Room {
    /// One line about a change: what it was, what it is, and what that does to the result.
    pub fn change(&self, to: &Self, why: &str, step: u64, dropout: bool) -> String {
        let (before, after) = (&self.plan, &to.plan);
        let what = if self.share != to.share {
            let sums = if dropout {
                "sums are taken in another order and dropout draws other masks"
            } else {
                "only sums are taken in another order"
            };
            format!(
                "per_device_train_batch_size is {} instead of {} and gradient_accumulation_steps {} instead of {}: a \
                 step has the same rows, {sums}",
                to.share.batch, self.share.batch, to.share.accumulation, self.share.accumulation
            )
        } else if before.memory.logit_rows != after.memory.logit_rows {
            format!(
                "{} rows of logits at a time instead of {}: only sums are taken in another order",
                after.memory.logit_rows, before.memory.logit_rows
            )
        } else {
            format!(
                "{} of {} blocks keep their activations instead of {}, and {} wait in host memory instead of {}, \
                 which changes no result",
                after.kept_blocks(),
                after.memory.blocks.len(),
                before.kept_blocks(),
                display_bytes(after.host),
                display_bytes(before.host)
            )
        };
        format!(
            "memory that had been free is taken ({why}); the run was planned anew and goes on with step {step} in {} \
             instead of {}: {what}",
            display_bytes(after.total()),
            display_bytes(before.total())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_share_has_the_same_rows() {
        let shares = |batch, accumulation| {
            let start = Share { batch, accumulation };
            std::iter::successors(Some(start), |share| share.smaller())
                .map(|share| (share.batch, share.accumulation))
                .collect::<Vec<_>>()
        };
        assert_eq!(shares(16, 4), [(16, 4), (8, 8), (4, 16), (2, 32), (1, 64)]);
        assert_eq!(shares(18, 1), [(18, 1), (9, 2), (3, 6), (1, 18)]);
        assert_eq!(shares(35, 2), [(35, 2), (7, 10), (1, 70)]);
        assert_eq!(shares(1, 3), [(1, 3)]);
        // Rows without end have no smaller share rather than another number of them.
        assert_eq!(shares(2, usize::MAX), [(2, usize::MAX)]);
        assert_eq!(Share { batch: 6, accumulation: 1 }.with_batch(4), None);
        assert_eq!(Share { batch: 6, accumulation: 1 }.with_batch(0), None);
    }
}
