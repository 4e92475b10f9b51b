//! Parity of a backend's operations with a plain `f64` reference.
//!
//! Each file holds a group of operations: the reference, written to be read as their specification, and the cases it
//! is tried on. Inputs are random from a fixed seed, of awkward sizes, and rounded to the backend's types before the
//! reference sees them. Every output has a row beyond the batch, which an operation must leave alone, and starts
//! with noise, which one that sets its output must overwrite.

pub(crate) mod activation;
mod attention;
mod elementwise;
mod loss;
mod norm;
mod optimizer;
mod project;
mod rope;
mod weight;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::spec::Dtype;
use crate::{Backend, DeviceTensor, FlatBatch, IGNORE_INDEX, Result};

/// The operations of [`Backend`] that [`check`] compares.
pub const OPS: [&str; 32] = [
    "clear",
    "offload",
    "download_weight",
    "embed",
    "norm",
    "norm_backward",
    "head_norm",
    "head_norm_backward",
    "add",
    "copy",
    "copy_rows",
    "project",
    "project_backward",
    "rope",
    "rope (inverse)",
    "attention",
    "attention_backward",
    "cache_write",
    "cache_write (rope)",
    "attention_cached",
    "activation",
    "activation_backward",
    "gather_targets",
    "gather_last",
    "scatter_targets",
    "cross_entropy",
    "cross_entropy (gradient)",
    "grad_norm",
    "adamw",
    "adamw (8 bits)",
    "adamw (paged)",
    "load_quantized",
];

/// How far one output of an operation is from the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct OpParity {
    /// The operation, one of [`OPS`].
    pub op: &'static str,
    /// What it was tried on.
    pub case: String,
    /// Euclidean norm of the difference, relative to the reference's; NaN when an output is not a number.
    pub error: f64,
    /// What the error may be.
    pub tolerance: f64,
}

impl OpParity {
    /// Whether the error is within the tolerance. NaN never is.
    pub fn passes(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// Compares every operation of `backend` with the reference.
///
/// `matmul` is the type that the operands of projections are rounded to, where it is narrower than the
/// activations': a CPU's bf16 kernel, say. It widens the tolerance of projections, and nothing else does.
///
/// # Errors
/// When an operation fails. One that gives a wrong result is a row that does not pass.
pub fn check<B: Backend>(backend: &B, matmul: Dtype) -> Result<Vec<OpParity>> {
    let mut checker =
        Checker { backend, matmul, rng: ChaCha8Rng::seed_from_u64(20_240_711), rows: Vec::new() };
    elementwise::check(&mut checker)?;
    weight::check(&mut checker)?;
    norm::check(&mut checker)?;
    rope::check(&mut checker)?;
    activation::check(&mut checker)?;
    loss::check(&mut checker)?;
    optimizer::check(&mut checker)?;
    project::check(&mut checker)?;
    attention::check(&mut checker)?;
    Ok(checker.rows)
}

/// What rounding to a type may do to a result, a few units in the last place over a sum.
fn tolerance(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 2e-6,
        Dtype::F16 => 2e-3,
        Dtype::Bf16 => 1e-2,
    }
}

/// `|got - want| / |want|` in the Euclidean norm, or `|got|` where the reference is zero. NaN when lengths differ or
/// an element is NaN; infinities of the reference must be met exactly.
fn relative_error(got: &[f32], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::NAN;
    }
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&got, &want) in got.iter().zip(want) {
        let got = f64::from(got);
        if want.is_infinite() {
            if got != want {
                return f64::NAN;
            }
            continue;
        }
        difference += (got - want) * (got - want);
        norm += want * want;
    }
    if norm > 0.0 { (difference / norm).sqrt() } else { difference.sqrt() }
}

/// A tensor on the device and what it holds, as the device has rounded it.
struct Operand<B: Backend> {
    tensor: B::Tensor,
    values: Vec<f64>,
}

/// The backend under test, the source of its inputs, and the results so far.
struct Checker<'a, B> {
    backend: &'a B,
    matmul: Dtype,
    rng: ChaCha8Rng,
    rows: Vec<OpParity>,
}

