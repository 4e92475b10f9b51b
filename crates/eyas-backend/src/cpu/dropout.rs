//! Dropout on the input of the low-rank updates.
//!
//! A mask is drawn as bits, one a column, and applied from them.

#[cfg(target_arch = "x86_64")]
mod draw;

use rayon::prelude::*;

use super::scratch::{Buffer, Scratch};
use super::simd::vectorised;
use super::tasks::rows_a_task;
use crate::philox::{dropout_bits, dropout_threshold};
use crate::spec::Dropout;

/// Columns that one counter of the generator covers: a byte of bits.
const COLUMNS: usize = 8;

/// The mask of one projection's input in one micro-batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mask {
    seed: u64,
    micro_batch: u32,
    projection: u32,
    threshold: u32,
    scale: f32,
}

impl Mask {
    /// `None` where nothing is dropped.
    pub fn new(dropout: Option<Dropout>, projection: u32) -> Option<Self> {
        let dropout = dropout?;
        let threshold = dropout_threshold(dropout.p);
        (threshold > 0).then(|| Self {
            seed: dropout.seed,
            micro_batch: dropout.micro_batch,
            projection,
            threshold,
            scale: 1.0 / (1.0 - dropout.p),
        })
    }

    /// `out = mask * x / (1 - p)` for the columns of a token.
    pub fn apply(&self, token: usize, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        const PIECE: usize = 1024;
        let mut bits = [0; PIECE / COLUMNS];
        for (piece, (x, out)) in x.chunks(PIECE).zip(out.chunks_mut(PIECE)).enumerate() {
            let bits = &mut bits[..x.len().div_ceil(COLUMNS)];
            self.draw_bits(token as u32, (piece * PIECE / COLUMNS) as u32, bits);
            set_kept(bits, self.scale, x, out);
        }
    }

    /// Draws the mask of `cols` columns of the first `tokens` tokens, to be read more than once.
    pub fn draw<'a>(&self, scratch: &'a Scratch, tokens: usize, cols: usize) -> Kept<'a> {
        let row_bytes = cols.div_ceil(COLUMNS);
        let mut bits = scratch.take::<u8>(tokens * row_bytes);
        let rows = rows_a_task(cols);
        bits.par_chunks_mut((rows * row_bytes).max(1)).enumerate().for_each(|(task, bits)| {
            for (row, bits) in bits.chunks_exact_mut(row_bytes).enumerate() {
                self.draw_bits((task * rows + row) as u32, 0, bits);
            }
        });
        Kept { bits, row_bytes, scale: self.scale }
    }

    /// The mask of a token from column `8 * block` on: bit `j` of byte `i` is set where column `8 i + j` is kept.
    fn draw_bits(&self, token: u32, block: u32, bits: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        let drawn = draw::draw(self, token, block, bits);
        #[cfg(not(target_arch = "x86_64"))]
        let drawn = 0;
        self.draw_portable(token, block + drawn as u32, &mut bits[drawn..]);
    }

    fn draw_portable(&self, token: u32, block: u32, bits: &mut [u8]) {
        for (block, bits) in (block..).zip(bits) {
            let drawn = dropout_bits(self.seed, self.micro_batch, self.projection, token, block);
            *bits = (0..COLUMNS).map(|i| u8::from(u32::from(drawn[i]) >= self.threshold) << i).sum();
        }
    }
}

/// A mask drawn: a bit for each column of each token.
#[derive(Debug)]
pub(super) struct Kept<'a> {
    bits: Buffer<'a, u8>,
    row_bytes: usize,
    scale: f32,
}

impl Kept<'_> {
    /// `out = mask * x / (1 - p)`, or adds it, for columns `first_col ..` of a token.
    ///
    /// `first_col` is a multiple of 8.
    pub fn apply<const ADD: bool>(&self, token: usize, first_col: usize, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        assert!(first_col.is_multiple_of(COLUMNS));
        let first = token * self.row_bytes + first_col / COLUMNS;
        let bits = &self.bits[first..][..x.len().div_ceil(COLUMNS)];
        if ADD { add_kept(bits, self.scale, x, out) } else { set_kept(bits, self.scale, x, out) }
    }
}

