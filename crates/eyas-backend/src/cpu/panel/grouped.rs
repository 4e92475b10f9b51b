//! 16-bit integers in groups, each with a scale of its own.
//!
//! A group is 128 neighbours along the depth of one row or column, in integers of 13 bits with their signs: a value is
//! its integer times the group's scale, which is the group's largest magnitude divided by 4095. A sum over a group is
//! then whole and fits 32 bits (128 * 4095^2 < 2^31); the scales meet it in `f32`. The step of a group is 2^-12 of its
//! largest magnitude, where `bf16` is off by up to 2^-9 of each value: more exact for values of like size, less so for
//! small ones beside an outlier. Losses of a training run come as near to those in `f32` either way.
//! (Group-wise block floating point; Drumond et al., "Training DNNs with Hybrid Block
//! Floating Point", 2018.)

use super::super::simd::vectorised;
use super::layout::{Layout, transpose};

/// The largest integer.
const MOST: f32 = 4095.0;
/// Groups whose largest magnitude is smaller are zero: the inverse of their scale would not be finite.
const LEAST: f32 = 1e-34;
/// Added to a small number, it leaves the number's nearest integer, ties to even, in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;
/// Columns of the widest panel.
const WIDEST: usize = 32;
/// Columns that are packed together where they lie side by side.
const COLUMNS: usize = 16;

impl Layout for i16 {
    const GROUP: usize = 128;
    const SCALE: usize = 2;

    fn pack_columns(source: &[f32], panel: &mut [Self], columns: usize) {
        let depth = source.len() / columns;
        assert!(columns <= WIDEST && depth <= Self::GROUP && depth.is_multiple_of(2));
        let (panel, scales) = panel.split_at_mut(depth * columns);
        let mut integers = [0i16; WIDEST * Self::GROUP];
        let integers = &mut integers[..depth * columns];
        for (i, (row, integers)) in
            source.chunks_exact(depth).zip(integers.chunks_exact_mut(depth)).enumerate()
        {
            scales[2 * i..][..2].copy_from_slice(&halves(quantise(row, MOST, integers)));
        }
        transpose(bytemuck::cast_slice(integers), columns, bytemuck::cast_slice_mut(panel));
    }

    fn pack_rows(source: &[f32], stride: usize, first: usize, panel: &mut [Self], columns: usize) {
        let depth = panel.len() / columns - Self::SCALE;
        assert!(columns.is_multiple_of(COLUMNS) && depth <= Self::GROUP && depth.is_multiple_of(2));
        let (panel, scales) = panel.split_at_mut(depth * columns);
        for (i, scales) in scales.chunks_exact_mut(2 * COLUMNS).enumerate() {
            let first = first + i * COLUMNS;
            let mut largest = [0u32; COLUMNS];
            largest_by_column(source, stride, first, &mut largest);
            let mut inverses = [0.0f32; COLUMNS];
            let out = scales.as_chunks_mut::<2>().0;
            for ((&largest, inverse), out) in largest.iter().zip(&mut inverses).zip(out) {
                let scale;
                (scale, *inverse) = scale_of(largest, MOST);
                *out = halves(scale);
            }
            let words = &mut bytemuck::cast_slice_mut(panel)[i * COLUMNS..];
            quantise_pairs(source, stride, first, &inverses, words, columns);
        }
    }

    fn pack_row(source: &[f32], out: &mut [Self]) {
        let mut groups = source.chunks(Self::GROUP);
        for out in out.chunks_mut(Self::GROUP + Self::SCALE) {
            let group = groups.next().unwrap_or_default();
            let (values, scale) = out.split_at_mut(out.len() - Self::SCALE);
            let (values, rest) = values.split_at_mut(group.len());
            scale.copy_from_slice(&halves(quantise(group, MOST, values)));
            rest.fill(0);
        }
    }
}

/// The scale of a group and its inverse, from the bits of the largest magnitude, for integers of at most `most`. A group
/// that holds a value which is not finite has no finite product.
#[inline(always)]
fn scale_of(largest: u32, most: f32) -> (f32, f32) {
    let largest = f32::from_bits(largest);
    if largest < LEAST {
        (0.0, 0.0)
    } else if largest.is_finite() {
        (largest / most, most / largest)
    } else {
        (f32::NAN, 0.0)
    }
}

/// A scale as it is stored.
fn halves(scale: f32) -> [i16; 2] {
    bytemuck::cast(scale)
}

/// The integer nearest to a number of at most 15 bits, in the low half.
#[inline(always)]
fn to_integer(value: f32) -> u32 {
    (value + ROUND).to_bits()
}

/// Quantises a group to integers of at most `most`; returns its scale.
#[inline]
pub(in super::super) fn quantise(values: &[f32], most: f32, out: &mut [i16]) -> f32 {
    let (scale, inverse) = scale_of(largest(values), most);
    scaled(values, inverse, out);
    scale
}

vectorised! {
    /// The bits of the largest magnitude; those of a number that is not finite are larger than all others.
    fn largest(values: &[f32]) -> u32 {
        const LANES: usize = 32;
        let mut lanes = [0u32; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane = (*lane).max(value.to_bits() & 0x7FFF_FFFF);
            }
        }
        let rest = rest.iter().map(|value| value.to_bits() & 0x7FFF_FFFF);
        lanes.into_iter().chain(rest).fold(0, u32::max)
    }
}

vectorised! {
    fn scaled(values: &[f32], inverse: f32, out: &mut [i16]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = to_integer(value * inverse) as i16;
        }
    }
}

vectorised! {
    /// As [`largest`], of each of 16 columns from `first` on.
    fn largest_by_column(source: &[f32], stride: usize, first: usize, out: &mut [u32; COLUMNS]) {
        let mut lanes = [0u32; COLUMNS];
        for row in source.chunks_exact(stride) {
            let row: &[f32; COLUMNS] = row[first..][..COLUMNS].try_into().expect("16 columns");
            for (lane, value) in lanes.iter_mut().zip(row) {
                *lane = (*lane).max(value.to_bits() & 0x7FFF_FFFF);
            }
        }
        *out = lanes;
    }
}

vectorised! {
    /// Words of two neighbours along the depth, the first in the low half, of 16 columns from `first` on; those of the
    /// next two are `words_stride` further.
    fn quantise_pairs(
        source: &[f32],
        stride: usize,
        first: usize,
        inverses: &[f32; COLUMNS],
        words: &mut [u32],
        words_stride: usize,
    ) {
        for (rows, words) in source.chunks_exact(2 * stride).zip(words.chunks_mut(words_stride)) {
            let words: &mut [u32; COLUMNS] = (&mut words[..COLUMNS]).try_into().expect("16 columns");
            let even: &[f32; COLUMNS] = rows[first..][..COLUMNS].try_into().expect("16 columns");
            let odd: &[f32; COLUMNS] = rows[stride + first..][..COLUMNS].try_into().expect("16 columns");
            for i in 0..COLUMNS {
                let (even, odd) = (to_integer(even[i] * inverses[i]), to_integer(odd[i] * inverses[i]));
                words[i] = even & 0xFFFF | odd << 16;
            }
        }
    }
}
