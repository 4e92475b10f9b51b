//! What a run tells while it goes on: for progress bars, and for tests.

use std::path::{Path, PathBuf};

use eyas_model::LoraAdapter;

use crate::plan::TrainingPlan;
use crate::recipe::Reporter;
use crate::state::LogEntry;

/// Something that happened in a run.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run is about to begin, or to go on.
    Started(&'a Summary),
    /// Something that the user should know. The run goes on.
    Warning(&'a str),
    /// Metrics are being written for a program that shows them.
    Reporting {
        /// The program.
        reporter: Reporter,
        /// What to point it at.
        folder: &'a Path,
    },
    /// A micro-batch of the current step is through.
    MicroBatch {
        /// Micro-batches of the step that are through.
        done: usize,
        /// Micro-batches of the step.
        of: usize,
    },
    /// A step was taken.
    Step(&'a StepReport),
    /// An entry was added to `log_history`.
    Logged(&'a LogEntry),
    /// A batch of an evaluation is through.
    EvaluationBatch {
        /// Batches that are through.
        done: usize,
        /// Batches of the evaluation.
        of: usize,
    },
    /// The held-out rows were evaluated.
    Evaluated(&'a Evaluation),
    /// A checkpoint is on the disk, whole.
    Saved {
        /// Its step.
        step: u64,
        /// Its folder.
        folder: &'a Path,
    },
    /// The run is over; the adapter is in the output folder.
    Finished(&'a Outcome),
}

/// Who is told. Any `FnMut(&Event<'_>)` will do.
pub trait Observer {
    /// Takes note of an event.
    fn event(&mut self, event: &Event<'_>);
}

impl<F: FnMut(&Event<'_>)> Observer for F {
    fn event(&mut self, event: &Event<'_>) {
        self(event);
    }
}

/// What a run is going to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The device, or the devices.
    pub device: String,
    /// What each replica of the model is called.
    pub replicas: Vec<String>,
    /// How memory is laid out, for each replica.
    pub plans: Vec<TrainingPlan>,
    /// Parameters of the adapter.
    pub trainable_parameters: u64,
    /// Parameters of the base.
    pub base_parameters: u64,
    /// Rows trained on.
    pub train_rows: usize,
    /// Rows held out.
    pub eval_rows: usize,
    /// Tokens of all rows trained on.
    pub train_tokens: u64,
    /// Steps of the run.
    pub max_steps: u64,
    /// Steps of a pass over the rows.
    pub steps_per_epoch: u64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Steps taken already.
    pub global_step: u64,
    /// The checkpoint that the run goes on from.
    pub resumed_from: Option<PathBuf>,
}

/// A step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub global_step: u64,
    /// Steps of the run.
    pub max_steps: u64,
    /// Passes over the rows so far.
    pub epoch: f64,
    /// Mean cross-entropy of the step's targets, before the update.
    pub loss: f64,
    /// Norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// The learning rate used.
    pub learning_rate: f64,
    /// Tokens of the step.
    pub tokens: usize,
    /// Seconds it took.
    pub seconds: f64,
    /// Bytes in use on each device, or by the process where the device's memory is its own; empty where they do not tell.
    pub memory: Vec<u64>,
}

/// An evaluation of the held-out rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// After how many steps.
    pub global_step: u64,
    /// Mean cross-entropy over all targets.
    pub loss: f64,
    /// Its exponential.
    pub perplexity: f64,
    /// Rows.
    pub rows: usize,
    /// Batches.
    pub batches: usize,
    /// Tokens.
    pub tokens: u64,
    /// Tokens that were to be predicted.
    pub target_tokens: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All steps were taken.
    Finished,
    /// It was asked to stop. A checkpoint is on the disk if a step had been taken.
    Interrupted,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// Steps taken.
    pub global_step: u64,
    /// Mean loss of all steps.
    pub train_loss: f64,
    /// Seconds of training, evaluations and checkpoints not counted.
    pub train_seconds: f64,
    /// Tokens trained on.
    pub num_tokens: u64,
    /// The evaluation before the first step of this process, or the one before it was resumed.
    pub first_evaluation: Option<f64>,
    /// The last evaluation.
    pub last_evaluation: Option<f64>,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// The adapter as it is now.
    pub adapter: LoraAdapter,
}
