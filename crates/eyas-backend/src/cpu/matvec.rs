//! Products of a few rows: each weight is read once, from memory to registers, and meets all of them.
//!
//! Generation is bound by the reading of the weights, so 4-bit codes are looked up with byte shuffles and multiplied
//! right there: as exact `f32` values, or as [`integer`]s where the products of many rows are narrow as well. Nothing is
//! rounded more coarsely than a product of many rows would round it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod dense;
#[cfg(target_arch = "x86_64")]
mod integer;
mod portable;

use std::ops::Range;

use half::{bf16, f16};

use super::CpuWeight;
use super::awake::stay_awake;
use super::decode::{Codebook, STEP};
use super::product::Output;
use super::scratch::{Buffer, Scratch};
use super::simd::Level;
use super::tasks::in_order;
use super::weight::{Elements, FourBit, read_scales};

/// Most rows that are multiplied this way.
pub(super) const TOKENS: usize = 8;
/// Weights that make a task worth handing over.
const TASK: usize = 1 << 15;

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

/// The few rows, `stride` elements apart, in the order of columns that a kernel asks for.
#[derive(Clone, Copy, Debug)]
struct Few<'a> {
    values: &'a [f32],
    stride: usize,
}

/// Bytes that memory is asked for ahead of their use. Where a page ends the processor itself would not.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 2048;

/// Rows of a weight that a call of an inner loop takes at most: enough for the call not to matter.
const ROWS: usize = 16;

/// The inner loops: rows of a weight times `T` rows of `x`. There are as many rows as `sums`, each of which has a fixed
/// order for each implementation.
trait Dot {
    /// How `x` is to be ordered for [`Dot::four_bit`]: element `i` of each group is column
    /// `FOUR_BIT_ORDER[i]` of it. Rows are filled up with zeros to whole groups.
    const FOUR_BIT_ORDER: &'static [usize];
    /// How `x` is to be ordered for [`Dot::bf16`]. What is left after the last whole group stays in order.
    const BF16_ORDER: &'static [usize];
    /// Depths that [`Dot::four_bit`] takes are multiples of it; zero where it takes none.
    const FOUR_BIT_STEP: usize;

    fn f32<const T: usize>(rows: &[f32], x: Few<'_>, sums: &mut [[f32; T]]);
    fn f16<const T: usize>(rows: &[f16], x: Few<'_>, sums: &mut [[f32; T]]);
    fn bf16<const T: usize>(rows: &[bf16], x: Few<'_>, sums: &mut [[f32; T]]);
    /// The scale of element `i` is `scales[(first + i) >> shift]`.
    fn four_bit<const T: usize>(rows: FourBitRows<'_>, x: Few<'_>, sums: &mut [[f32; T]]);
}

/// An element of a dense row.
trait Dense: Copy {
    fn to_f32(self) -> f32;
}

impl Dense for f32 {
    fn to_f32(self) -> f32 {
        self
    }
}

impl Dense for f16 {
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

impl Dense for bf16 {
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Some whole rows of 4-bit codes.
#[derive(Clone, Copy, Debug)]
struct FourBitRows<'a> {
    book: &'a Codebook,
    codes: &'a [u8],
    /// The first code's number, counted from the beginning of the first scale's block.
    first: usize,
    /// A block is `1 << shift` codes.
    shift: u32,
    scales: &'a [f32],
}

impl FourBitRows<'_> {
    /// The codes of each of `rows` rows.
    ///
    /// # Panics
    /// When a row is not whole steps, or a code has no scale.
    fn check(&self, rows: usize) -> usize {
        let codes = self.codes.len() * 2;
        assert!(codes.is_multiple_of(rows.max(1) * STEP), "rows are whole steps");
        assert!(codes == 0 || (self.first + codes - 1) >> self.shift < self.scales.len(), "too few scales");
        codes / rows.max(1)
    }
}

/// `out (+)= x W^T + bias + update` of every job.
pub(super) struct Multiply<'a> {
    pub scratch: &'a Scratch,
    /// At most [`TOKENS`].
    pub tokens: usize,
    pub depth: usize,
    /// `[tokens, depth]`.
    pub x: &'a [f32],
    pub jobs: &'a [Job<'a>],
    pub out: Output<'a>,
    pub add: bool,
    /// Keeps 4-bit codes and `x` in `f32`.
    pub exact: bool,
}

impl Multiply<'_> {
    /// Computes it, with the best instructions of the processor.
    pub fn run(self) {
        match Level::detect() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => self.run_with::<avx512::Avx512>(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => self.run_with::<avx2::Avx2>(),
            Level::Portable => self.run_with::<portable::Portable>(),
        }
    }

