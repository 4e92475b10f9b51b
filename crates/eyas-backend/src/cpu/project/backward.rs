//! The gradients: of the input, and of both matrices of every low-rank update.

use std::ops::Range;

use rayon::prelude::*;

use super::thin::{Thin, thin_products};
use super::{Layers, blocks, row_tasks};
use crate::cpu::dropout::Kept;
use crate::cpu::microkernel::Kernel;
use crate::cpu::panel::{Layout, Source, packed_len};
use crate::cpu::product::{Factor, Left, Output, multiply_block};
use crate::cpu::scratch::{Buffer, Scratch};
use crate::cpu::tasks::in_order;

/// Operands of the backward.
pub(super) struct Backward<'a> {
    pub(super) layers: Layers<'a>,
    pub(super) x: &'a [f32],
    pub(super) hidden: &'a [f32],
    pub(super) dy: &'a [f32],
}

/// A task of the backward: columns of one of its products.
#[derive(Clone, Debug)]
enum Task {
    /// Input gradient: columns and rows.
    Input(Range<usize>, Range<usize>),
    /// Gradient of `A` of every part: columns.
    A(Range<usize>),
    /// Gradient of `B` of a part: its rows.
    B(usize, Range<usize>),
}

impl Backward<'_> {
    pub(super) fn run<K: Kernel>(&self, grads: &mut [f32], dx: Option<(&mut [f32], bool)>) {
        let Layers { scratch, tokens, in_features, out_features, rank, ref parts, ref updates, mask } =
            self.layers;
        let needed = |p: usize| dx.is_some() || updates[p].is_some();
        let dy: Vec<_> = (0..parts.len())
            .map(|p| {
                let cols = if needed(p) { parts[p].cols() } else { 0..0 };
                Left::new::<K>(scratch, self.dy, tokens, out_features, cols)
            })
            .collect();
        // The gradient of `hidden`, scaled; then both transposed, for the products over tokens.
        let mut d_hidden = scratch.take::<f32>(tokens * rank);
        let thin: Vec<_> = updates
            .iter()
            .enumerate()
            .filter_map(|(p, update)| {
                let update = update.as_ref()?;
                Some(Thin {
                    left: &dy[p],
                    depth: parts[p].out_features,
                    right: Source::Matrix { values: update.b, stride: update.r, scale: update.scaling },
                    col: update.hidden,
                    cols: update.r,
                })
            })
            .collect();
        thin_products::<K>(scratch, tokens, &thin, None, Output::new(&mut d_hidden, rank));
        let transposed = [self.hidden, &d_hidden].map(|values| transpose::<K>(scratch, values, rank));
        let stride = packed_len::<K>(tokens);
        let [hidden_t, d_hidden_t] = [0, 1].map(|i| Left::from_rows(&transposed[i], stride, tokens));
        let d_hidden_rows: Vec<_> = updates
            .iter()
            .map(|update| {
                let cols = update.map_or(0..0, |update| update.hidden..update.hidden + update.r);
                Left::new::<K>(scratch, &d_hidden, tokens, rank, cols)
            })
            .collect();

        let mut tasks = Vec::new();
        if dx.is_some() {
            let blocks = row_tasks(tokens, blocks(in_features).collect());
            tasks.extend(blocks.into_iter().map(|(cols, rows)| Task::Input(cols, rows)));
        }
        if rank > 0 {
            tasks.extend(blocks(in_features).map(Task::A));
            for (p, part) in parts.iter().enumerate().filter(|(p, _)| updates[*p].is_some()) {
                tasks.extend(blocks(part.out_features).map(|cols| Task::B(p, cols)));
            }
        }
        let grads = Output::new(grads, 0);
        let (dx, add) = match dx {
            Some((dx, add)) => (Output::new(dx, in_features), add),
            None => (Output::new(&mut [], 0), false),
        };
        // Two products read the mask: it is drawn once for both.
        let kept = mask.filter(|_| rank > 0).map(|mask| mask.draw(scratch, tokens, in_features));
        let kept = kept.as_ref();
        in_order(&tasks, |task| {
            // SAFETY: the kernel was chosen for this processor; the tasks write disjoint blocks of `dx` and of the
            // gradients, whose slots do not overlap.
            unsafe {
                match task.clone() {
                    Task::Input(cols, rows) => {
                        let dx = dx.at(rows.start, cols.start);
                        self.input::<K>(&dy, &d_hidden_rows, kept, rows, cols, dx, add);
                    }
                    Task::A(cols) => self.grad_a::<K>(&d_hidden_t, kept, cols, grads),
                    Task::B(p, cols) => self.grad_b::<K>(&hidden_t, p, cols, grads),
                }
            }
        });
    }

    /// A block of `dx (+)= sum of dy W + dropout'(d_hidden A)`.
    ///
    /// # Safety
    /// As [`multiply_block`].
    unsafe fn input<K: Kernel>(
        &self,
        dy: &[Left<'_, K::Element>],
        d_hidden: &[Left<'_, K::Element>],
        kept: Option<&Kept<'_>>,
        rows: Range<usize>,
        cols: Range<usize>,
        dx: Output<'_>,
        add: bool,
    ) {
        let Layers { scratch, in_features, ref parts, ref updates, .. } = self.layers;
        let mut factors: Vec<_> = parts
            .iter()
            .zip(dy)
            .map(|(part, left)| Factor { left, right: Source::Weight(part.weight) })
            .collect();
        let low_rank: Vec<_> = updates
            .iter()
            .zip(d_hidden)
            .filter_map(|(update, left)| {
                let values = update.as_ref()?.a;
                Some(Factor { left, right: Source::Matrix { values, stride: in_features, scale: 1.0 } })
            })
            .collect();
        let Some(kept) = kept.filter(|_| !low_rank.is_empty()) else {
            factors.extend(low_rank);
            // SAFETY: the caller's promises.
            return unsafe { multiply_block::<K>(scratch, &factors, rows, cols, dx, add) };
        };
        let width = cols.len();
        let mut values = scratch.take::<f32>(rows.len() * width);
        // SAFETY: the caller's promises; `values` are this task's own.
        unsafe {
            multiply_block::<K>(scratch, &factors, rows.clone(), cols.clone(), dx, add);
            let update = Output::new(&mut values, width);
            multiply_block::<K>(scratch, &low_rank, rows.clone(), cols.clone(), update, false);
            for (i, values) in values.chunks_exact(width).enumerate() {
                kept.apply::<true>(rows.start + i, cols.start, values, dx.row(i, 0..width));
            }
        }
    }

    /// `dA += d_hidden^T dropout(x)` for some columns of every part.
    ///
    /// # Safety
    /// As [`multiply_block`].
    unsafe fn grad_a<K: Kernel>(
        &self,
        d_hidden: &Left<'_, K::Element>,
        kept: Option<&Kept<'_>>,
        cols: Range<usize>,
        grads: Output<'_>,
    ) {
        let Layers { scratch, in_features, rank, ref parts, ref updates, .. } = self.layers;
        let (values, stride) = (self.x, in_features);
        let right = match kept {
            Some(kept) => Source::Dropped { values, stride, kept },
            None => Source::Matrix { values, stride, scale: 1.0 },
        };
        let width = cols.len();
        let mut sums = scratch.take::<f32>(rank * width);
        // SAFETY: the caller's promises; `sums` are this task's own.
        unsafe {
            let factors = [Factor { left: d_hidden, right }];
            multiply_block::<K>(
                scratch,
                &factors,
                0..rank,
                cols.clone(),
                Output::new(&mut sums, width),
                false,
            );
            for (part, update) in parts.iter().zip(updates) {
                let (Some(update), Some(slot)) = (update, part.slot) else { continue };
                for i in 0..update.r {
                    let first = slot.a + i * in_features;
                    let sums = &sums[(update.hidden + i) * width..][..width];
                    for (grad, sum) in grads.row(0, first + cols.start..first + cols.end).iter_mut().zip(sums)
                    {
                        *grad += sum;
                    }
                }
            }
        }
    }

    /// `dB += scaling * dy^T hidden` for some rows of a part.
    ///
    /// # Safety
    /// As [`multiply_block`].
    unsafe fn grad_b<K: Kernel>(
        &self,
        hidden: &Left<'_, K::Element>,
        p: usize,
        cols: Range<usize>,
        grads: Output<'_>,
    ) {
        let Layers { scratch, out_features, ref parts, ref updates, .. } = self.layers;
        let part = &parts[p];
        let (Some(update), Some(slot)) = (&updates[p], part.slot) else { return };
        let right = Source::Matrix { values: self.dy, stride: out_features, scale: 1.0 };
        let width = cols.len();
        let mut sums = scratch.take::<f32>(update.r * width);
        // SAFETY: the caller's promises; `sums` are this task's own.
        unsafe {
            let factors = [Factor { left: hidden, right }];
            multiply_block::<K>(
                scratch,
                &factors,
                update.hidden..update.hidden + update.r,
                part.col + cols.start..part.col + cols.end,
                Output::new(&mut sums, width),
                false,
            );
            for (j, row) in cols.enumerate() {
                let first = slot.b + row * update.r;
                for (i, grad) in grads.row(0, first..first + update.r).iter_mut().enumerate() {
                    *grad += update.scaling * sums[i * width + j];
                }
            }
        }
    }
}

/// `[rows, cols]` to `[cols, rows]`, packed as left-hand operands are.
fn transpose<'a, K: Kernel>(scratch: &'a Scratch, values: &[f32], cols: usize) -> Buffer<'a, K::Element> {
    let rows = values.len().checked_div(cols).unwrap_or(0);
    let stride = packed_len::<K>(rows);
    let mut out = scratch.take::<K::Element>(cols * stride);
    if stride > 0 {
        out.par_chunks_mut(stride).enumerate().for_each(|(col, out)| {
            let mut transposed = scratch.take::<f32>(rows);
            for (out, row) in transposed.iter_mut().zip(values.chunks_exact(cols)) {
                *out = row[col];
            }
            K::Element::pack_row(&transposed, out);
        });
    }
    out
}
