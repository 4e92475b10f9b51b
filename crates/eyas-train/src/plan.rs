//! The memory planner: before anything is allocated it decides which blocks keep their activations, which are
//! computed twice, and which of those have their input in host memory meanwhile, so that a run fits the memory it may
//! take.

use std::fmt;

use eyas_backend::{Backend, Dtype, MomentStorage};
use eyas_model::{Decoder, Footprint, LoraLayout, MemoryPlan, Retain, Workspace};

use crate::recipe::{GradientCheckpointing, MemoryBudget};
use crate::{Error, Result};

/// Rows of logits at a time, where it gets tight.
const FEWEST_LOGIT_ROWS: usize = 16;
/// Bytes of a token of the flat batch on a device: id, target, position, slot and the list of rows with a target.
const BATCH_BYTES_PER_TOKEN: u64 = 20;
/// Bytes of a sequence: its end and its slot.
const BATCH_BYTES_PER_SEQUENCE: u64 = 8;

/// What a replica has besides its share of the batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// The only replica: it has the optimiser.
    #[default]
    Alone,
    /// The first of several: it has the optimiser, and in host memory the gradients' sum and the adapter for the others.
    Leader,
    /// One of the others: in host memory it has its gradient.
    Follower,
}

impl Role {
    /// The role of a replica among so many.
    pub fn of(replica: usize, replicas: usize) -> Self {
        match (replica, replicas) {
            (_, 0 | 1) => Self::Alone,
            (0, _) => Self::Leader,
            _ => Self::Follower,
        }
    }

    /// Vectors of the adapter's length in host memory.
    fn vectors(self) -> u64 {
        match self {
            Self::Alone => 0,
            Self::Leader => 2,
            Self::Follower => 1,
        }
    }
}

/// What a run is, as far as one device's memory is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Which of the replicas it is.
    pub role: Role,
    /// The model.
    pub decoder: &'a Decoder,
    /// The adapter.
    pub layout: &'a LoraLayout,
    /// What the weights take.
    pub weights: &'a Footprint,
    /// The type of activations.
    pub dtype: Dtype,
    /// Rows a micro-batch is made of; there may be fewer of them.
    pub batch: usize,
    /// Tokens of the largest micro-batch.
    pub max_tokens: usize,
    /// Rows of the micro-batch that has the most.
    pub max_sequences: usize,
    /// Targets of the micro-batch that has the most.
    pub max_targets: usize,
    /// How the optimiser keeps its moments, where it is.
    pub moments: MomentStorage,
    /// Host memory that this replica may take, where it is apart from the device's; `None` when nobody knows.
    pub host_memory: Option<u64>,
}

/// A plan, and what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingPlan {
    /// What the model is told.
    pub memory: MemoryPlan,
    /// What each part takes, in bytes.
    pub parts: Vec<(&'static str, u64)>,
    /// How the optimiser keeps its moments: paged ones stay on the device where all else fits beside them.
    pub moments: MomentStorage,
    /// Bytes of pinned host memory, apart from the device's: paged moments and blocks' inputs, without the exchange.
    pub host: u64,
    /// Bytes of host memory by which gradients and the adapter go from one replica to another, pinned where it is apart
    /// from the devices'.
    pub exchange: u64,
    /// What the run may take; `None` when nobody knows.
    pub budget: Option<u64>,
}

