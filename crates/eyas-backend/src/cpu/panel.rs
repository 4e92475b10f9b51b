//! The right-hand operands of the products, packed into the panels that the kernels read.
//!
//! A panel holds `NR` columns: for each 32-bit word along the depth, an element or a pair of them, that of the first
//! column, of the second, and so on. It is made right before it is used, from 4-bit codes too, so that no dequantised copy of a
//! weight exists beyond the block of it in the cache.

mod grouped;
mod layout;

use std::ops::Range;

use super::CpuWeight;
use super::dropout::Kept;
use super::microkernel::Kernel;
use super::simd::vectorised;
pub(super) use grouped::quantise;
pub(super) use layout::Layout;
#[cfg(test)]
pub(super) use layout::to_bf16;

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

/// Elements that a row or a column of this depth takes, its groups' scales included.
pub(super) const fn packed_len<K: Kernel>(depth: usize) -> usize {
    let padded = padded_depth::<K>(depth);
    padded + padded.div_ceil(K::Element::GROUP) * K::Element::SCALE
}

/// Where depth `start` lies in a row, at the beginning of a group.
pub(super) const fn packed_at<E: Layout>(start: usize) -> usize {
    start + start / E::GROUP * E::SCALE
}

/// Elements of the panels of `depth x cols`.
pub(super) const fn panels_len<K: Kernel>(depth: usize, cols: usize) -> usize {
    packed_len::<K>(depth) * cols.next_multiple_of(K::NR)
}

/// Rows of a source that are staged together, where a row of it is a row of a panel.
const fn staged_rows<K: Kernel>(depth: usize) -> usize {
    if K::Element::SCALE == 0 {
        K::Element::PER_WORD
    } else if padded_depth::<K>(depth) < K::Element::GROUP {
        padded_depth::<K>(depth)
    } else {
        K::Element::GROUP
    }
}

/// Most of the depth that is staged at a time: with 32 columns it stays in the first-level cache.
const STAGED: usize = 256;

/// `f32` values that [`pack`] needs to work in.
pub(super) const fn staging_len<K: Kernel>(depth: usize, cols: usize) -> usize {
    let padded = padded_depth::<K>(depth);
    let transposed = if padded < STAGED { padded } else { STAGED } * K::NR;
    let straight = cols.next_multiple_of(K::NR) * staged_rows::<K>(depth);
    if transposed > straight { transposed } else { straight }
}

