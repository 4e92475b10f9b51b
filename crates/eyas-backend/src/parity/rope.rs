//! Rotary positions.

use super::Checker;
use crate::spec::{QkvLayout, Rope};
use crate::{Backend, Dtype, FlatBatch, Result};

/// Turns each pair `(i, i + dim / 2)` of a head's first `dim` elements by its angle.
fn rotate(head: &mut [f64], cos: &[f64], sin: &[f64]) {
    let half = cos.len();
    for i in 0..half {
        let (x, y) = (head[i], head[i + half]);
        head[i] = x * cos[i] - y * sin[i];
        head[i + half] = x * sin[i] + y * cos[i];
    }
}

pub(super) fn check<B: Backend>(checker: &mut Checker<'_, B>) -> Result<()> {
    let backend = checker.backend;
    for (layout, dim) in [
        (QkvLayout::contiguous(71, 1, 64), 64),
        (QkvLayout::contiguous(9, 3, 64), 64),
        (QkvLayout::grouped(4, 2, 80), 32),
        (QkvLayout::grouped(3, 3, 96), 96),
        (QkvLayout::contiguous(2, 1, 16), 6),
    ] {
        let (batch, host) = checker.batch(&[1, 33, 8], 10)?;
        let (tokens, width, half) = (host.tokens(), layout.width(), dim / 2);
        let angles: Vec<f64> = (0..40 * half)
            .map(|i| (i / half) as f64 * 10_000f64.powf(-((i % half) as f64) / half as f64))
            .collect();
        let table = |f: fn(f64) -> f64| -> Vec<f32> { angles.iter().map(|&angle| f(angle) as f32).collect() };
        let cos = checker.operand(Dtype::F32, half, &table(f64::cos))?;
        let sin = checker.operand(Dtype::F32, half, &table(f64::sin))?;
        let rope = Rope { dim, cos: cos.tensor, sin: sin.tensor };
        let rotated = |qkv: &[f64], host: &FlatBatch, sign: f64| {
            let mut want = qkv[..tokens * width].to_vec();
            for (row, &position) in want.chunks_mut(width).zip(host.positions()) {
                let angle = position as usize * half..(position as usize + 1) * half;
                let sin: Vec<f64> = sin.values[angle.clone()].iter().map(|sin| sign * sin).collect();
                let queries = (0..layout.heads).map(|head| layout.query(head));
                for column in queries.chain((0..layout.kv_heads).map(|head| layout.key(head))) {
                    rotate(&mut row[column..column + dim], &cos.values[angle.clone()], &sin);
                }
            }
            want
        };
        let case = format!("{dim} of {} elements, {} heads", layout.head_dim, layout.heads);
        for (op, inverse) in [("rope", false), ("rope (inverse)", true)] {
            let mut qkv = checker.activation(tokens + 1, width)?;
            let want = rotated(&qkv.values, &host, if inverse { -1.0 } else { 1.0 });
            backend.rope(&batch, &layout, &rope, &mut qkv.tensor, inverse)?;
            checker.compare(op, &case, &qkv.tensor, &want, &qkv.values)?;
        }

        // Slots in another order than the batch's, each with what it held before.
        let (positions, columns) = (40, layout.kv_heads * layout.head_dim);
        let mut host = FlatBatch::new();
        for (slot, start, length) in [(2, 39, 1), (0, 0, 33), (1, 5, 8)] {
            host.push_cached(slot, start, &vec![1; length])?;
        }
        let batch = checker.load(&host)?;
        let mut qkv = checker.activation(tokens + 1, width)?;
        let mut keys = checker.activation(3 * positions, columns)?;
        let mut values = checker.activation(3 * positions, columns)?;
        let want = rotated(&qkv.values, &host, 1.0);
        for (range, &slot) in host.ranges().zip(host.slots()) {
            for token in range {
                let row = slot as usize * positions + host.positions()[token] as usize;
                for head in 0..layout.kv_heads {
                    let cell =
                        row * columns + head * layout.head_dim..row * columns + (head + 1) * layout.head_dim;
                    let of = |column: usize| token * width + column..token * width + column + layout.head_dim;
                    keys.values[cell.clone()].copy_from_slice(&want[of(layout.key(head))]);
                    values.values[cell].copy_from_slice(&want[of(layout.value(head))]);
                }
            }
        }
        let (k, v) = (&mut keys.tensor, &mut values.tensor);
        backend.cache_write(&batch, &layout, Some(&rope), positions, &mut qkv.tensor, k, v)?;
        let op = "cache_write (rope)";
        checker.compare(op, &case, &qkv.tensor, &want, &qkv.values)?;
        checker.compare(op, format!("{case}, keys"), &keys.tensor, &keys.values, &[])?;
        checker.compare(op, format!("{case}, values"), &values.tensor, &values.values, &[])?;
    }
    Ok(())
}
