//! The forward product.

use super::thin::{Thin, thin_products};
use super::{Layers, blocks, row_tasks};
use crate::cpu::matvec;
use crate::cpu::microkernel::Kernel;
use crate::cpu::panel::Source;
use crate::cpu::product::{Factor, Left, Output, multiply_block};
use crate::cpu::tasks::in_order;

/// Operands of the forward.
pub(super) struct Forward<'a> {
    pub(super) layers: Layers<'a>,
    pub(super) x: &'a [f32],
    pub(super) add: bool,
}

impl Forward<'_> {
    /// Few tokens: every weight is read once and met by all of them.
    /// In `f32` if `exact`.
    pub(super) fn few(&self, hidden: &mut [f32], y: &mut [f32], exact: bool) {
        let Layers { scratch, tokens, in_features, out_features, rank, ref parts, ref updates, mask } =
            self.layers;
        let multiply = |x: &[f32], jobs: &[matvec::Job<'_>], out: Output<'_>, add| {
            matvec::Multiply { scratch, tokens, depth: in_features, x, jobs, out, add, exact }.run();
        };
        if rank > 0 {
            let mut dropped;
            let x = match mask {
                None => self.x,
                Some(mask) => {
                    dropped = scratch.take::<f32>(self.x.len());
                    for (t, (x, out)) in self
                        .x
                        .chunks_exact(in_features)
                        .zip(dropped.chunks_exact_mut(in_features))
                        .enumerate()
                    {
                        mask.apply(t, x, out);
                    }
                    &dropped
                }
            };
            let jobs: Vec<_> = updates
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
            multiply(x, &jobs, Output::new(hidden, rank), false);
        }
        let jobs: Vec<_> = parts
            .iter()
            .zip(updates)
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
                    stride: rank,
                }),
            })
            .collect();
        multiply(self.x, &jobs, Output::new(y, out_features), self.add);
    }

    pub(super) fn many<K: Kernel>(&self, hidden: &mut [f32], y: &mut [f32]) {
        let Layers { scratch, tokens, in_features, out_features, rank, ref parts, ref updates, mask } =
            self.layers;
        let x = Left::new::<K>(scratch, self.x, tokens, in_features, 0..in_features);
        let thin: Vec<_> = updates
            .iter()
            .flatten()
            .map(|update| Thin {
                right: Source::MatrixTransposed { values: update.a, stride: in_features, scale: 1.0 },
                left: &x,
                depth: in_features,
                col: update.hidden,
                cols: update.r,
            })
            .collect();
        let dropped = mask.map(|mask| (mask, self.x));
        thin_products::<K>(scratch, tokens, &thin, dropped, Output::new(hidden, rank));
        let hidden: Vec<_> = updates
            .iter()
            .map(|update| {
                update.map(|update| {
                    let cols = update.hidden..update.hidden + update.r;
                    Left::new::<K>(scratch, hidden, tokens, rank, cols)
                })
            })
            .collect();
        let blocks = parts
            .iter()
            .enumerate()
            .flat_map(|(p, part)| blocks(part.out_features).map(move |cols| (p, cols)));
        let tasks = row_tasks(tokens, blocks.collect());
        let y = Output::new(y, out_features);
        in_order(&tasks, |((p, cols), rows)| {
            let p = *p;
            let part = &parts[p];
            let mut factors = vec![Factor { left: &x, right: Source::WeightTransposed(part.weight) }];
            if let (Some(update), Some(hidden)) = (&updates[p], &hidden[p]) {
                let right =
                    Source::MatrixTransposed { values: update.b, stride: update.r, scale: update.scaling };
                factors.push(Factor { left: hidden, right });
            }
            let y = y.at(rows.start, part.col + cols.start);
            // SAFETY: the kernel was chosen for this processor; the tasks' blocks do not overlap.
            unsafe {
                multiply_block::<K>(scratch, &factors, rows.clone(), cols.clone(), y, self.add);
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
