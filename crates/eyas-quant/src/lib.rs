//! 4-bit quantisation as bitsandbytes stores it: NF4, FP4, double quantisation.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer or block size that does not fit the shape.
    #[error("{0}")]
    Shape(String),
}
