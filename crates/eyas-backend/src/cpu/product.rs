//! Matrix products over packed panels, for one task on one thread.
//!
//! A task owns a block of the output. It packs the right-hand operand a piece of the depth at a time, small enough
//! for the cache, and runs the kernel over its rows. The pieces depend on the depth alone, and the kernel sums in
//! the order of the depth, so the result does not depend on how the output is shared out.

use std::marker::PhantomData;
use std::ops::Range;

use super::microkernel::{Element, Kernel, Term};
use super::panel::{Layout, Source, pack, packed_at, packed_len, padded_depth, panels_len, staging_len};
use super::scratch::{Buffer, Scratch};

/// Most terms of one piece.
const TERMS: usize = 8;
/// Elements of the largest tile.
const TILE: usize = 32 * 32;

/// A row-major matrix whose parts are written by several tasks at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output<'a> {
    values: *mut f32,
    len: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a task reaches the elements only through `Output::row` and `multiply`, whose callers keep to disjoint parts.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// Shares `values`, rows `stride` elements apart.
    pub fn new(values: &'a mut [f32], stride: usize) -> Self {
        Self { values: values.as_mut_ptr(), len: values.len(), stride, borrow: PhantomData }
    }

    /// The part that begins at this row and column.
    pub fn at(self, row: usize, col: usize) -> Self {
        let first = row * self.stride + col;
        assert!(first <= self.len, "past the end of an output");
        // SAFETY: `first` lies inside or at the end of the same allocation.
        Self { values: unsafe { self.values.add(first) }, len: self.len - first, ..self }
    }

    /// Part of a row.
    ///
    /// # Safety
    /// No other task uses these elements meanwhile.
    pub unsafe fn row(self, row: usize, cols: Range<usize>) -> &'a mut [f32] {
        let first = row * self.stride + cols.start;
        assert!(first + cols.len() <= self.len, "past the end of an output");
        // SAFETY: the elements lie inside the borrowed slice; the caller promises that they are his alone.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(first), cols.len()) }
    }
}

/// A left-hand operand, row-major in the kernel's type, each row filled up to whole steps.
#[derive(Debug)]
pub(super) struct Left<'a, E> {
    values: LeftValues<'a, E>,
    first: usize,
    stride: usize,
    depth: usize,
}

#[derive(Debug)]
enum LeftValues<'a, E> {
    Borrowed(&'a [E]),
    Owned(Buffer<'a, E>),
}

impl<'a, E: Element> Left<'a, E> {
    /// Columns `cols` of `rows` rows, `stride` apart: as they are, or rounded into a buffer.
    pub fn new<K: Kernel<Element = E>>(
        scratch: &'a Scratch,
        values: &'a [f32],
        rows: usize,
        stride: usize,
        cols: Range<usize>,
    ) -> Self {
        use rayon::prelude::*;
        if let Some(values) = E::borrow(values) {
            assert!(rows == 0 || (rows - 1) * stride + cols.end <= values.len());
            let values = LeftValues::Borrowed(values);
            return Self { values, first: cols.start, stride, depth: cols.len() };
        }
        let packed = packed_len::<K>(cols.len());
        let mut buffer = scratch.take::<E>(rows * packed);
        if packed > 0 {
            buffer.par_chunks_mut(packed * 16).enumerate().for_each(|(block, out)| {
                for (i, out) in out.chunks_exact_mut(packed).enumerate() {
                    E::pack_row(&values[(block * 16 + i) * stride..][cols.clone()], out);
                }
            });
        }
        Self { values: LeftValues::Owned(buffer), first: 0, stride: packed, depth: cols.len() }
    }

    /// A matrix whose rows are packed already.
    pub fn from_rows(values: &'a [E], stride: usize, depth: usize) -> Self {
        Self { values: LeftValues::Borrowed(values), first: 0, stride, depth }
    }

    /// Elements from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The rows from `row` on.
    pub fn rows_from(&self, row: usize) -> &[E] {
        let values: &[E] = match &self.values {
            LeftValues::Borrowed(values) => values,
            LeftValues::Owned(buffer) => &buffer[..],
        };
        &values[row * self.stride + self.first..]
    }
}

/// One summand of a product: `left * right`.
#[derive(Debug)]
pub(super) struct Factor<'a, E> {
    pub left: &'a Left<'a, E>,
    /// `[depth, cols]`.
    pub right: Source<'a>,
}