    fn run_with<D: Dot>(self) {
        let Self { scratch, tokens, depth, x, jobs, out, add, exact } = self;
        stay_awake();
        let any = |test: &dyn Fn(&Elements) -> bool| {
            jobs.iter().any(|job| matches!(job.weight, Rows::Weight(weight) if test(weight.elements())))
        };
        let ordered = |needed: bool, order, stride| {
            let mut ordered = scratch.take::<f32>(if needed { tokens * stride } else { 0 });
            if needed {
                reorder(x, depth, order, stride, &mut ordered);
            }
            ordered
        };
        let in_integers =
            |elements: &Elements| !exact && D::FOUR_BIT_STEP > 0 && has_integers(elements, depth);
        let four_bit = any(&|elements| matches!(elements, Elements::FourBit(_)) && !in_integers(elements));
        let whole_groups = depth.next_multiple_of(D::FOUR_BIT_ORDER.len().max(1));
        let groups = ordered(four_bit && D::FOUR_BIT_STEP > 0, D::FOUR_BIT_ORDER, whole_groups);
        let pairs = ordered(any(&|elements| matches!(elements, Elements::Bf16(_))), D::BF16_ORDER, depth);
        #[cfg(target_arch = "x86_64")]
        let integers = any(&in_integers).then(|| integer::Quantised::new(scratch, x, depth));
        let product = Product::<D> {
            scratch,
            depth,
            x,
            groups,
            pairs,
            #[cfg(target_arch = "x86_64")]
            integers,
            out,
            add,
            dot: std::marker::PhantomData,
        };
        // Large tasks read memory in long runs; there are enough of them for threads to end together.
        let weights = depth * jobs.iter().map(|job| job.rows).sum::<usize>();
        let task = (weights / (32 * rayon::current_num_threads())).clamp(TASK, 8 * TASK);
        let rows = (task / depth.max(1)).next_multiple_of(ROWS);
        let tasks: Vec<_> = jobs
            .iter()
            .flat_map(|job| {
                (0..job.rows).step_by(rows).map(move |row| (job, row..(row + rows).min(job.rows)))
            })
            .collect();
        in_order(&tasks, |(job, rows)| match tokens {
            0 => {}
            1 => product.rows::<1>(job, rows.clone()),
            2 => product.rows::<2>(job, rows.clone()),
            3 => product.rows::<3>(job, rows.clone()),
            4 => product.rows::<4>(job, rows.clone()),
            5 => product.rows::<5>(job, rows.clone()),
            6 => product.rows::<6>(job, rows.clone()),
            7 => product.rows::<7>(job, rows.clone()),
            8 => product.rows::<8>(job, rows.clone()),
            _ => unreachable!("{tokens} rows are not few"),
        });
    }
}

/// Whether a weight of this depth can be multiplied in integers.
fn has_integers(elements: &Elements, depth: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let Elements::FourBit(four_bit) = elements {
        return integer::Quantised::fits(depth, four_bit.weight.block_size().trailing_zeros());
    }
    let _ = (elements, depth);
    false
}

/// Orders the columns of whole groups of every row. The rest stay as they are where the rows of `out` are no longer than
/// those of `x`; where they reach to the end of a group, it is ordered too, with zeros for what is missing.
fn reorder(x: &[f32], depth: usize, order: &[usize], stride: usize, out: &mut [f32]) {
    if order.is_empty() || depth == 0 {
        return out.copy_from_slice(x);
    }
    for (x, out) in x.chunks_exact(depth).zip(out.chunks_exact_mut(stride)) {
        for (x, out) in x.chunks(order.len()).zip(out.chunks_mut(order.len())) {
            if out.len() < order.len() {
                out.copy_from_slice(x);
                continue;
            }
            for (out, &i) in out.iter_mut().zip(order) {
                *out = x.get(i).copied().unwrap_or(0.0);
            }
        }
    }
}

/// Checks that `x` has `rows` rows of `depth` elements.
#[cfg(target_arch = "x86_64")]
fn check(x: Few<'_>, rows: usize, depth: usize) {
    assert!((rows - 1) * x.stride + depth <= x.values.len(), "too few elements in x");
}

struct Product<'a, D> {
    scratch: &'a Scratch,
    depth: usize,
    x: &'a [f32],
    /// `x` in [`Dot::FOUR_BIT_ORDER`] and in [`Dot::BF16_ORDER`], where a job needs it.
    groups: Buffer<'a, f32>,
    pairs: Buffer<'a, f32>,
    /// `x` in integers, for the jobs whose weights can be read so.
    #[cfg(target_arch = "x86_64")]
    integers: Option<integer::Quantised<'a>>,
    out: Output<'a>,
    add: bool,
    dot: std::marker::PhantomData<fn() -> D>,
}