impl TrainingPlan {
    /// Plans a run: as many blocks keep their activations as fit the budget, since nothing costs as much time as
    /// computing a block twice. As few inputs as that takes go to host memory: their copies run beside a block that takes
    /// longer than they do. The rows of logits shrink only where all that is not enough, unless `logit_rows` fixes
    /// them: the sum of the losses is rounded differently with other rows, so a resumed run keeps those it began with.
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
        // With more rows than targets there is one chunk all the same.
        let rows = logit_rows.unwrap_or(B::LOGIT_ROWS).min(shape.max_targets).max(1);
        if paged_bytes::<B>(shape) > 0 {
            let resident = Shape { moments: MomentStorage { paged: false, ..shape.moments }, ..*shape };
            let plan = Self::with::<B>(&resident, most, 0, rows, budget);
            if fits(&plan) {
                return Ok(plan);
            }
        }
        for kept in (least..=most).rev() {
            for away in 0..=Self::most_away::<B>(shape, kept) {
                let plan = Self::with::<B>(shape, kept, away, rows, budget);
                if fits(&plan) {
                    return Ok(plan);
                }
            }
        }
        let away = Self::most_away::<B>(shape, least);
        let mut rows = rows;
        loop {
            let plan = Self::with::<B>(shape, least, away, rows, budget);
            if fits(&plan) {
                return Ok(plan);
            }
            if rows <= FEWEST_LOGIT_ROWS || logit_rows.is_some() {
                return Err(plan.too_large(least > 0, shape.batch));
            }
            rows = (rows / 2).max(FEWEST_LOGIT_ROWS);
        }
    }

    /// The most inputs that may go to host memory when `kept` blocks keep their activations.
    fn most_away<B: Backend>(shape: &Shape<'_>, kept: usize) -> usize {
        if !B::OFFLOADS {
            return 0;
        }
        let input = (shape.max_tokens * shape.decoder.hidden_size * shape.dtype.size()).max(1) as u64;
        let taken = paged_bytes::<B>(shape) + exchange_bytes(shape);
        let room = shape.host_memory.map_or(u64::MAX, |bytes| bytes.saturating_sub(taken));
        (shape.decoder.blocks() - kept).min(usize::try_from(room / input).unwrap_or(usize::MAX))
    }

    /// The plan that keeps the activations of `kept` blocks and moves the inputs of `away` others to host memory.
    fn with<B: Backend>(
        shape: &Shape<'_>,
        kept: usize,
        away: usize,
        logit_rows: usize,
        budget: Option<u64>,
    ) -> Self {
        let &Shape { decoder, layout, weights, dtype, max_tokens, max_sequences, .. } = shape;
        // The last blocks keep: their activations are the first that the backward frees from use. The first blocks'
        // inputs go: they have the longest to come back.
        let first = decoder.blocks() - kept;
        let blocks = (0..decoder.blocks())
            .map(|block| match block {
                _ if block < away => Retain::RecomputeFromHost,
                _ if block < first => Retain::Recompute,
                _ => Retain::Keep,
            })
            .collect();
        let memory = MemoryPlan { max_tokens, max_sequences, logit_rows, blocks };
        let all = Workspace::<B>::bytes(decoder, Some(layout), &memory, dtype);
        let without_logits = MemoryPlan { logit_rows: 0, ..memory.clone() };
        let activations = Workspace::<B>::bytes(decoder, Some(layout), &without_logits, dtype);
        let vector = vector_bytes(layout.parameters());
        let has_optimizer = shape.role != Role::Follower;
        let scalars = (1 + u64::from(has_optimizer)) * Dtype::F32.size() as u64;
        let batch =
            BATCH_BYTES_PER_TOKEN * max_tokens as u64 + BATCH_BYTES_PER_SEQUENCE * (max_sequences as u64 + 1);
        let step = Workspace::<B>::step_shape(decoder, Some(layout), &memory, dtype, weights);
        let mut parts = vec![
            ("weights", weights.total()),
            ("adapter", vector),
            ("gradient", vector),
            ("activations", activations),
            ("logits", all - activations),
            ("batch", batch + scalars),
        ];
        if has_optimizer {
            parts.insert(3, ("optimiser", B::moment_bytes(layout.parameters(), shape.moments)));
        }
        let scratch = B::scratch_bytes(&step);
        if scratch > 0 {
            parts.push(("scratch", scratch));
        }
        let host = paged_bytes::<B>(shape) + Workspace::<B>::host_bytes(decoder, &memory, dtype);
        let exchange = exchange_bytes(shape);
        Self { memory, parts, moments: shape.moments, host, exchange, budget }
    }

    fn too_large(&self, nothing_recomputed: bool, batch: usize) -> Error {
        let advice = if nothing_recomputed {
            "set gradient_checkpointing = \"auto\", so that blocks are computed twice"
        } else if batch > 1 {
            "halve per_device_train_batch_size and double gradient_accumulation_steps, which gives the same step"
        } else {
            "lower max_length, or take a smaller model or rank"
        };
        let advice = format!("{advice}, or raise memory_budget. It would take:\n{self}");
        Error::Memory { device: None, needed: self.total(), budget: self.budget.unwrap_or(u64::MAX), advice }
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
        let (kept, blocks) = (self.kept_blocks(), self.memory.blocks.len());
        write!(f, "  {} tokens a micro-batch; ", self.memory.max_tokens)?;
        match blocks - kept {
            0 => write!(f, "all {blocks} blocks keep their activations")?,
            twice => {
                write!(f, "{kept} of {blocks} blocks keep their activations, {twice} are computed twice")?
            }
        }
        if self.host > 0 {
            let host = display_bytes(self.host);
            write!(f, "\n  {host} of pinned host memory: ")?;
            match self.memory.on_host() {
                0 => write!(f, "the optimiser's moments")?,
                blocks => write!(f, "the inputs of {blocks} blocks, and moments where they are paged")?,
            }
        }
        if self.exchange > 0 {
            let exchange = display_bytes(self.exchange);
            write!(f, "\n  {exchange} of host memory for gradients and adapter between the devices")?;
        }
        Ok(())
    }
}

/// Bytes that a run may take, weights that are there already included; `None` when nobody knows.
pub(crate) fn budget<B: Backend>(
    backend: &B,
    weights: &Footprint,
    budget: MemoryBudget,
) -> Result<Option<u64>> {
    Ok(match budget {
        MemoryBudget::Bytes(bytes) => Some(bytes),
        MemoryBudget::Auto => backend.free_memory()?.map(|free| free.saturating_add(weights.total())),
    })
}

/// Host memory of paged moments, where it is apart from the device's.
fn paged_bytes<B: Backend>(shape: &Shape<'_>) -> u64 {
    let pages = B::OFFLOADS && shape.moments.paged && shape.role != Role::Follower;
    if pages { shape.moments.bytes(shape.layout.parameters()) } else { 0 }
}

/// Host memory by which gradients and the adapter go from one replica to another.
fn exchange_bytes(shape: &Shape<'_>) -> u64 {
    shape.role.vectors() * vector_bytes(shape.layout.parameters())
}

/// Bytes of the adapter, and of its gradient.
fn vector_bytes(parameters: usize) -> u64 {
    parameters as u64 * Dtype::F32.size() as u64
}

/// Bytes in decimal units, for people.
pub fn display_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
