//! Causal attention, its gradient, and attention over the cache.

use std::ops::Range;

use super::Checker;
use crate::spec::{AttentionSpec, QkvLayout};
use crate::{Backend, Dtype, FlatBatch, Result};

/// A model's attention and the sequences it is tried on.
struct Case {
    name: &'static str,
    layout: QkvLayout,
    window: Option<usize>,
    alibi: bool,
    lengths: &'static [usize],
}

fn cases() -> [Case; 8] {
    let plain = |name, layout, lengths| Case { name, layout, window: None, alibi: false, lengths };
    [
        plain("71 heads of 64 on one", QkvLayout::contiguous(71, 1, 64), &[1, 37, 70]),
        plain("9 heads of 64 on 3", QkvLayout::contiguous(9, 3, 64), &[130, 1, 257, 64]),
        plain("4 heads of 128 on 2", QkvLayout::contiguous(4, 2, 128), &[97]),
        plain("2 heads of 16", QkvLayout::contiguous(2, 2, 16), &[1, 1, 2, 3, 5]),
        Case {
            window: Some(17),
            ..plain("8 heads of 80 on 2, window", QkvLayout::grouped(8, 2, 80), &[3, 100, 1])
        },
        Case { alibi: true, ..plain("4 heads of 96, ALiBi", QkvLayout::grouped(4, 4, 96), &[50, 133]) },
        Case {
            window: Some(65),
            alibi: true,
            ..plain("6 heads of 64 on 2, both", QkvLayout::contiguous(6, 2, 64), &[200, 9])
        },
        Case {
            window: Some(1),
            ..plain("2 heads of 32 on one, window 1", QkvLayout::grouped(2, 1, 32), &[40])
        },
    ]
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// The softmax of one query over the keys at positions `seen`, and its log-sum-exp.
struct Probabilities {
    seen: Range<usize>,
    p: Vec<f64>,
    lse: f64,
}

/// `softmax(scale * q k^T + alibi)` over the keys that the query at `position` sees.
fn probabilities<'a>(
    scale: f64,
    window: Option<usize>,
    bias: Option<&[f64]>,
    query: &[f64],
    position: usize,
    key: impl Fn(usize) -> &'a [f64],
) -> Probabilities {
    let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
    let seen = first..position + 1;
    let scores: Vec<f64> =
        seen.clone().map(|j| scale * dot(query, key(j)) + bias.map_or(0.0, |bias| bias[j])).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = largest + scores.iter().map(|s| (s - largest).exp()).sum::<f64>().ln();
    Probabilities { seen, p: scores.iter().map(|s| (s - lse).exp()).collect(), lse }
}

/// One case's constants in `f64`.
struct Reference<'a> {
    layout: &'a QkvLayout,
    scale: f64,
    window: Option<usize>,
    /// `[heads, positions]`.
    alibi: Option<&'a [f64]>,
    positions: usize,
}

