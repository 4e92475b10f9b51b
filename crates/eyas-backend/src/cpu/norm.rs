//! Layer and RMS norms, forward and backward, of rows and of heads.

use rayon::prelude::*;

use super::CpuTensor;
use super::layout::check_layout;
use super::simd::{sum, vectorised};
use super::tasks::rows_a_task;
use crate::Result;
use crate::backend::DeviceTensor;
use crate::spec::{NormKind, NormSpec, QkvLayout, Write, check_shape};

pub(super) fn norm(
    tokens: usize,
    spec: NormSpec,
    x: &CpuTensor,
    weight: &CpuTensor,
    bias: Option<&CpuTensor>,
    y: &mut CpuTensor,
    stats: &mut CpuTensor,
) -> Result<()> {
    let n = x.shape().1;
    check_shape("norm", "x", x, tokens, n)?;
    check_shape("norm", "weight", weight, 1, n)?;
    check_shape("norm", "y", y, tokens, n)?;
    check_shape("norm", "stats", stats, tokens, 2)?;
    if let Some(bias) = bias {
        check_shape("norm", "bias", bias, 1, n)?;
    }
    if n == 0 {
        return Ok(());
    }
    let (weight, bias) = (weight.rows(1), bias.map(|bias| bias.rows(1)));
    let rows = rows_a_task(n);
    y.rows_mut(tokens)
        .par_chunks_mut(rows * n)
        .zip(stats.rows_mut(tokens).par_chunks_mut(rows * 2))
        .zip(x.rows(tokens).par_chunks(rows * n))
        .for_each(|((y, stats), x)| {
            let rows = y.chunks_exact_mut(n).zip(stats.chunks_exact_mut(2)).zip(x.chunks_exact(n));
            for ((y, stats), x) in rows {
                let (mean, rstd) = match spec.kind {
                    NormKind::LayerNorm => layer_stats(x, spec.eps),
                    NormKind::RmsNorm => (0.0, rms_rstd(x, spec.eps)),
                };
                stats[0] = mean;
                stats[1] = rstd;
                match bias {
                    Some(bias) => scale_shift(x, mean, rstd, weight, bias, y),
                    None => scale(x, mean, rstd, weight, y),
                }
            }
        });
    Ok(())
}

pub(super) fn norm_backward(
    tokens: usize,
    spec: NormSpec,
    x: &CpuTensor,
    weight: &CpuTensor,
    stats: &CpuTensor,
    dy: &CpuTensor,
    dx: &mut CpuTensor,
    write: Write,
) -> Result<()> {
    let n = x.shape().1;
    check_shape("norm_backward", "x", x, tokens, n)?;
    check_shape("norm_backward", "weight", weight, 1, n)?;
    check_shape("norm_backward", "stats", stats, tokens, 2)?;
    check_shape("norm_backward", "dy", dy, tokens, n)?;
    check_shape("norm_backward", "dx", dx, tokens, n)?;
    if n == 0 {
        return Ok(());
    }
    let weight = weight.rows(1);
    let rows = rows_a_task(n);
    dx.rows_mut(tokens)
        .par_chunks_mut(rows * n)
        .zip(stats.rows(tokens).par_chunks(rows * 2))
        .zip(x.rows(tokens).par_chunks(rows * n))
        .zip(dy.rows(tokens).par_chunks(rows * n))
        .for_each(|(((dx, stats), x), dy)| {
            let rows = stats.chunks_exact(2).zip(x.chunks_exact(n)).zip(dy.chunks_exact(n));
            for (dx, ((stats, x), dy)) in dx.chunks_exact_mut(n).zip(rows) {
                let (mean, rstd) = (stats[0], stats[1]);
                let along = weighted_dot(x, mean, rstd, weight, dy) / n as f32;
                let shift = match spec.kind {
                    NormKind::LayerNorm => dot(weight, dy) / n as f32,
                    NormKind::RmsNorm => 0.0,
                };
                match write {
                    Write::Set => project_out(x, mean, rstd, weight, dy, along, shift, dx),
                    Write::Add => project_out_add(x, mean, rstd, weight, dy, along, shift, dx),
                }
            }
        });
    Ok(())
}

pub(super) fn head_norm(
    tokens: usize,
    layout: &QkvLayout,
    eps: f32,
    raw: &CpuTensor,
    q_weight: &CpuTensor,
    k_weight: &CpuTensor,
    qkv: &mut CpuTensor,
) -> Result<()> {
    let weights = HeadWeights::new("head_norm", tokens, layout, raw, q_weight, k_weight)?;
    check_shape("head_norm", "qkv", qkv, tokens, layout.width())?;
    each_token(tokens, raw, qkv, |raw, qkv| {
        qkv.copy_from_slice(raw);
        weights.each_head(raw, qkv, |raw, weight, head| {
            scale(raw, 0.0, rms_rstd(raw, eps), weight, head);
        });
    });
    Ok(())
}

pub(super) fn head_norm_backward(
    tokens: usize,
    layout: &QkvLayout,
    eps: f32,
    raw: &CpuTensor,
    q_weight: &CpuTensor,
    k_weight: &CpuTensor,
    dqkv: &mut CpuTensor,
) -> Result<()> {
    let weights = HeadWeights::new("head_norm_backward", tokens, layout, raw, q_weight, k_weight)?;
    check_shape("head_norm_backward", "dqkv", dqkv, tokens, layout.width())?;
    each_token(tokens, raw, dqkv, |raw, dqkv| {
        weights.each_head(raw, dqkv, |raw, weight, gradient| {
            let rstd = rms_rstd(raw, eps);
            let along = weighted_dot(raw, 0.0, rstd, weight, gradient) / raw.len() as f32;
            project_out_in_place(raw, rstd, weight, along, gradient);
        });
    });
    Ok(())
}