/// `out (+)= sum of left * right` for some rows of the left-hand operands and some columns of the right-hand ones;
/// `out` begins with their block.
///
/// # Safety
/// The processor has the kernel's instructions, and no other task uses this block meanwhile.
pub(super) unsafe fn multiply_block<K: Kernel>(
    scratch: &Scratch,
    factors: &[Factor<'_, K::Element>],
    rows: Range<usize>,
    cols: Range<usize>,
    out: Output<'_>,
    add: bool,
) {
    let mut add = add;
    let pieces = pieces::<K>(factors);
    let longest =
        pieces.chunk_by(same_pass).map(|pass| pass.iter().map(|piece| piece.depth.len()).sum()).max();
    let most = longest.unwrap_or(0) + TERMS * (K::GRAIN + K::Element::SCALE);
    let mut panels = scratch.take::<K::Element>(panels_len::<K>(most, cols.len()));
    let mut staging = scratch.take::<f32>(staging_len::<K>(K::DEPTH, cols.len()));
    for pass in pieces.chunk_by(same_pass) {
        let mut used = 0;
        for piece in pass {
            let len = panels_len::<K>(piece.depth.len(), cols.len());
            let right = &factors[piece.factor].right;
            pack::<K>(right, piece.depth.clone(), cols.clone(), &mut staging, &mut panels[used..][..len]);
            used += len;
        }
        let mut used = 0;
        let operands: Vec<_> = pass
            .iter()
            .map(|piece| {
                let factor = &factors[piece.factor];
                let len = panels_len::<K>(piece.depth.len(), cols.len());
                used += len;
                Operand {
                    left: &factor.left.rows_from(rows.start)[packed_at::<K::Element>(piece.depth.start)..],
                    stride: factor.left.stride,
                    panels: &panels[used - len..used],
                    depth: padded_depth::<K>(piece.depth.len()),
                }
            })
            .collect();
        // SAFETY: the caller's promises.
        unsafe { multiply_panels::<K>(&operands, rows.len(), cols.len(), out, add) };
        add = true;
    }
}

/// Part of a factor's depth, and the pass over the rows that takes it.
#[derive(Debug)]
struct Piece {
    factor: usize,
    depth: Range<usize>,
    pass: usize,
}

fn same_pass(a: &Piece, b: &Piece) -> bool {
    a.pass == b.pass
}

/// Cuts the depths into even pieces of at most [`Kernel::DEPTH`], whole groups but for the last, and lets short ones
/// share a pass.
fn pieces<K: Kernel>(factors: &[Factor<'_, K::Element>]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let (mut pass, mut terms, mut taken) = (0, 0, 0);
    for (factor, Factor { left, .. }) in factors.iter().enumerate() {
        let count = left.depth.div_ceil(K::DEPTH).max(1);
        let whole = if K::Element::SCALE == 0 { 32 } else { K::Element::GROUP };
        let len = left.depth.div_ceil(count).next_multiple_of(whole);
        for start in (0..left.depth).step_by(len) {
            let depth = start..(start + len).min(left.depth);
            if terms == TERMS || (terms > 0 && taken + depth.len() > K::DEPTH + K::DEPTH / 4) {
                (pass, terms, taken) = (pass + 1, 0, 0);
            }
            terms += 1;
            taken += depth.len();
            pieces.push(Piece { factor, depth, pass });
        }
    }
    pieces
}

/// A packed summand of a pass over the rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand<'a, E> {
    /// The row of the left-hand operand that belongs to the first row computed, and those after it.
    pub left: &'a [E],
    /// Elements from one of its rows to the next.
    pub stride: usize,
    /// The panels of the columns computed.
    pub panels: &'a [E],
    /// Depth as packed.
    pub depth: usize,
}

/// `out (+)= sum of left * panels`, `rows x cols`: at most [`TERMS`] operands.
///
/// # Safety
/// The processor has the kernel's instructions, and no other task uses this block meanwhile.
pub(super) unsafe fn multiply_panels<K: Kernel>(
    operands: &[Operand<'_, K::Element>],
    rows: usize,
    cols: usize,
    out: Output<'_>,
    add: bool,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(operands.len() <= TERMS);
    for operand in operands {
        let packed = packed_len::<K>(operand.depth);
        assert!((rows - 1) * operand.stride + packed <= operand.left.len(), "left operand too short");
        assert!(packed * cols.next_multiple_of(K::NR) <= operand.panels.len(), "panels too short");
    }
    assert!((rows - 1) * out.stride + cols <= out.len, "past the end of an output");
    let empty = Term { a: std::ptr::null(), a_stride: 0, b: std::ptr::null(), depth: 0 };
    let mut terms = [empty; TERMS];
    let terms = &mut terms[..operands.len()];
    const { assert!(K::MR * K::NR <= TILE && K::ROWS.is_multiple_of(K::MR)) };
    // SAFETY: the caller promises the instructions.
    unsafe { K::begin() };
    for block in (0..rows).step_by(K::ROWS) {
        let block = block..(block + K::ROWS).min(rows);
        for (panel, col) in (0..cols).step_by(K::NR).enumerate() {
            let width = K::NR.min(cols - col);
            for (term, operand) in terms.iter_mut().zip(operands) {
                let b = operand.panels[panel * packed_len::<K>(operand.depth) * K::NR..].as_ptr();
                *term = Term { a: std::ptr::null(), a_stride: operand.stride, b, depth: operand.depth };
            }
            for row in block.clone().step_by(K::MR) {
                let count = K::MR.min(block.end - row);
                for (term, operand) in terms.iter_mut().zip(operands) {
                    term.a = operand.left[row * operand.stride..].as_ptr();
                }
                if width == K::NR {
                    // SAFETY: the operands and the output reach as far as asserted above; the caller promises the
                    // instructions and that the block is his alone.
                    unsafe {
                        let c = out.values.add(row * out.stride + col);
                        K::tile(count, terms, c, out.stride, add);
                    }
                } else {
                    let mut tile = [0.0f32; TILE];
                    // SAFETY: as above, and the tile has room for `MR` rows of `NR`.
                    unsafe { K::tile(count, terms, tile.as_mut_ptr(), K::NR, false) };
                    for (i, sums) in tile.chunks_exact(K::NR).take(count).enumerate() {
                        // SAFETY: the caller promises that the block is his alone.
                        let values = unsafe { out.row(row + i, col..col + width) };
                        for (value, &sum) in values.iter_mut().zip(sums) {
                            *value = if add { *value + sum } else { sum };
                        }
                    }
                }
            }
        }
    }
    // SAFETY: as at the beginning.
    unsafe { K::end() };
}