/// `scale * x` where the bit is set, zero elsewhere.
#[inline(always)]
fn kept(bits: u8, column: usize, scale: f32, x: f32) -> f32 {
    let all = 0u32.wrapping_sub(u32::from(bits) >> column & 1);
    f32::from_bits((x * scale).to_bits() & all)
}

/// Calls `write` with what is kept of each element.
#[inline(always)]
fn each_kept(bits: &[u8], scale: f32, x: &[f32], out: &mut [f32], write: impl Fn(&mut f32, f32)) {
    let (x, rest_x) = x.as_chunks::<COLUMNS>();
    let (out, rest_out) = out.as_chunks_mut::<COLUMNS>();
    for ((out, x), &bits) in out.iter_mut().zip(x).zip(bits) {
        for i in 0..COLUMNS {
            write(&mut out[i], kept(bits, i, scale, x[i]));
        }
    }
    for (i, (out, &x)) in rest_out.iter_mut().zip(rest_x).enumerate() {
        write(out, kept(bits[bits.len() - 1], i, scale, x));
    }
}

vectorised! {
    fn set_kept(bits: &[u8], scale: f32, x: &[f32], out: &mut [f32]) {
        each_kept(bits, scale, x, out, |out, kept| *out = kept);
    }
}

vectorised! {
    fn add_kept(bits: &[u8], scale: f32, x: &[f32], out: &mut [f32]) {
        each_kept(bits, scale, x, out, |out, kept| *out += kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vector_forms_draw_the_same_mask() {
        for (p, bytes) in [(0.05, 8), (0.5, 25), (1.0, 9), (0.9999, 1), (0.1, 40), (0.3, 193)] {
            let dropout = Dropout { p, seed: 0x1234_5678_9abc_def0, micro_batch: 7 };
            let mask = Mask::new(Some(dropout), 11).unwrap();
            let (mut got, mut expected) = (vec![0xA5; bytes], vec![0x5A; bytes]);
            mask.draw_bits(1000, 2, &mut got);
            mask.draw_portable(1000, 2, &mut expected);
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_mask_is_applied_by_its_definition() {
        for columns in [1, 8, 13, 64, 1547] {
            let mask = Mask::new(Some(Dropout { p: 0.4, seed: 5 << 40, micro_batch: 1 }), 3).unwrap();
            let scratch = Scratch::default();
            let drawn = mask.draw(&scratch, 50, columns);
            let x: Vec<f32> = (0..columns).map(|i| i as f32 + 0.5).collect();
            for token in [0, 20, 49] {
                let expected: Vec<f32> = (0..columns)
                    .map(|i| {
                        let bits = dropout_bits(5 << 40, 1, 3, token as u32, (i / 8) as u32)[i % 8];
                        if u32::from(bits) < dropout_threshold(0.4) { 0.0 } else { x[i] * (1.0 / 0.6) }
                    })
                    .collect();
                let mut out = vec![f32::NAN; columns];
                mask.apply(token, &x, &mut out);
                assert_eq!(out, expected);
                for first in [0, 8, 64] {
                    let first = if first < columns { first } else { 0 };
                    let (x, expected) = (&x[first..], &expected[first..]);
                    let mut out = vec![f32::NAN; x.len()];
                    drawn.apply::<false>(token, first, x, &mut out);
                    assert_eq!(out, expected);
                    out.fill(2.0);
                    drawn.apply::<true>(token, first, x, &mut out);
                    assert!(out.iter().zip(expected).all(|(out, kept)| *out == 2.0 + kept));
                }
            }
        }
    }

    #[test]
    fn nothing_is_dropped_at_zero() {
        assert!(Mask::new(Some(Dropout { p: 0.0, seed: 1, micro_batch: 0 }), 0).is_none());
        assert!(Mask::new(None, 0).is_none());
    }
}
