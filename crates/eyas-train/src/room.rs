//! The room of a run: rows a micro-batch and the memory for them. It is settled before the first step, and anew where
//! a device turns out to have less memory than was planned with: somebody else has taken it.
//!
//! The rows of a step are the same whatever the room: a smaller micro-batch means more of them. Micro-batches and rows of
//! logits are the same on all replicas, as the device that is shortest of memory allows; which blocks keep their activations
//! is each one's own.

use eyas_backend::memory::host_memory;
use eyas_backend::{Backend, FlatBatch};
use eyas_data::{Example, Sampler};
use eyas_model::LoraLayout;

use crate::engine::{Engine, State, on_replica};
use crate::plan::{self, Role, Shape, TrainingPlan, display_bytes};
use crate::prepare::{Largest, within};
use crate::recipe::{MemoryBudget, Training};
use crate::replica::Replica;
use crate::{Error, Result};

/// How the rows of a step are shared out. The product is always that of the recipe's batch, its accumulation and the
/// replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Rows a micro-batch.
    pub batch: usize,
    /// Micro-batches a step, those of all replicas.
    pub micro_batches: usize,
}

impl Share {
    /// What a recipe asks for on so many replicas.
    pub fn of(training: &Training, replicas: usize) -> Self {
        Self {
            batch: training.per_device_train_batch_size,
            micro_batches: training.gradient_accumulation_steps.saturating_mul(replicas),
        }
    }

    /// The same rows a step in micro-batches of `batch` rows; `None` where they do not divide.
    pub fn with_batch(self, batch: usize) -> Option<Self> {
        let times = self.batch.checked_div(batch).filter(|_| self.batch.is_multiple_of(batch))?;
        Some(Self { batch, micro_batches: self.micro_batches.checked_mul(times)? })
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
    /// One for each replica. The rows of logits are the same in all.
    pub plans: Vec<TrainingPlan>,
    /// The rows held out, in batches that the plans have memory for.
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
    pub replicas: Vec<Replica<'a, B>>,
    pub training: &'a Training,
    pub train: &'a [Example],
    pub eval: &'a [Example],
    pub layout: LoraLayout,
    pub sampler: Sampler,
    /// Passes that the run begins.
    pub epochs: u64,
}

impl<'a, B: Backend> Planner<'a, B> {
    /// Bytes that each replica may take.
    fn budgets(&self, budget: MemoryBudget) -> Result<Vec<Option<u64>>> {
        let of = |(number, replica): (usize, &Replica<'a, B>)| {
            plan::budget(replica.backend, replica.model.footprint(), budget)
                .map_err(|error| on_replica(&self.replicas, number, error))
        };
        self.replicas.iter().enumerate().map(of).collect()
    }

    /// The room for micro-batches of so many rows. `logit_rows` fixes the rows of logits; else all replicas take as few as
    /// the one that is shortest of memory.
    ///
    /// # Errors
    /// [`Error::Memory`] when no plan fits on one of them.
    fn room(&self, share: Share, budgets: &[Option<u64>], logit_rows: Option<usize>) -> Result<Room> {
        let Self { training, train, eval, .. } = self;
        let largest = Largest::of(train, &self.sampler, share.batch, share.micro_batches, self.epochs);
        let longest_eval = eval.iter().map(|example| example.input_ids.len()).max().unwrap_or(0);
        let max_tokens = largest.tokens.max(longest_eval);
        let eval_batches = within(eval, training.per_device_eval_batch_size, max_tokens)?;
        let eval_sequences = eval_batches.iter().map(FlatBatch::sequences).max().unwrap_or(0);
        let replicas = self.replicas.len();
        let host_memory = host_memory().map(|bytes| bytes / replicas.max(1) as u64);
        let plan = |number: usize, logit_rows: Option<usize>| {
            let Replica { backend, model, label } = &self.replicas[number];
            let shape = Shape {
                role: Role::of(number, replicas),
                decoder: model.decoder(),
                layout: &self.layout,
                weights: model.footprint(),
                dtype: backend.compute_dtype(),
                batch: share.batch,
                max_tokens,
                max_sequences: largest.rows.max(eval_sequences),
                max_targets: largest.targets,
                moments: training.optim.moments(),
                host_memory,
            };
            let budget = budgets[number];
            TrainingPlan::new::<B>(&shape, training.gradient_checkpointing, budget, logit_rows).map_err(
                |error| match error {
                    Error::Memory { needed, budget, advice, .. } if replicas > 1 => {
                        Error::Memory { device: Some(label.clone()), needed, budget, advice }
                    }
                    error => error,
                },
            )
        };
        let all =
            |logit_rows| (0..replicas).map(|number| plan(number, logit_rows)).collect::<Result<Vec<_>>>();
        let mut plans = all(logit_rows)?;
        let rows = plans.iter().map(|plan| plan.memory.logit_rows).min();
        if plans.iter().any(|plan| Some(plan.memory.logit_rows) != rows) {
            plans = all(rows)?;
        }
        Ok(Room { share, plans, eval_batches })
    }