impl Reference<'_> {
    fn bias(&self, head: usize) -> Option<&[f64]> {
        self.alibi.map(|alibi| &alibi[head * self.positions..(head + 1) * self.positions])
    }

    /// Output `[T, heads * dim]` and log-sum-exp `[T, heads]`.
    fn forward(&self, batch: &FlatBatch, qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (width, dim) = (self.layout.width(), self.layout.head_dim);
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for sequence in batch.ranges() {
            for token in sequence.clone() {
                for head in 0..self.layout.heads {
                    let kv = head / self.layout.group();
                    let at = |row: usize, column: usize| &qkv[row * width + column..][..dim];
                    let query = at(token, self.layout.query(head));
                    let position = token - sequence.start;
                    let key = |j| at(sequence.start + j, self.layout.key(kv));
                    let found = probabilities(self.scale, self.window, self.bias(head), query, position, key);
                    lse.push(found.lse);
                    out.extend((0..dim).map(|i| {
                        let values =
                            found.seen.clone().map(|j| at(sequence.start + j, self.layout.value(kv))[i]);
                        values.zip(&found.p).map(|(value, p)| p * value).sum::<f64>()
                    }));
                }
            }
        }
        (out, lse)
    }

    /// The gradient of `qkv`.
    fn backward(&self, batch: &FlatBatch, qkv: &[f64], dout: &[f64]) -> Vec<f64> {
        let (width, dim, heads) = (self.layout.width(), self.layout.head_dim, self.layout.heads);
        let mut dqkv = vec![0.0; qkv.len()];
        for sequence in batch.ranges() {
            for (token, head) in sequence.clone().flat_map(|token| (0..heads).map(move |head| (token, head)))
            {
                let kv = head / self.layout.group();
                let at = |row: usize, column: usize| &qkv[row * width + column..][..dim];
                let (q, k, v) = (self.layout.query(head), self.layout.key(kv), self.layout.value(kv));
                let key = |j| at(sequence.start + j, k);
                let query = at(token, q);
                let found = probabilities(
                    self.scale,
                    self.window,
                    self.bias(head),
                    query,
                    token - sequence.start,
                    key,
                );
                let dout = &dout[(token * heads + head) * dim..][..dim];
                let dp: Vec<f64> = found.seen.clone().map(|j| dot(dout, at(sequence.start + j, v))).collect();
                let delta = dot(&found.p, &dp);
                for (n, j) in found.seen.clone().enumerate() {
                    let ds = self.scale * found.p[n] * (dp[n] - delta);
                    let row = (sequence.start + j) * width;
                    for i in 0..dim {
                        dqkv[token * width + q + i] += ds * key(j)[i];
                        dqkv[row + k + i] += ds * query[i];
                        dqkv[row + v + i] += found.p[n] * dout[i];
                    }
                }
            }
        }
        dqkv
    }
}

pub(super) fn check<B: Backend>(checker: &mut Checker<'_, B>) -> Result<()> {
    for case in cases() {
        uncached(checker, &case)?;
        cached(checker, &case)?;
    }
    Ok(())
}

/// The operation's constants on the device, and the biases in `f64`.
fn spec<B: Backend>(
    checker: &mut Checker<'_, B>,
    case: &Case,
    positions: usize,
) -> Result<(AttentionSpec<B>, Vec<f64>)> {
    let heads = case.layout.heads;
    let bias: Vec<f32> = (0..heads * positions)
        .map(|i| (i % positions) as f32 * 2f32.powf(-8.0 * (i / positions + 1) as f32 / heads as f32))
        .collect();
    let bias = checker.operand(Dtype::F32, positions, &bias)?;
    let spec = AttentionSpec {
        layout: case.layout,
        scale: 1.0 / (case.layout.head_dim as f32).sqrt(),
        window: case.window,
        alibi: case.alibi.then_some(bias.tensor),
    };
    Ok((spec, bias.values))
}

fn uncached<B: Backend>(checker: &mut Checker<'_, B>, case: &Case) -> Result<()> {
    let (backend, layout) = (checker.backend, &case.layout);
    let (batch, host) = checker.batch(case.lengths, 10)?;
    let (tokens, columns) = (host.tokens(), layout.heads * layout.head_dim);
    let positions = host.max_seqlen() + 2;
    let (spec, bias) = spec(checker, case, positions)?;
    let reference = Reference {
        layout,
        scale: f64::from(spec.scale),
        window: case.window,
        alibi: case.alibi.then_some(&bias),
        positions,
    };
    let qkv = checker.activation(tokens, layout.width())?;
    let mut out = checker.activation(tokens + 1, columns)?;
    let mut lse = checker.parameter(tokens + 1, layout.heads, 0.0)?;
    backend.attention(&batch, &spec, &qkv.tensor, &mut out.tensor, &mut lse.tensor)?;
    let (want_out, want_lse) = reference.forward(&host, &qkv.values);
    checker.compare("attention", case.name, &out.tensor, &want_out, &out.values)?;
    checker.compare("attention", format!("{}, lse", case.name), &lse.tensor, &want_lse, &lse.values)?;

    let dout = checker.activation(tokens, columns)?;
    let mut dqkv = checker.activation(tokens + 1, layout.width())?;
    backend.attention_backward(
        &batch,
        &spec,
        &qkv.tensor,
        &out.tensor,
        &lse.tensor,
        &dout.tensor,
        &mut dqkv.tensor,
    )?;
    let want = reference.backward(&host, &qkv.values, &dout.values);
    checker.compare("attention_backward", case.name, &dqkv.tensor, &want, &dqkv.values)
}

