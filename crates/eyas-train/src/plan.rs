//! The memory planner: before anything is allocated it decides which blocks keep their activations and which are
//! computed twice, so that a run fits the memory it may take.

use std::fmt;

use eyas_backend::{Backend, Dtype, MomentStorage};
use eyas_model::{Decoder, Footprint, LoraLayout, MemoryPlan, Retain, Workspace};

use crate::optimizer::Optimizer;
use crate::recipe::GradientCheckpointing;
use crate::{Error, Result};

/// Rows of logits at a time, where it gets tight.
const FEWEST_LOGIT_ROWS: usize = 16;
/// Bytes of a token of the flat batch on a device: id, target, position, slot and the list of rows with a target.
const BATCH_BYTES_PER_TOKEN: u64 = 20;
/// Bytes of a sequence: its end and its slot.
const BATCH_BYTES_PER_SEQUENCE: u64 = 8;

/// What a run is, as far as memory is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// The model.
    pub decoder: &'a Decoder,
    /// The adapter.
    pub layout: &'a LoraLayout,
    /// What the weights take.
    pub weights: &'a Footprint,
    /// The type of activations.
    pub dtype: Dtype,
    /// Tokens of the largest micro-batch.
    pub max_tokens: usize,
    /// Rows of the micro-batch that has the most.
    pub max_sequences: usize,
    /// Targets of the micro-batch that has the most.
    pub max_targets: usize,
    /// How the optimiser keeps its moments.
    pub moments: MomentStorage,
}

/// A plan, and what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingPlan {
    /// What the model is told.
    pub memory: MemoryPlan,
    /// What each part takes, in bytes.
    pub parts: Vec<(&'static str, u64)>,
    /// What the run may take; `None` when nobody knows.
    pub budget: Option<u64>,
}

impl TrainingPlan {
    /// Plans a run: as many blocks keep their activations as fit the budget. The rows of logits shrink only where
    /// computing every block twice is not enough, unless `logit_rows` fixes them: the sum of the losses is rounded
    /// differently with other rows, so a resumed run keeps those it began with.
    ///
    /// # Errors
    /// [`Error::Memory`] when the most sparing plan does not fit either.
    pub fn new<B: Backend>(
        shape: &Shape<'_>,
        gradient_checkpointing: GradientCheckpointing,
        budget: Option<u64>,
        logit_rows: Option<usize>,
    ) -> Result<Self> {
        let blocks = shape.decoder.blocks();
        let (least, most) = match gradient_checkpointing {
            GradientCheckpointing::Auto => (0, blocks),
            GradientCheckpointing::Always => (0, 0),
            GradientCheckpointing::Never => (blocks, blocks),
        };
        let fits = |plan: &Self| budget.is_none_or(|budget| plan.total() <= budget);
        let rows = logit_rows.unwrap_or(B::LOGIT_ROWS.min(shape.max_targets.max(1))).max(1);
        for kept in (least..=most).rev() {
            let plan = Self::with::<B>(shape, kept, rows, budget);
            if fits(&plan) {
                return Ok(plan);
            }
        }
        let mut rows = rows;
        loop {
            let plan = Self::with::<B>(shape, least, rows, budget);
            if fits(&plan) {
                return Ok(plan);
            }
            if rows <= FEWEST_LOGIT_ROWS || logit_rows.is_some() {
                return Err(plan.too_large(least > 0, shape.max_sequences));
            }
            rows = (rows / 2).max(FEWEST_LOGIT_ROWS);
        }
    }

    /// The plan that keeps the activations of `kept` blocks.
    fn with<B: Backend>(shape: &Shape<'_>, kept: usize, logit_rows: usize, budget: Option<u64>) -> Self {
        let &Shape { decoder, layout, weights, dtype, max_tokens, max_sequences, .. } = shape;
        // The last blocks keep: their activations are the first that the backward frees from use.
        let first = decoder.blocks() - kept;
        let blocks = (0..decoder.blocks())
            .map(|block| if block < first { Retain::Recompute } else { Retain::Keep })
            .collect();
        let memory = MemoryPlan { max_tokens, max_sequences, logit_rows, blocks };
        let all = Workspace::<B>::bytes(decoder, Some(layout), &memory, dtype);
        let without_logits = MemoryPlan { logit_rows: 0, ..memory.clone() };
        let activations = Workspace::<B>::bytes(decoder, Some(layout), &without_logits, dtype);
        let vector = Optimizer::<B>::vector_bytes(layout.parameters());
        let scalars = 2 * Dtype::F32.size() as u64;
        let batch =
            BATCH_BYTES_PER_TOKEN * max_tokens as u64 + BATCH_BYTES_PER_SEQUENCE * (max_sequences as u64 + 1);
        let step = Workspace::<B>::step_shape(decoder, Some(layout), &memory, dtype, weights);
        let mut parts = vec![
            ("weights", weights.total()),
            ("adapter", vector),
            ("gradient", vector),
            ("optimiser", B::moment_bytes(layout.parameters(), shape.moments)),
            ("activations", activations),
            ("logits", all - activations),
            ("batch", batch + scalars),
        ];
        let scratch = B::scratch_bytes(&step);
        if scratch > 0 {
            parts.push(("scratch", scratch));
        }
        Self { memory, parts, budget }
    }

    fn too_large(&self, nothing_recomputed: bool, sequences: usize) -> Error {
        let advice = if nothing_recomputed {
            "set gradient_checkpointing = \"auto\", so that blocks are computed twice"
        } else if sequences > 1 {
            "halve per_device_train_batch_size and double gradient_accumulation_steps, which gives the same step"
        } else {
            "lower max_length, or take a smaller model or rank"
        };
        let advice = format!("{advice}, or raise memory_budget. It would take:\n{self}");
        Error::Memory { needed: self.total(), budget: self.budget.unwrap_or(u64::MAX), advice }
    }

    /// All of it, in bytes.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Blocks that keep their activations.
    pub fn kept_blocks(&self) -> usize {
        self.memory.blocks.iter().filter(|retain| **retain == Retain::Keep).count()
    }
}

impl fmt::Display for TrainingPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (part, bytes) in &self.parts {
            writeln!(f, "  {part:<12} {:>10}", display_bytes(*bytes))?;
        }
        writeln!(f, "  {:<12} {:>10}", "total", display_bytes(self.total()))?;
        write!(
            f,
            "  {} tokens a micro-batch; {} of {} blocks keep their activations, the rest are computed twice",
            self.memory.max_tokens,
            self.kept_blocks(),
            self.memory.blocks.len()
        )
    }
}

/// Bytes in decimal units, for people.
pub fn display_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