    /// The room of a run that has begun: what fits of, in this order, a plan that changes no result, one with fewer rows
    /// of logits, and smaller micro-batches.
    ///
    /// # Errors
    /// [`Error::Memory`] when micro-batches of one row do not fit.
    fn fit(&self, share: Share, budgets: &[Option<u64>], logit_rows: usize) -> Result<Room> {
        let mut share = share;
        loop {
            let room = match self.room(share, budgets, Some(logit_rows)) {
                Err(Error::Memory { .. }) => self.room(share, budgets, None),
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
        let budgets = self.budgets(self.training.memory_budget)?;
        let (planned, mut lacking) = match (self.room(share, &budgets, logit_rows), logit_rows) {
            (Err(Error::Memory { needed, budget, device, .. }), Some(rows)) => {
                let [needed, budget] = [needed, budget].map(display_bytes);
                let on = device.map_or(String::new(), |device| format!(" on {device}"));
                let why = format!("{needed} are needed{on} and {budget} may be taken");
                let asked = self.room(share, &vec![None; budgets.len()], logit_rows)?;
                (self.fit(share, &budgets, rows)?, Some(Lacking { asked, why }))
            }
            (room, _) => (room?, None),
        };
        let (room, engine, error) = self.settle(planned.clone(), state)?;
        if let Some(error) = error {
            lacking = lacking.or(Some(Lacking { asked: planned, why: error.to_string() }));
        }
        Ok((room, engine, lacking))
    }

    /// The room in what is left, after a replica's device lacked memory for one, as the error says; `None` for other errors.
    /// All replicas settle together. That one takes less, whatever is said to be free by now, and no other takes more, so
    /// that trying again comes to an end.
    ///
    /// # Errors
    /// As [`Planner::fit`].
    pub fn refit(&self, failed: &Room, error: &Error) -> Result<Option<Room>> {
        let Some(missing) = error.missing_memory() else { return Ok(None) };
        for (number, replica) in self.replicas.iter().enumerate() {
            replica.backend.release().map_err(|error| on_replica(&self.replicas, number, error.into()))?;
        }
        let allowed = match self.training.memory_budget {
            MemoryBudget::Bytes(bytes) => Some(bytes),
            MemoryBudget::Auto => None,
        };
        let mut budgets = self.budgets(MemoryBudget::Auto)?;
        for (number, (budget, plan)) in budgets.iter_mut().zip(&failed.plans).enumerate() {
            let less = if number == error.replica() { missing } else { 0 };
            let most = plan.total().saturating_sub(less);
            *budget = Some([*budget, allowed].into_iter().flatten().fold(most, u64::min));
        }
        let rows = failed.logit_rows();
        self.fit(failed.share, &budgets, rows).map(Some)
    }

    /// Allocates a room, or one that takes less where a device has no room for it; says why in that case.
    ///
    /// # Errors
    /// When nothing fits, or a device fails.
    pub fn settle(&self, room: Room, state: &State) -> Result<(Room, Engine<'a, B>, Option<Error>)> {
        let mut room = room;
        let mut why = None;
        loop {
            let memory: Vec<_> = room.plans.iter().map(|plan| plan.memory.clone()).collect();
            // Those of the first, which has the optimiser.
            let moments = room.plans.first().map_or_else(Default::default, |plan| plan.moments);
            let layout = self.layout.clone();
            match Engine::resumed(&self.replicas, layout, state, moments, &memory) {
                Ok(engine) => return Ok((room, engine, why)),
                Err(error) => {
                    let Some(smaller) = self.refit(&room, &error)? else { return Err(error) };
                    room = smaller;
                    why = Some(error);
                }
            }
        }
    }
}

impl Room {
    /// Bytes on all devices.
    pub fn total(&self) -> u64 {
        self.plans.iter().map(TrainingPlan::total).sum()
    }

    /// Rows of logits at a time.
    pub fn logit_rows(&self) -> usize {
        self.plans.first().map_or(0, |plan| plan.memory.logit_rows)
    }

    /// Micro-batches of a step that a replica does: `gradient_accumulation_steps`.
    pub fn accumulation(&self) -> usize {
        self.share.micro_batches / self.plans.len().max(1)
    }

    /// One line about a change: what it was, what it is, and what that does to the result.
    pub fn change(&self, to: &Self, why: &str, step: u64, dropout: bool) -> String {
        let what = if self.share != to.share {
            let sums = if dropout {
                "sums are taken in another order and dropout draws other masks"
            } else {
                "only sums are taken in another order"
            };
            format!(
                "per_device_train_batch_size is {} instead of {} and gradient_accumulation_steps {} instead of {}: a \
                 step has the same rows, {sums}",
                to.share.batch,
                self.share.batch,
                to.accumulation(),
                self.accumulation()
            )
        } else if self.logit_rows() != to.logit_rows() {
            format!(
                "{} rows of logits at a time instead of {}: only sums are taken in another order",
                to.logit_rows(),
                self.logit_rows()
            )
        } else {
            let kept = |room: &Self| room.plans.iter().map(TrainingPlan::kept_blocks).sum::<usize>();
            let blocks: usize = to.plans.iter().map(|plan| plan.memory.blocks.len()).sum();
            let host = |room: &Self| display_bytes(room.plans.iter().map(|plan| plan.host).sum());
            let on = if to.plans.len() > 1 { " on all devices together" } else { "" };
            format!(
                "{} of {blocks} blocks keep their activations instead of {}, and {} wait in host memory instead of \
                 {}{on}, which changes no result",
                kept(to),
                kept(self),
                host(to),
                host(self)
            )
        };
        format!(
            "memory that had been free is taken ({why}); the run was planned anew and goes on with step {step} in {} \
             instead of {}: {what}",
            display_bytes(to.total()),
            display_bytes(self.total())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_share_has_the_same_rows() {
        let shares = |batch, micro_batches| {
            let start = Share { batch, micro_batches };
            std::iter::successors(Some(start), |share| share.smaller())
                .map(|share| (share.batch, share.micro_batches))
                .collect::<Vec<_>>()
        };
        assert_eq!(shares(16, 4), [(16, 4), (8, 8), (4, 16), (2, 32), (1, 64)]);
        assert_eq!(shares(18, 1), [(18, 1), (9, 2), (3, 6), (1, 18)]);
        assert_eq!(shares(35, 2), [(35, 2), (7, 10), (1, 70)]);
        assert_eq!(shares(1, 3), [(1, 3)]);
        // Rows without end have no smaller share rather than another number of them.
        assert_eq!(shares(2, usize::MAX), [(2, usize::MAX)]);
        assert_eq!(Share { batch: 6, micro_batches: 1 }.with_batch(4), None);
        assert_eq!(Share { batch: 6, micro_batches: 1 }.with_batch(0), None);
    }
}
