//! What can go wrong in a run.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder that cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A recipe that is no TOML.
    #[error("{origin}:{line}: not valid TOML: {reason}")]
    RecipeSyntax {
        /// The file.
        origin: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A key or value of a recipe that makes no sense.
    #[error("{place}: {reason}")]
    Recipe {
        /// The file and line, or the argument.
        place: String,
        /// The key, what is wrong with it, and what to do.
        reason: String,
    },
    /// A run that does not fit into the memory it may take.
    #[error(
        "the run needs at least {needed}{on} and may take {budget}; {advice}",
        needed = crate::plan::display_bytes(*.needed), budget = crate::plan::display_bytes(*.budget),
        on = .device.as_ref().map_or(String::new(), |device| format!(" on {device}"))
    )]
    Memory {
        /// The replica that it does not fit on, where there are several.
        device: Option<String>,
        /// Bytes of the most sparing plan.
        needed: u64,
        /// Bytes that the run may take.
        budget: u64,
        /// Which setting to change.
        advice: String,
    },
    /// Rows that cannot be trained on.
    #[error("{0}")]
    Rows(String),
    /// A loss or gradient that is not finite.
    #[error("step {step}: the {what} is {value}; {advice}")]
    NotFinite {
        /// The step that was not taken, counted from 1.
        step: u64,
        /// Loss or gradient norm.
        what: &'static str,
        /// Its value.
        value: f32,
        /// What to do, and where the last checkpoint is.
        advice: String,
    },
    /// A checkpoint that could not be written. The one before it is whole.
    #[error("step {step}: the checkpoint could not be written: {reason}; {last}")]
    Save {
        /// The step that was to be saved.
        step: u64,
        /// What failed, and what to do.
        reason: String,
        /// Which checkpoint is whole.
        last: String,
    },
    /// A checkpoint that is damaged or incomplete.
    #[error("checkpoint {path}: {reason}", path = .path.display())]
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint of another run.
    #[error("checkpoint {path} belongs to another run: {differences}; {advice}", path = .path.display())]
    OtherRun {
        /// Its folder.
        path: PathBuf,
        /// What differs, with both values.
        differences: String,
        /// What to do.
        advice: &'static str,
    },
    /// An output folder that holds an earlier run.
    #[error(
        "{path} holds {checkpoint} of an earlier run; go on from it with resume_from_checkpoint = true, choose \
         another output_dir, or replace it with overwrite_output_dir = true", path = .path.display()
    )]
    OutputInUse {
        /// The output folder.
        path: PathBuf,
        /// The newest checkpoint in it.
        checkpoint: String,
    },
    /// Replicas that do not go together.
    #[error("{0}")]
    Replicas(String),
    /// One of several replicas that failed.
    #[error("{label}: {source}")]
    OnReplica {
        /// Its number.
        replica: usize,
        /// What it is called.
        label: String,
        /// What failed.
        source: Box<Error>,
    },
    /// A fault of the program on a replica's thread.
    #[error("a fault in the program stopped it: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// A thread that the system did not start.
    #[error("a thread cannot be started: {source}")]
    Thread {
        /// What the system said.
        source: std::io::Error,
    },
    /// The model or the adapter.
    #[error(transparent)]
    Model(#[from] eyas_model::Error),
    /// The device.
    #[error(transparent)]
    Backend(#[from] eyas_backend::Error),
    /// A file of weights.
    #[error(transparent)]
    Weights(#[from] eyas_checkpoint::Error),
    /// The rows.
    #[error(transparent)]
    Data(#[from] eyas_data::Error),
}

impl Error {
    /// How many bytes the device lacked at least, where it had no room; `None` for every other error.
    pub fn missing_memory(&self) -> Option<u64> {
        match self {
            Self::Backend(error) | Self::Model(eyas_model::Error::Backend(error)) => match error {
                eyas_backend::Error::OutOfMemory { requested, available, .. } => {
                    Some(requested.saturating_sub(*available).max(1))
                }
                _ => None,
            },
            Self::OnReplica { source, .. } => source.missing_memory(),
            _ => None,
        }
    }

    /// The replica that failed: the first where there is only one.
    pub(crate) fn replica(&self) -> usize {
        match self {
            Self::OnReplica { replica, .. } => *replica,
            _ => 0,
        }
    }
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
