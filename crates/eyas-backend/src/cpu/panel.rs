//! The right-hand operands of the products, packed into the panels that the kernels read.
//!
//! A panel holds `NR` columns: for each [`Kernel::STEP`] elements along the depth, those of the first column, of the
//! second, and so on. It is made right before it is used, from 4-bit codes too, so that no dequantised copy of a
//! weight exists beyond the block of it in the cache.

mod layout;

use std::ops::Range;

use super::CpuWeight;
use super::dropout::Kept;
use super::microkernel::Kernel;
use super::simd::vectorised;
pub(super) use layout::Layout;

/// Where the right-hand operand `b` `[depth, cols]` of a product comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// `b = W`.
    Weight(&'a CpuWeight),
    /// `b = W^T`.
    WeightTransposed(&'a CpuWeight),
    /// `b = scale * M`, rows of `M` `stride` elements apart.
    Matrix { values: &'a [f32], stride: usize, scale: f32 },
    /// `b = scale * M^T`.
    MatrixTransposed { values: &'a [f32], stride: usize, scale: f32 },
    /// `b = dropout(M)`: rows are tokens.
    Dropped { values: &'a [f32], stride: usize, kept: &'a Kept<'a> },
}

impl Source<'_> {
    /// Whether a row of the source is a column of `b`.
    fn is_transposed(&self) -> bool {
        matches!(self, Self::WeightTransposed(_) | Self::MatrixTransposed { .. })
    }

    /// Reads part of a row of the source.
    fn read(&self, row: usize, col: usize, out: &mut [f32]) {
        match *self {
            Self::Weight(weight) | Self::WeightTransposed(weight) => weight.read(row, col, out),
            Self::Matrix { values, stride, scale } | Self::MatrixTransposed { values, stride, scale } => {
                prefetch(values, (row + AHEAD) * stride + col, out.len());
                scaled(&values[row * stride + col..][..out.len()], scale, out);
            }
            Self::Dropped { values, stride, kept } => {
                prefetch(values, (row + AHEAD) * stride + col, out.len());
                kept.apply::<false>(row, col, &values[row * stride + col..][..out.len()], out);
            }
        }
    }
}

vectorised! {
    /// `out = scale * source`
    fn scaled(source: &[f32], scale: f32, out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(source) {
            *out = value * scale;
        }
    }
}

/// Rows that are fetched ahead: a block's rows are far apart, which the processor does not foresee.
const AHEAD: usize = 8;

/// Asks for elements to be brought into the cache, as far as they exist.
#[inline]
fn prefetch(values: &[f32], first: usize, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in values.get(first..).unwrap_or_default().chunks(16).take(len.div_ceil(16)) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, which changes nothing a program can see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

/// The depth as packed.
pub(super) const fn padded_depth<K: Kernel>(depth: usize) -> usize {
    depth.next_multiple_of(K::GRAIN)
}

/// Elements of the panels of `depth x cols`.
pub(super) const fn panels_len<K: Kernel>(depth: usize, cols: usize) -> usize {
    padded_depth::<K>(depth) * cols.next_multiple_of(K::NR)
}

/// Most of the depth that is staged at a time: with 32 columns it stays in the first-level cache.
const STAGED: usize = 256;

/// `f32` values that [`pack`] needs to work in.
pub(super) const fn staging_len<K: Kernel>(depth: usize, cols: usize) -> usize {
    let padded = padded_depth::<K>(depth);
    let transposed = if padded < STAGED { padded } else { STAGED } * K::NR;
    let straight = cols.next_multiple_of(K::NR) * K::STEP;
    if transposed > straight { transposed } else { straight }
}

/// Packs columns `cols` of `b` at depths `depth`, filling up with zeros.
///
/// `staging` and `panels` are as long as [`staging_len`] and [`panels_len`] say.
pub(super) fn pack<K: Kernel>(
    source: &Source<'_>,
    depth: Range<usize>,
    cols: Range<usize>,
    staging: &mut [f32],
    panels: &mut [K::Element],
) {
    let padded = padded_depth::<K>(depth.len());
    let panel_len = padded * K::NR;
    if source.is_transposed() {
        let pieces = padded.div_ceil(STAGED).max(1);
        let piece = padded.div_ceil(pieces).next_multiple_of(32).clamp(1, STAGED);
        for (p, panel) in
            panels[..panels_len::<K>(depth.len(), cols.len())].chunks_exact_mut(panel_len.max(1)).enumerate()
        {
            for (start, panel) in (depth.start..).step_by(piece).zip(panel.chunks_mut(piece * K::NR)) {
                let len = panel.len() / K::NR;
                let staging = &mut staging[..panel.len()];
                let present = depth.end.saturating_sub(start).min(len);
                for (j, row) in staging.chunks_exact_mut(len).enumerate() {
                    let col = cols.start + p * K::NR + j;
                    if col < cols.end && present > 0 {
                        source.read(col, start, &mut row[..present]);
                        row[present..].fill(0.0);
                    } else {
                        row.fill(0.0);
                    }
                }
                K::Element::pack_columns(staging, panel, K::NR);
            }
        }
        return;
    }
    let width = cols.len().next_multiple_of(K::NR);
    let staging = &mut staging[..width * K::STEP];
    for step in 0..padded / K::STEP {
        for (k, row) in staging.chunks_exact_mut(width).enumerate() {
            let k = depth.start + step * K::STEP + k;
            if k < depth.end {
                source.read(k, cols.start, &mut row[..cols.len()]);
                row[cols.len()..].fill(0.0);
            } else {
                row.fill(0.0);
            }
        }
        for p in 0..width / K::NR {
            let panel = &mut panels[p * panel_len + step * K::NR * K::STEP..][..K::NR * K::STEP];
            K::Element::pack_rows(staging, width, p * K::NR, panel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::microkernel::{Element, PortableBf16, PortableF32};
    use super::*;

    fn check<K: Kernel>() {
        let (rows, cols) = (150, 70);
        let values: Vec<f32> = (0..rows * cols).map(|i| (i % 251) as f32).collect();
        for (depth, width) in [(1, 1), (2, 16), (7, 33), (8, 32), (64, 40), (70, 70)] {
            for transposed in [false, true] {
                let source = if transposed {
                    Source::MatrixTransposed { values: &values, stride: cols, scale: 1.0 }
                } else {
                    Source::Matrix { values: &values, stride: cols, scale: 1.0 }
                };
                let first = 70 - depth.max(width);
                let mut staging = vec![f32::NAN; staging_len::<K>(depth, width)];
                let mut panels = vec![K::Element::narrow(f32::NAN); panels_len::<K>(depth, width)];
                pack::<K>(&source, first..first + depth, first..first + width, &mut staging, &mut panels);
                let padded = padded_depth::<K>(depth);
                for j in 0..width.next_multiple_of(K::NR) {
                    for k in 0..padded {
                        let at = j / K::NR * K::NR * padded
                            + k / K::STEP * K::STEP * K::NR
                            + j % K::NR * K::STEP
                            + k % K::STEP;
                        let (row, col) =
                            if transposed { (first + j, first + k) } else { (first + k, first + j) };
                        let inside = j < width && k < depth;
                        let expected = if inside { values[row * cols + col] } else { 0.0 };
                        assert_eq!(
                            panels[at].widen(),
                            expected,
                            "{depth} x {width} {transposed} at {k}, {j}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn panels_hold_each_column_in_its_place() {
        check::<PortableF32>();
        check::<PortableBf16>();
        check::<crate::cpu::amx::EmulatedAmx>();
    }
}