/// Packs columns `cols` of `b` at depths `depth`, filling up with zeros.
///
/// `depth` begins a group. `staging` and `panels` are as long as [`staging_len`] and [`panels_len`] say.
pub(super) fn pack<K: Kernel>(
    source: &Source<'_>,
    depth: Range<usize>,
    cols: Range<usize>,
    staging: &mut [f32],
    panels: &mut [K::Element],
) {
    let padded = padded_depth::<K>(depth.len());
    let panel_len = packed_len::<K>(depth.len()) * K::NR;
    let scale = K::Element::SCALE;
    if source.is_transposed() {
        let pieces = padded.div_ceil(STAGED).max(1);
        let piece = padded.div_ceil(pieces).next_multiple_of(32).clamp(1, STAGED);
        let piece = piece.min(K::Element::GROUP);
        for (p, panel) in
            panels[..panels_len::<K>(depth.len(), cols.len())].chunks_exact_mut(panel_len.max(1)).enumerate()
        {
            let chunks = panel.chunks_mut((piece + scale) * K::NR);
            for (start, panel) in (depth.start..).step_by(piece).zip(chunks) {
                let len = panel.len() / K::NR - scale;
                let staging = &mut staging[..len * K::NR];
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
    let staged = staged_rows::<K>(depth.len());
    for first in (0..padded).step_by(staged.max(1)) {
        let rows = staged.min(padded - first);
        let staging = &mut staging[..width * rows];
        for (k, row) in staging.chunks_exact_mut(width).enumerate() {
            let k = depth.start + first + k;
            if k < depth.end {
                source.read(k, cols.start, &mut row[..cols.len()]);
                row[cols.len()..].fill(0.0);
            } else {
                row.fill(0.0);
            }
        }
        for p in 0..width / K::NR {
            let panel = &mut panels[p * panel_len + packed_at::<K::Element>(first) * K::NR..]
                [..(rows + scale) * K::NR];
            K::Element::pack_rows(staging, width, p * K::NR, panel, K::NR);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::microkernel::{PortableBf16, PortableF32, PortableI16};
    use super::*;

    /// An element, without its scale.
    trait Plain: Copy {
        const UNUSED: Self;
        fn widen(self) -> f32;
    }

    impl Plain for f32 {
        const UNUSED: Self = Self::NAN;
        fn widen(self) -> f32 {
            self
        }
    }

    impl Plain for bf16 {
        const UNUSED: Self = Self::NAN;
        fn widen(self) -> f32 {
            self.to_f32()
        }
    }

    fn check<K: Kernel<Element: Plain>>() {
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
                let mut panels = vec![K::Element::UNUSED; panels_len::<K>(depth, width)];
                pack::<K>(&source, first..first + depth, first..first + width, &mut staging, &mut panels);
                let padded = padded_depth::<K>(depth);
                for j in 0..width.next_multiple_of(K::NR) {
                    for k in 0..padded {
                        let at = j / K::NR * K::NR * padded
                            + k / K::Element::PER_WORD * K::Element::PER_WORD * K::NR
                            + j % K::NR * K::Element::PER_WORD
                            + k % K::Element::PER_WORD;
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

    /// Both ways to pack give the same integers and scales, and these are the values within half a step of each group.
    #[test]
    fn groups_hold_the_values_within_half_a_step() {
        check_groups::<PortableI16<16>>();
        check_groups::<PortableI16<32>>();
    }

    fn check_groups<K: Kernel<Element = i16>>() {
        let (rows, cols) = (300, 40);
        // Each column has its own magnitude, and one its outlier.
        let value = |row: usize, col: usize| {
            let outlier = if (row, col) == (200, 3) { 1000.0 } else { 1.0 };
            ((row * 37 + col * 11) % 251) as f32 * 1.3f32.powi(col as i32 - 20) * outlier - 0.1
        };
        let straight: Vec<f32> = (0..rows * cols).map(|i| value(i / cols, i % cols)).collect();
        let transposed: Vec<f32> = (0..rows * cols).map(|i| value(i % rows, i / rows)).collect();
        let pack = |source: Source<'_>| {
            let mut staging = vec![f32::NAN; staging_len::<K>(rows, cols)];
            let mut panels = vec![i16::MAX; panels_len::<K>(rows, cols)];
            pack::<K>(&source, 0..rows, 0..cols, &mut staging, &mut panels);
            panels
        };
        let panels = pack(Source::Matrix { values: &straight, stride: cols, scale: 1.0 });
        assert_eq!(panels, pack(Source::MatrixTransposed { values: &transposed, stride: rows, scale: 1.0 }));
        let (nr, group) = (K::NR, i16::GROUP);
        for col in 0..cols.next_multiple_of(nr) {
            let panel = &panels[col / nr * nr * packed_len::<K>(rows)..];
            let mut left = vec![i16::MAX; packed_len::<K>(rows)];
            let column: Vec<f32> =
                (0..rows).map(|row| if col < cols { value(row, col) } else { 0.0 }).collect();
            i16::pack_row(&column, &mut left);
            for first in (0..rows).step_by(group) {
                let len = group.min(rows - first);
                let at = packed_at::<K::Element>(first);
                let scale: f32 = bytemuck::pod_read_unaligned(bytemuck::cast_slice(&left[at + len..][..2]));
                let largest = column[first..first + len].iter().fold(0.0f32, |max, v| max.max(v.abs()));
                assert_eq!(scale, largest / 4095.0);
                let panel = &panel[at * nr..];
                let scales = &panel[len * nr + col % nr * 2..][..2];
                assert_eq!(scales, &left[at + len..][..2]);
                for row in first..first + len {
                    let integer = panel[(row - first) / 2 * 2 * nr + col % nr * 2 + (row - first) % 2];
                    assert_eq!(integer, left[at + row - first]);
                    let error = (f32::from(integer) * scale - column[row]).abs();
                    assert!(error <= scale * 0.501, "{row}, {col}: {error} of {scale}");
                }
            }
        }
    }

    #[test]
    fn a_group_with_a_value_that_is_not_finite_has_no_finite_scale() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut out = [0i16; 130 + 4];
            i16::pack_row(&[&[1.0; 128][..], &[0.5, bad]].concat(), &mut out);
            let scale = |out: &[i16]| bytemuck::pod_read_unaligned::<f32>(bytemuck::cast_slice(out));
            assert_eq!(scale(&out[128..130]), 1.0 / 4095.0);
            assert!(scale(&out[132..]).is_nan());
        }
        let mut out = [7i16; 4];
        i16::pack_row(&[1e-40, -1e-38], &mut out);
        assert_eq!(out, [0; 4]);
    }
}