impl<D: Dot> Product<'_, D> {
    /// Some rows of a job: columns of the output.
    fn rows<const T: usize>(&self, job: &Job<'_>, rows: Range<usize>) {
        let depth = self.depth;
        let few = |values| Few { values, stride: depth };
        let (plain, pairs) = (few(self.x), few(&self.pairs));
        let groups = Few { values: &self.groups, stride: self.groups.len() / T };
        let whole = |run: Range<usize>| run.start * depth..run.end * depth;
        match job.weight {
            Rows::Matrix(values) => {
                self.runs::<T>(job, rows, |run, sums| D::f32(&values[whole(run)], plain, sums));
            }
            Rows::Weight(weight) => match weight.elements() {
                Elements::F32(values) => {
                    self.runs::<T>(job, rows, |run, sums| D::f32(&values[whole(run)], plain, sums));
                }
                Elements::F16(values) => {
                    self.runs::<T>(job, rows, |run, sums| D::f16(&values[whole(run)], plain, sums));
                }
                Elements::Bf16(values) => {
                    self.runs::<T>(job, rows, |run, sums| D::bf16(&values[whole(run)], pairs, sums));
                }
                Elements::FourBit(codes)
                    if D::FOUR_BIT_STEP > 0 && depth.is_multiple_of(D::FOUR_BIT_STEP) =>
                {
                    self.four_bit::<T>(job, rows, codes, groups);
                }
                Elements::FourBit(_) => {
                    let mut buffer = self.scratch.take::<f32>(depth);
                    self.runs::<T>(job, rows, |run, sums| {
                        for (row, sums) in run.zip(sums.chunks_mut(1)) {
                            weight.read(row, 0, &mut buffer);
                            D::f32(&buffer, plain, sums);
                        }
                    });
                }
            },
        }
    }

    fn four_bit<const T: usize>(&self, job: &Job<'_>, rows: Range<usize>, four_bit: &FourBit, x: Few<'_>) {
        let FourBit { weight, book } = four_bit;
        let (depth, shift) = (self.depth, weight.block_size().trailing_zeros());
        let first_block = (rows.start * depth) >> shift;
        let blocks = (rows.end * depth).div_ceil(weight.block_size()) - first_block;
        let mut scales = self.scratch.take::<f32>(blocks);
        read_scales(weight.absmax(), first_block, &mut scales);
        self.runs::<T>(job, rows, |run, sums| {
            let (first, end) = (run.start * depth, run.end * depth);
            let codes = &weight.packed()[first / 2..end / 2];
            let first = first - (first_block << shift);
            let run = FourBitRows { book, codes, first, shift, scales: &scales };
            #[cfg(target_arch = "x86_64")]
            if let Some(integers) = self.integers.as_ref().filter(|_| integer::Quantised::fits(depth, shift))
            {
                return integers.four_bit(run, sums);
            }
            D::four_bit(run, x, sums);
        });
    }

    /// Writes what `dot` finds for each run of at most [`ROWS`] rows.
    fn runs<const T: usize>(
        &self,
        job: &Job<'_>,
        rows: Range<usize>,
        mut dot: impl FnMut(Range<usize>, &mut [[f32; T]]),
    ) {
        let mut sums = [[0.0; T]; ROWS];
        for start in rows.clone().step_by(ROWS) {
            let run = start..(start + ROWS).min(rows.end);
            let sums = &mut sums[..run.len()];
            dot(run.clone(), sums);
            self.write(job, run, sums);
        }
    }

    /// Writes the sums of some rows, with their updates and biases.
    fn write<const T: usize>(&self, job: &Job<'_>, rows: Range<usize>, sums: &mut [[f32; T]]) {
        if let Some(Update { b, r, scaling, hidden, stride }) = job.update {
            let mut updates = [[0.0; T]; ROWS];
            let updates = &mut updates[..rows.len()];
            D::f32(&b[rows.start * r..rows.end * r], Few { values: hidden, stride }, updates);
            for (sum, update) in sums.as_flattened_mut().iter_mut().zip(updates.as_flattened()) {
                *sum += scaling * update;
            }
        }
        for (row, sums) in rows.zip(sums) {
            let (col, bias) = (job.col + row, job.bias.map_or(0.0, |bias| bias[row]));
            for (token, sum) in sums.iter().enumerate() {
                // SAFETY: the jobs' columns do not overlap, and a row of a job belongs to one task.
                let out = unsafe { self.out.row(token, col..col + 1) };
                out[0] = if self.add { out[0] + (sum + bias) } else { sum + bias };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_arch = "x86_64")]
    use portable::Portable;

    /// An implementation against the portable one, on three rows of every storage, so that each must find its own.
    #[cfg(target_arch = "x86_64")]
    fn check_rows<D: Dot, const T: usize>(depth: usize) {
        const ROWS: usize = 3;
        let stride = depth + 3;
        let x: Vec<f32> = (0..T * stride).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let few = Few { values: &x, stride };
        let agree = |dot: &dyn Fn(&mut [[f32; T]]), portable: &dyn Fn(&mut [[f32; T]])| {
            let (mut got, mut want) = ([[f32::NAN; T]; ROWS], [[f32::NAN; T]; ROWS]);
            dot(&mut got);
            portable(&mut want);
            for (a, b) in got.as_flattened().iter().zip(want.as_flattened()) {
                assert!((a - b).abs() < 1e-4, "{depth} x {T}: {a} {b}");
            }
        };
        let rows: Vec<f32> = (0..ROWS * depth).map(|i| (i % 89 * 53 % 97) as f32 / 48.0 - 1.0).collect();
        agree(&|sums| D::f32(&rows, few, sums), &|sums| Portable::f32(&rows, few, sums));
        let half: Vec<f16> = rows.iter().map(|&v| f16::from_f32(v)).collect();
        agree(&|sums| D::f16(&half, few, sums), &|sums| Portable::f16(&half, few, sums));
        let half: Vec<bf16> = rows.iter().map(|&v| bf16::from_f32(v)).collect();
        let mut ordered = x.clone();
        for (x, out) in x.chunks_exact(stride).zip(ordered.chunks_exact_mut(stride)) {
            reorder(&x[..depth], depth, D::BF16_ORDER, depth, &mut out[..depth]);
        }
        let pairs = Few { values: &ordered, stride };
        agree(&|sums| D::bf16(&half, pairs, sums), &|sums| Portable::bf16(&half, few, sums));

        // 4-bit codes after some of another row, with blocks of every kind of place.
        let depth = depth / D::FOUR_BIT_STEP * D::FOUR_BIT_STEP;
        let packed = depth.next_multiple_of(D::FOUR_BIT_ORDER.len());
        let mut ordered = vec![f32::NAN; T * packed];
        for (x, out) in x.chunks_exact(stride).zip(ordered.chunks_exact_mut(packed.max(1))) {
            reorder(&x[..depth], depth, D::FOUR_BIT_ORDER, packed, out);
        }
        let book = Codebook::new(&std::array::from_fn(|i| (i as f32 * 1.7).sin()));
        let codes: Vec<u8> = (0..ROWS * depth / 2).map(|i| (i * 167 + 13) as u8).collect();
        for first in [0, 32, 64, 96] {
            for shift in [5, 6, 7, 12] {
                let end = first + ROWS * depth;
                let scales: Vec<f32> = (0..end.div_ceil(1 << shift)).map(|i| 0.1 + i as f32 * 0.01).collect();
                let rows = FourBitRows { book: &book, codes: &codes, first, shift, scales: &scales };
                let groups = Few { values: &ordered, stride: packed };
                agree(&|sums| D::four_bit(rows, groups, sums), &|sums| Portable::four_bit(rows, few, sums));
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn check_all<D: Dot>() {
        for depth in [0, 1, 7, 8, 16, 31, 32, 33, 64, 100, 192, 200, 416] {
            check_rows::<D, 1>(depth);
            check_rows::<D, 2>(depth);
            check_rows::<D, 5>(depth);
            check_rows::<D, 8>(depth);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn vector_and_portable_forms_agree() {
        if Level::detect() >= Level::Avx2 {
            check_all::<avx2::Avx2>();
        }
        if Level::detect() >= Level::Avx512 {
            check_all::<avx512::Avx512>();
        } else {
            eprintln!("skipped: this processor has no AVX-512");
        }
    }

    #[test]
    fn groups_are_reordered_and_the_rest_kept() {
        let x: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let mut out = vec![0.0; 10];
        reorder(&x, 5, &[1, 0], 5, &mut out);
        assert_eq!(out, [1.0, 0.0, 3.0, 2.0, 4.0, 6.0, 5.0, 8.0, 7.0, 9.0]);
        let mut out = vec![f32::NAN; 12];
        reorder(&x, 5, &[1, 0], 6, &mut out);
        assert_eq!(out, [1.0, 0.0, 3.0, 2.0, 0.0, 4.0, 6.0, 5.0, 8.0, 7.0, 0.0, 9.0]);
    }
}
