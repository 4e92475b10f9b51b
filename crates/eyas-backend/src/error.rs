//! What can go wrong in a backend.

/// An error of a backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A batch that cannot be built or does not fit the tensors it is used with.
    #[error("batch: {0}")]
    Batch(String),
    /// Operands whose shapes do not fit together.
    #[error("{op}: {reason}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// Which operand is wrong, and what was expected.
        reason: String,
    },
    /// The device has no room for an allocation.
    #[error("out of memory on {device}: {requested} bytes asked for, {available} bytes free")]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// Bytes asked for.
        requested: u64,
        /// Bytes free when they were asked for.
        available: u64,
    },
    /// The device or its libraries cannot be used.
    #[error("{device}: {reason}")]
    Device {
        /// The device's name.
        device: String,
        /// What failed, and what to do.
        reason: String,
    },
    /// A quantised weight that is not well formed.
    #[error(transparent)]
    Quant(#[from] eyas_quant::Error),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
