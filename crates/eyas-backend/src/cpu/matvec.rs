//! Products of a few rows: each weight is read once, from memory to registers, and meets all of them.

use rayon::prelude::*;

use super::CpuWeight;
use super::product::Output;
use super::scratch::Scratch;

/// Most rows that are multiplied this way.
pub(super) const TOKENS: usize = 8;
/// Rows of a weight that a task takes.
const ROWS: usize = 32;

/// The rows of a job.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows<'a> {
    /// A frozen weight, `[rows, depth]`.
    Weight(&'a CpuWeight),
    /// `[rows, depth]`, dense.
    Matrix(&'a [f32]),
}

/// `scaling * hidden B^T`, added to a job's output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Update<'a> {
    /// `[rows, r]`.
    pub b: &'a [f32],
    pub r: usize,
    pub scaling: f32,
    /// `[tokens, r]`, rows `stride` apart.
    pub hidden: &'a [f32],
    pub stride: usize,
}

/// Output columns `col .. col + rows`: `x W^T + bias + update`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job<'a> {
    pub weight: Rows<'a>,
    pub rows: usize,
    pub col: usize,
    pub bias: Option<&'a [f32]>,
    pub update: Option<Update<'a>>,
}

/// `out (+)= x W^T + bias + update` of every job; `x` `[tokens, depth]`.
pub(super) fn multiply(
    scratch: &Scratch,
    tokens: usize,
    depth: usize,
    x: &[f32],
    jobs: &[Job<'_>],
    out: Output<'_>,
    add: bool,
) {
    let tasks: Vec<_> =
        jobs.iter().flat_map(|job| (0..job.rows).step_by(ROWS).map(move |row| (job, row))).collect();
    tasks.into_par_iter().for_each(|(job, first)| {
        let mut buffer = scratch.take::<f32>(depth);
        for row in first..(first + ROWS).min(job.rows) {
            let weights = match job.weight {
                Rows::Weight(weight) => {
                    weight.read(row, 0, &mut buffer);
                    &buffer[..]
                }
                Rows::Matrix(values) => &values[row * depth..][..depth],
            };
            for token in 0..tokens {
                let mut sum = dot(weights, &x[token * depth..][..depth]);
                if let Some(bias) = job.bias {
                    sum += bias[row];
                }
                if let Some(update) = job.update {
                    let b = &update.b[row * update.r..][..update.r];
                    sum += update.scaling * dot(b, &update.hidden[token * update.stride..][..update.r]);
                }
                let col = job.col + row;
                // SAFETY: the jobs' columns do not overlap, and a row of a job belongs to one task.
                let out = unsafe { &mut out.at(token, col).row(0, 0..1)[0] };
                *out = if add { *out + sum } else { sum };
            }
        }
    });
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a16.zip(b16) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + tail
}
