//! Products with narrow right-hand operands: what goes into the low-rank updates and their gradients.

use std::ops::Range;

use rayon::prelude::*;

use crate::cpu::dropout::Mask;
use crate::cpu::microkernel::Kernel;
use crate::cpu::panel::{Layout, Source, pack, packed_len, padded_depth, panels_len, staging_len};
use crate::cpu::product::{Left, Operand, Output, multiply_panels};
use crate::cpu::scratch::{Buffer, Scratch};
use crate::cpu::tasks::in_order;

/// Rows that a task computes.
pub(super) const THIN_ROWS: usize = 48;

/// One of several products of the same rows with narrow right-hand operands.
pub(super) struct Thin<'a, E> {
    pub(super) left: &'a Left<'a, E>,
    pub(super) depth: usize,
    /// `[depth, cols]`.
    pub(super) right: Source<'a>,
    /// First column in the output.
    pub(super) col: usize,
    pub(super) cols: usize,
}

/// Thin products, `left * right` each, or `dropout(x) * right` where given.
pub(super) fn thin_products<K: Kernel>(
    scratch: &Scratch,
    tokens: usize,
    thin: &[Thin<'_, K::Element>],
    dropped: Option<(Mask, &[f32])>,
    out: Output<'_>,
) {
    if thin.is_empty() {
        return;
    }
    // The right-hand operands are packed once for all rows.
    let lens: Vec<usize> = thin.iter().map(|thin| panels_len::<K>(thin.depth, thin.cols)).collect();
    let mut panels = scratch.take::<K::Element>(lens.iter().sum());
    let mut rest: &mut [K::Element] = &mut panels;
    let mut packing = Vec::new();
    for (thin, &len) in thin.iter().zip(&lens) {
        let packed = packed_len::<K>(thin.depth);
        let (own, next) = std::mem::take(&mut rest).split_at_mut(len);
        rest = next;
        for (i, panel) in own.chunks_mut((packed * K::NR).max(1)).enumerate() {
            packing.push((thin, i * K::NR..((i + 1) * K::NR).min(thin.cols), panel));
        }
    }
    packing.into_par_iter().for_each(|(thin, cols, panel)| {
        let mut staging = scratch.take::<f32>(staging_len::<K>(thin.depth, cols.len()));
        pack::<K>(&thin.right, 0..thin.depth, cols, &mut staging, panel);
    });
    let panels: Vec<&[K::Element]> = lens
        .iter()
        .scan(0, |used, &len| {
            *used += len;
            Some(&panels[*used - len..*used])
        })
        .collect();
    let tasks: Vec<_> = (0..tokens).step_by(THIN_ROWS).collect();
    in_order(&tasks, |&start| {
        let rows = start..(start + THIN_ROWS).min(tokens);
        let depth = thin[0].depth;
        let own = dropped.map(|(mask, x)| drop_rows::<K>(scratch, mask, x, rows.clone(), depth));
        for (thin, panels) in thin.iter().zip(&panels) {
            let depth = padded_depth::<K>(thin.depth);
            let operand = match &own {
                Some(own) => Operand { left: own, stride: packed_len::<K>(thin.depth), panels, depth },
                None => Operand {
                    left: thin.left.rows_from(rows.start),
                    stride: thin.left.stride(),
                    panels,
                    depth,
                },
            };
            let out = out.at(rows.start, thin.col);
            // SAFETY: the kernel was chosen for this processor; the tasks' rows do not overlap.
            unsafe { multiply_panels::<K>(&[operand], rows.len(), thin.cols, out, false) };
        }
    });
}

/// Rows of `x` after dropout, in the kernel's type.
fn drop_rows<'a, K: Kernel>(
    scratch: &'a Scratch,
    mask: Mask,
    x: &[f32],
    rows: Range<usize>,
    depth: usize,
) -> Buffer<'a, K::Element> {
    let packed = packed_len::<K>(depth);
    let mut out = scratch.take::<K::Element>(rows.len() * packed);
    let mut row_values = scratch.take::<f32>(depth);
    for (row, out) in rows.zip(out.chunks_exact_mut(packed.max(1))) {
        mask.apply(row, &x[row * depth..][..depth], &mut row_values);
        K::Element::pack_row(&row_values, out);
    }
    out
}
