//! The forward product.

use super::thin::{Thin, thin_products};
use super::{Part, Update, blocks, row_tasks};
use crate::cpu::dropout::Mask;
use crate::cpu::matvec;
use crate::cpu::microkernel::Kernel;
use crate::cpu::panel::Source;
use crate::cpu::product::{Factor, Left, Output, multiply_block};
use crate::cpu::scratch::Scratch;
use crate::cpu::tasks::in_order;

/// Operands of the forward.
pub(super) struct Forward<'a> {
    pub(super) scratch: &'a Scratch,
    pub(super) tokens: usize,
    pub(super) in_features: usize,
    pub(super) out_features: usize,
    pub(super) rank: usize,
    pub(super) parts: &'a [Part<'a>],
    pub(super) updates: &'a [Option<Update<'a>>],
    pub(super) mask: Option<Mask>,
    pub(super) x: &'a [f32],
    pub(super) add: bool,
}

impl Forward<'_> {
    /// Few tokens: every weight is read once and met by all of them.
    /// In `f32` if `exact`.
    pub(super) fn few(&self, hidden: &mut [f32], y: &mut [f32], exact: bool) {
        let multiply = |x: &[f32], jobs: &[matvec::Job<'_>], out: Output<'_>, add| {
            let &Self { scratch, tokens, in_features: depth, .. } = self;
            matvec::Multiply { scratch, tokens, depth, x, jobs, out, add, exact }.run();
        };
        if self.rank > 0 {
            let mut dropped;
            let x = match self.mask {
                None => self.x,
                Some(mask) => {
                    dropped = self.scratch.take::<f32>(self.x.len());
                    for (t, (x, out)) in self
                        .x
                        .chunks_exact(self.in_features)
                        .zip(dropped.chunks_exact_mut(self.in_features))
                        .enumerate()
                    {
                        mask.apply(t, x, out);
                    }
                    &dropped
                }
            };
            let jobs: Vec<_> = self
                .updates
                .iter()
                .flatten()
                .map(|update| matvec::Job {
                    weight: matvec::Rows::Matrix(update.a),
                    rows: update.r,
                    col: update.hidden,
                    bias: None,
                    update: None,
                })
                .collect();
            let out = Output::new(hidden, self.rank);
            multiply(x, &jobs, out, false);
        }
        let jobs: Vec<_> = self
            .parts
            .iter()
            .zip(self.updates)
            .map(|(part, update)| matvec::Job {
                weight: matvec::Rows::Weight(part.weight),
                rows: part.out_features,
                col: part.col,
                bias: part.bias.map(|bias| bias.data()),
                update: update.map(|update| matvec::Update {
                    b: update.b,
                    r: update.r,
                    scaling: update.scaling,
                    hidden: &hidden[update.hidden..],
                    stride: self.rank,
                }),
            })
            .collect();
        multiply(self.x, &jobs, Output::new(y, self.out_features), self.add);
    }

    pub(super) fn many<K: Kernel>(&self, hidden: &mut [f32], y: &mut [f32]) {
        let x = Left::new::<K>(self.scratch, self.x, self.tokens, self.in_features, 0..self.in_features);
        let thin: Vec<_> = self
            .updates
            .iter()
            .flatten()
            .map(|update| Thin {
                right: Source::MatrixTransposed { values: update.a, stride: self.in_features, scale: 1.0 },
                left: &x,
                depth: self.in_features,
                col: update.hidden,
                cols: update.r,
            })
            .collect();
        let dropped = self.mask.map(|mask| (mask, self.x));
        thin_products::<K>(self.scratch, self.tokens, &thin, dropped, Output::new(hidden, self.rank));
        let hidden: Vec<_> = self
            .updates
            .iter()
            .map(|update| {
                update.map(|update| {
                    let cols = update.hidden..update.hidden + update.r;
                    Left::new::<K>(self.scratch, hidden, self.tokens, self.rank, cols)
                })
            })
            .collect();
        let blocks = self
            .parts
            .iter()
            .enumerate()
            .flat_map(|(p, part)| blocks(part.out_features).map(move |cols| (p, cols)));
        let tasks = row_tasks(self.tokens, blocks.collect());
        let y = Output::new(y, self.out_features);
        in_order(&tasks, |((p, cols), rows)| {
            let p = *p;
            let part = &self.parts[p];
            let mut factors = vec![Factor { left: &x, right: Source::WeightTransposed(part.weight) }];
            if let (Some(update), Some(hidden)) = (&self.updates[p], &hidden[p]) {
                let right =
                    Source::MatrixTransposed { values: update.b, stride: update.r, scale: update.scaling };
                factors.push(Factor { left: hidden, right });
            }
            let y = y.at(rows.start, part.col + cols.start);
            // SAFETY: the kernel was chosen for this processor; the tasks' blocks do not overlap.
            unsafe {
                multiply_block::<K>(self.scratch, &factors, rows.clone(), cols.clone(), y, self.add);
                if let Some(bias) = part.bias {
                    let bias = &bias.data()[cols.clone()];
                    for row in 0..rows.len() {
                        for (y, bias) in y.row(row, 0..bias.len()).iter_mut().zip(bias) {
                            *y += bias;
                        }
                    }
                }
            }
        });
    }
}