/// The heads of a token that are normalised, with their weights.
struct HeadWeights<'a> {
    layout: &'a QkvLayout,
    queries: &'a [f32],
    keys: &'a [f32],
}

impl<'a> HeadWeights<'a> {
    fn new(
        op: &'static str,
        tokens: usize,
        layout: &'a QkvLayout,
        raw: &CpuTensor,
        q_weight: &'a CpuTensor,
        k_weight: &'a CpuTensor,
    ) -> Result<Self> {
        check_layout(op, layout)?;
        check_shape(op, "raw", raw, tokens, layout.width())?;
        check_shape(op, "q_weight", q_weight, 1, layout.head_dim)?;
        check_shape(op, "k_weight", k_weight, 1, layout.head_dim)?;
        Ok(Self { layout, queries: q_weight.rows(1), keys: k_weight.rows(1) })
    }

    /// Calls `op` with each head of a token: its part of `raw`, its weight, and its part of `out`.
    fn each_head(&self, raw: &[f32], out: &mut [f32], op: impl Fn(&[f32], &[f32], &mut [f32])) {
        let &Self { layout, queries, keys } = self;
        let queries = (0..layout.heads).map(|head| (layout.query(head), queries));
        let keys = (0..layout.kv_heads).map(|head| (layout.key(head), keys));
        for (column, weight) in queries.chain(keys) {
            let head = column..column + layout.head_dim;
            op(&raw[head.clone()], weight, &mut out[head]);
        }
    }
}

/// Calls `op` with each token's row of `x` and of `y`, some tokens a task.
fn each_token(tokens: usize, x: &CpuTensor, y: &mut CpuTensor, op: impl Fn(&[f32], &mut [f32]) + Sync) {
    let width = x.shape().1;
    let rows = rows_a_task(width);
    y.rows_mut(tokens)
        .par_chunks_mut(rows * width)
        .zip(x.rows(tokens).par_chunks(rows * width))
        .for_each(|(y, x)| x.chunks_exact(width).zip(y.chunks_exact_mut(width)).for_each(|(x, y)| op(x, y)));
}

vectorised! {
    /// Mean and reciprocal deviation, in two passes: the second is over values about zero.
    fn layer_stats(x: &[f32], eps: f32) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = sum([x], |[x]| x) / n;
        let variance = sum([x], |[x]| (x - mean) * (x - mean)) / n;
        (mean, 1.0 / (variance + eps).sqrt())
    }
}

vectorised! {
    /// The reciprocal root of the mean square.
    fn rms_rstd(x: &[f32], eps: f32) -> f32 {
        1.0 / (sum([x], |[x]| x * x) / x.len() as f32 + eps).sqrt()
    }
}

vectorised! {
    fn scale_shift(x: &[f32], mean: f32, rstd: f32, weight: &[f32], bias: &[f32], y: &mut [f32]) {
        let n = y.len();
        let (x, weight, bias) = (&x[..n], &weight[..n], &bias[..n]);
        for i in 0..n {
            y[i] = ((x[i] - mean) * rstd).mul_add(weight[i], bias[i]);
        }
    }
}

vectorised! {
    fn scale(x: &[f32], mean: f32, rstd: f32, weight: &[f32], y: &mut [f32]) {
        let n = y.len();
        let (x, weight) = (&x[..n], &weight[..n]);
        for i in 0..n {
            y[i] = (x[i] - mean) * rstd * weight[i];
        }
    }
}

vectorised! {
    fn dot(x: &[f32], y: &[f32]) -> f32 {
        sum([x, y], |[x, y]| x * y)
    }
}

vectorised! {
    /// `sum(x_hat * weight * dy)`, where `x_hat` is the normalised `x`.
    fn weighted_dot(x: &[f32], mean: f32, rstd: f32, weight: &[f32], dy: &[f32]) -> f32 {
        sum([x, weight, dy], |[x, weight, dy]| (x - mean) * weight * dy) * rstd
    }
}

/// One element of the input gradient: `rstd * (weight * dy - shift - x_hat * along)`.
#[inline(always)]
fn input_gradient(x: f32, mean: f32, rstd: f32, weight: f32, dy: f32, along: f32, shift: f32) -> f32 {
    let normal = (x - mean) * rstd;
    rstd * normal.mul_add(-along, weight.mul_add(dy, -shift))
}

vectorised! {
    fn project_out(
        x: &[f32], mean: f32, rstd: f32, weight: &[f32], dy: &[f32], along: f32, shift: f32, dx: &mut [f32],
    ) {
        let n = dx.len();
        let (x, weight, dy) = (&x[..n], &weight[..n], &dy[..n]);
        for i in 0..n {
            dx[i] = input_gradient(x[i], mean, rstd, weight[i], dy[i], along, shift);
        }
    }
}

vectorised! {
    fn project_out_add(
        x: &[f32], mean: f32, rstd: f32, weight: &[f32], dy: &[f32], along: f32, shift: f32, dx: &mut [f32],
    ) {
        let n = dx.len();
        let (x, weight, dy) = (&x[..n], &weight[..n], &dy[..n]);
        for i in 0..n {
            dx[i] += input_gradient(x[i], mean, rstd, weight[i], dy[i], along, shift);
        }
    }
}

vectorised! {
    fn project_out_in_place(x: &[f32], rstd: f32, weight: &[f32], along: f32, gradient: &mut [f32]) {
        let n = gradient.len();
        let (x, weight) = (&x[..n], &weight[..n]);
        for i in 0..n {
            gradient[i] = input_gradient(x[i], 0.0, rstd, weight[i], gradient[i], along, 0.0);
        }
    }
}
