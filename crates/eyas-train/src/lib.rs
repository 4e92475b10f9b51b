//! The fine-tuning run: recipe, memory plan, loop, optimiser, schedule, checkpoints, metrics.
//!
//! A [`Recipe`] says what is to be done; [`Rows`] are what it is done with; a [`TrainingPlan`] says how memory is
//! laid out; [`Trainer`] does it and tells an [`Observer`]. All of it is generic over the device.

pub mod bench;
pub mod checkpoint;
pub mod engine;
mod error;
mod events;
pub mod loss_scale;
pub mod optimizer;
pub mod plan;
mod prepare;
pub mod recipe;
mod replica;
mod report;
mod resume;
mod room;
mod rows;
mod run;
mod schedule;
mod state;
mod together;
mod trainer;

pub use checkpoint::ExtraFile;
pub use engine::Engine;
pub use error::{Error, Result};
pub use events::{Ending, Evaluation, Event, Observer, Outcome, StepReport, Summary};
pub use plan::TrainingPlan;
pub use recipe::Recipe;
pub use replica::Replica;
pub use rows::{BUILTIN, RowFiles, Rows};
pub use schedule::{LrSchedulerType, Schedule};
pub use state::{LogEntry, TrainerState};
pub use trainer::{Job, Trainer};