impl<B: Backend> Checker<'_, B> {
    /// Values of the standard normal distribution (Box and Muller 1958).
    fn normal(&mut self, len: usize) -> Vec<f32> {
        let mut uniform = || self.rng.random::<f64>();
        (0..len)
            .map(|_| {
                let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
                (radius * (std::f64::consts::TAU * uniform()).cos()) as f32
            })
            .collect()
    }

    /// A tensor of given values.
    fn operand(&self, dtype: Dtype, cols: usize, values: &[f32]) -> Result<Operand<B>> {
        let mut tensor = self.backend.zeros(dtype, values.len() / cols, cols)?;
        self.backend.upload(values, &mut tensor)?;
        let values = self.values(&tensor)?.into_iter().map(f64::from).collect();
        Ok(Operand { tensor, values })
    }

    /// A tensor of normal values in the type of activations.
    fn activation(&mut self, rows: usize, cols: usize) -> Result<Operand<B>> {
        let values = self.normal(rows * cols);
        self.operand(self.backend.compute_dtype(), cols, &values)
    }

    /// A tensor of normal values in `f32`, about `centre`.
    fn parameter(&mut self, rows: usize, cols: usize, centre: f32) -> Result<Operand<B>> {
        let values: Vec<f32> = self.normal(rows * cols).into_iter().map(|x| centre + x / 4.0).collect();
        self.operand(Dtype::F32, cols, &values)
    }

    fn values(&self, tensor: &B::Tensor) -> Result<Vec<f32>> {
        let (rows, cols) = tensor.shape();
        let mut values = vec![0.0; rows * cols];
        self.backend.download(tensor, &mut values)?;
        Ok(values)
    }

    /// Records the distance of a whole tensor from `want`, which the untouched rest of `before` completes. The
    /// tolerance is that of the tensor's type.
    fn compare(
        &mut self,
        op: &'static str,
        case: impl Into<String>,
        got: &B::Tensor,
        want: &[f64],
        before: &[f64],
    ) -> Result<()> {
        self.compare_within(op, case, got, want, before, tolerance(got.dtype()))
    }

    /// As [`Checker::compare`], within a tolerance of the caller's.
    fn compare_within(
        &mut self,
        op: &'static str,
        case: impl Into<String>,
        got: &B::Tensor,
        want: &[f64],
        before: &[f64],
        tolerance: f64,
    ) -> Result<()> {
        let got = self.values(got)?;
        let (written, untouched) = got.split_at(want.len().min(got.len()));
        let mut error = relative_error(written, want);
        if relative_error(untouched, before.get(want.len()..).unwrap_or_default()) != 0.0 {
            error = f64::NAN;
        }
        self.rows.push(OpParity { op, case: case.into(), error, tolerance });
        Ok(())
    }

    /// Loads sequences of these lengths with random ids and targets below `vocab`, about two in three of which count.
    fn batch(&mut self, lengths: &[usize], vocab: u32) -> Result<(B::Batch, FlatBatch)> {
        let mut batch = FlatBatch::new();
        for &length in lengths {
            let ids: Vec<u32> = (0..length).map(|_| self.rng.random_range(0..vocab)).collect();
            let targets: Vec<i32> = (0..length)
                .map(|_| match self.rng.random_range(0..3) {
                    0 => IGNORE_INDEX,
                    _ => self.rng.random_range(0..vocab) as i32,
                })
                .collect();
            batch.push(&ids, &targets)?;
        }
        Ok((self.load(&batch)?, batch))
    }

    fn load(&self, batch: &FlatBatch) -> Result<B::Batch> {
        let mut device = self.backend.new_batch(batch.tokens() + 3, batch.sequences() + 1)?;
        self.backend.load_batch(batch, &mut device)?;
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(error: f64) -> bool {
        OpParity { op: "add", case: String::new(), error, tolerance: 1e-6 }.passes()
    }

    #[test]
    fn a_wrong_result_is_noticed() {
        assert!(passes(relative_error(&[1.0, 2.0], &[1.0, 2.0])));
        assert!(passes(relative_error(&[1.0, f32::NEG_INFINITY], &[1.0, f64::NEG_INFINITY])));
        for (got, want) in [
            (&[1.0, 2.00001][..], &[1.0, 2.0][..]),
            (&[1.0, f32::NAN], &[1.0, 2.0]),
            (&[1.0, f32::NAN], &[1.0, f64::NAN]),
            (&[1.0, f32::INFINITY], &[1.0, 2.0]),
            (&[1.0, 2.0], &[1.0, f64::INFINITY]),
            (&[1.0], &[1.0, 2.0]),
            (&[1e-3, 0.0], &[0.0, 0.0]),
        ] {
            assert!(!passes(relative_error(got, want)), "{got:?} passes for {want:?}");
        }
    }
}