/// Slots in another order than the batch's, each with what it held before.
fn cached<B: Backend>(checker: &mut Checker<'_, B>, case: &Case) -> Result<()> {
    let (backend, layout) = (checker.backend, &case.layout);
    let (slots, positions) = (4, 150);
    let (width, dim, kv_columns) = (layout.width(), layout.head_dim, layout.kv_heads * layout.head_dim);
    let mut host = FlatBatch::new();
    for (slot, start, length) in [(2, 100, 1), (0, 0, 70), (3, 63, 3), (1, 149, 1)] {
        host.push_cached(slot, start, &vec![1; length])?;
    }
    let batch = checker.load(&host)?;
    let mut qkv = checker.activation(host.tokens(), width)?;
    let mut keys = checker.activation(slots * positions, kv_columns)?;
    let mut values = checker.activation(slots * positions, kv_columns)?;
    let (spec, bias) = spec(checker, case, positions)?;
    let rows: Vec<(usize, usize)> = host
        .ranges()
        .zip(host.slots())
        .flat_map(|(range, &slot)| range.map(move |token| (token, slot as usize)))
        .map(|(token, slot)| (slot * positions, host.positions()[token] as usize))
        .collect();

    let (k, v) = (&mut keys.tensor, &mut values.tensor);
    backend.cache_write(&batch, layout, None, positions, &mut qkv.tensor, k, v)?;
    for (token, (slot, position)) in rows.iter().enumerate() {
        for head in 0..layout.kv_heads {
            let cell = (slot + position) * kv_columns + head * dim
                ..(slot + position) * kv_columns + (head + 1) * dim;
            let (key, value) = (token * width + layout.key(head), token * width + layout.value(head));
            keys.values[cell.clone()].copy_from_slice(&qkv.values[key..key + dim]);
            values.values[cell].copy_from_slice(&qkv.values[value..value + dim]);
        }
    }
    checker.compare("cache_write", format!("{}, keys", case.name), &keys.tensor, &keys.values, &[])?;
    checker.compare("cache_write", format!("{}, values", case.name), &values.tensor, &values.values, &[])?;

    let mut out = checker.activation(host.tokens() + 1, layout.heads * dim)?;
    backend.attention_cached(
        &batch,
        &spec,
        positions,
        &qkv.tensor,
        &keys.tensor,
        &values.tensor,
        &mut out.tensor,
    )?;
    let reference = Reference {
        layout,
        scale: f64::from(spec.scale),
        window: case.window,
        alibi: case.alibi.then_some(&bias),
        positions,
    };
    let mut want = Vec::new();
    for (token, &(slot, position)) in rows.iter().enumerate() {
        for head in 0..layout.heads {
            let column = head / layout.group() * dim;
            let cell = |cache: &'_ [f64], j: usize| cache[(slot + j) * kv_columns + column..][..dim].to_vec();
            let seen_keys: Vec<Vec<f64>> = (0..=position).map(|j| cell(&keys.values, j)).collect();
            let query = &qkv.values[token * width + layout.query(head)..][..dim];
            let bias = reference.bias(head);
            let found =
                probabilities(reference.scale, case.window, bias, query, position, |j| &seen_keys[j][..]);
            let seen_values: Vec<Vec<f64>> = found.seen.clone().map(|j| cell(&values.values, j)).collect();
            want.extend(
                (0..dim)
                    .map(|i| seen_values.iter().zip(&found.p).map(|(value, p)| p * value[i]).sum::<f64>()),
            );
        }
    }
    checker.compare("attention_cached", case.name, &out.tensor, &want, &out.values)
}
