//! Rotary positions.

use rayon::prelude::*;

use super::layout::check_layout;
use super::simd::vectorised;
use super::tasks::rows_a_task;
use super::{CpuBackend, CpuBatch, CpuTensor};
use crate::spec::{QkvLayout, Rope, check_shape};
use crate::{Error, Result};

pub(super) fn rope(
    batch: &CpuBatch,
    layout: &QkvLayout,
    rope: &Rope<CpuBackend>,
    qkv: &mut CpuTensor,
    inverse: bool,
) -> Result<()> {
    check_layout("rope", layout)?;
    let (positions, width) = (batch.batch.positions(), layout.width());
    let half = rope.dim / 2;
    if !rope.dim.is_multiple_of(2) || rope.dim > layout.head_dim {
        return Err(Error::Shape {
            op: "rope",
            reason: format!(
                "{} rotated elements in a head of {}; an even number of at most that is needed",
                rope.dim, layout.head_dim
            ),
        });
    }
    let longest = positions.iter().max().map_or(0, |&p| p as usize + 1);
    check_shape("rope", "cos", &rope.cos, longest, half)?;
    check_shape("rope", "sin", &rope.sin, longest, half)?;
    check_shape("rope", "qkv", qkv, positions.len(), width)?;
    if half == 0 {
        return Ok(());
    }
    let direction = if inverse { -1.0 } else { 1.0 };
    let rows = rows_a_task(width);
    qkv.rows_mut(positions.len()).par_chunks_mut(rows * width).zip(positions.par_chunks(rows)).for_each(
        |(qkv, positions)| {
            for (row, &position) in qkv.chunks_exact_mut(width).zip(positions) {
                let angle = position as usize * half..(position as usize + 1) * half;
                let (cos, sin) = (&rope.cos.data()[angle.clone()], &rope.sin.data()[angle]);
                for head in 0..layout.heads {
                    rotate(&mut row[layout.query(head)..][..rope.dim], cos, sin, direction);
                }
                for head in 0..layout.kv_heads {
                    rotate(&mut row[layout.key(head)..][..rope.dim], cos, sin, direction);
                }
            }
        },
    );
    Ok(())
}

vectorised! {
    /// Turns each pair `(head[i], head[i + dim / 2])` by its angle, times `direction`.
    fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
        let half = cos.len();
        let (first, second) = head.split_at_mut(half);
        let (second, sin) = (&mut second[..half], &sin[..half]);
        for i in 0..half {
            let (x, y, s) = (first[i], second[i], direction * sin[i]);
            first[i] = x.mul_add(cos[i], -(y * s));
            second[i] = y.mul_add(cos[i], x * s);
        }
    }
}
