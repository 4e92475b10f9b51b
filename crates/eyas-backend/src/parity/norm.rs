//! Layer and RMS norms, of rows and of heads.

use super::Checker;
use crate::spec::{NormKind, NormSpec, QkvLayout, Write};
use crate::{Backend, Result};

/// Mean (zero for RMS) and reciprocal deviation of a row.
fn statistics(spec: NormSpec, x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = match spec.kind {
        NormKind::LayerNorm => x.iter().sum::<f64>() / n,
        NormKind::RmsNorm => 0.0,
    };
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    (mean, 1.0 / (variance + f64::from(spec.eps)).sqrt())
}

/// `y = (x - mean) * rstd * weight + bias`
fn norm(spec: NormSpec, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let (mean, rstd) = statistics(spec, x);
    (0..x.len()).map(|i| (x[i] - mean) * rstd * weight[i] + bias.map_or(0.0, |bias| bias[i])).collect()
}

/// The gradient of `x`: that of the normalised row, `g = weight * dy`, less what a shift (layer norm) and a scaling
/// of the row cannot change, times `rstd`.
fn norm_backward(spec: NormSpec, x: &[f64], weight: &[f64], dy: &[f64]) -> Vec<f64> {
    let n = x.len() as f64;
    let (mean, rstd) = statistics(spec, x);
    let normal: Vec<f64> = x.iter().map(|x| (x - mean) * rstd).collect();
    let g: Vec<f64> = dy.iter().zip(weight).map(|(dy, weight)| dy * weight).collect();
    let along = g.iter().zip(&normal).map(|(g, normal)| g * normal).sum::<f64>() / n;
    let shift = match spec.kind {
        NormKind::LayerNorm => g.iter().sum::<f64>() / n,
        NormKind::RmsNorm => 0.0,
    };
    g.iter().zip(&normal).map(|(g, normal)| rstd * (g - shift - normal * along)).collect()
}

pub(super) fn check<B: Backend>(checker: &mut Checker<'_, B>) -> Result<()> {
    rows(checker)?;
    heads(checker)
}

fn rows<B: Backend>(checker: &mut Checker<'_, B>) -> Result<()> {
    let backend = checker.backend;
    for (kind, has_bias, tokens, n) in [
        (NormKind::LayerNorm, true, 13, 4544),
        (NormKind::LayerNorm, true, 1, 30),
        (NormKind::LayerNorm, false, 5, 129),
        (NormKind::RmsNorm, false, 131, 576),
        (NormKind::RmsNorm, false, 3, 3),
    ] {
        let case = format!("{kind:?} {tokens} x {n}");
        let spec = NormSpec { kind, eps: 1e-5 };
        let x = checker.activation(tokens, n)?;
        let weight = checker.parameter(1, n, 1.0)?;
        let bias = checker.parameter(1, n, 0.0)?;
        let mut y = checker.activation(tokens + 1, n)?;
        let mut stats = checker.parameter(tokens + 1, 2, 0.0)?;
        let bias_tensor = has_bias.then_some(&bias.tensor);
        backend.norm(
            tokens,
            spec,
            &x.tensor,
            &weight.tensor,
            bias_tensor,
            &mut y.tensor,
            &mut stats.tensor,
        )?;
        let bias_values = has_bias.then_some(&bias.values[..]);
        let want: Vec<f64> =
            x.values.chunks(n).flat_map(|x| norm(spec, x, &weight.values, bias_values)).collect();
        checker.compare("norm", &case, &y.tensor, &want, &y.values)?;
        let want: Vec<f64> =
            x.values.chunks(n).map(|x| statistics(spec, x)).flat_map(|(mean, rstd)| [mean, rstd]).collect();
        checker.compare("norm", format!("{case}, statistics"), &stats.tensor, &want, &stats.values)?;

        let dy = checker.activation(tokens, n)?;
        for write in [Write::Set, Write::Add] {
            let mut dx = checker.activation(tokens + 1, n)?;
            let before = dx.values.clone();
            backend.norm_backward(
                tokens,
                spec,
                &x.tensor,
                &weight.tensor,
                &stats.tensor,
                &dy.tensor,
                &mut dx.tensor,
                write,
            )?;
            let gradient = x
                .values
                .chunks(n)
                .zip(dy.values.chunks(n))
                .flat_map(|(x, dy)| norm_backward(spec, x, &weight.values, dy));
            let want: Vec<f64> = gradient
                .zip(&before)
                .map(|(g, before)| if write == Write::Add { g + before } else { g })
                .collect();
            checker.compare("norm_backward", format!("{case}, {write:?}"), &dx.tensor, &want, &before)?;
        }
    }
    Ok(())
}

fn heads<B: Backend>(checker: &mut Checker<'_, B>) -> Result<()> {
    let backend = checker.backend;
    for (layout, tokens) in [
        (QkvLayout::contiguous(9, 3, 64), 17),
        (QkvLayout::grouped(4, 2, 80), 3),
        (QkvLayout::contiguous(71, 1, 64), 2),
    ] {
        let case = format!("{} heads of {}, {tokens} tokens", layout.heads, layout.head_dim);
        let (width, dim) = (layout.width(), layout.head_dim);
        let spec = NormSpec { kind: NormKind::RmsNorm, eps: 1e-6 };
        let raw = checker.activation(tokens, width)?;
        let q_weight = checker.parameter(1, dim, 1.0)?;
        let k_weight = checker.parameter(1, dim, 1.0)?;
        let normalised: Vec<(usize, &[f64])> = (0..layout.heads)
            .map(|head| (layout.query(head), &q_weight.values[..]))
            .chain((0..layout.kv_heads).map(|head| (layout.key(head), &k_weight.values[..])))
            .collect();

        let mut qkv = checker.activation(tokens + 1, width)?;
        let eps = spec.eps;
        backend.head_norm(
            tokens,
            &layout,
            eps,
            &raw.tensor,
            &q_weight.tensor,
            &k_weight.tensor,
            &mut qkv.tensor,
        )?;
        let mut want = raw.values.clone();
        for (row, raw) in want.chunks_mut(width).zip(raw.values.chunks(width)) {
            for &(column, weight) in &normalised {
                let head = column..column + dim;
                row[head.clone()].copy_from_slice(&norm(spec, &raw[head], weight, None));
            }
        }
        checker.compare("head_norm", &case, &qkv.tensor, &want, &qkv.values)?;

        let mut dqkv = checker.activation(tokens + 1, width)?;
        let mut want = dqkv.values[..tokens * width].to_vec();
        for (row, raw) in want.chunks_mut(width).zip(raw.values.chunks(width)) {
            for &(column, weight) in &normalised {
                let head = column..column + dim;
                let gradient = norm_backward(spec, &raw[head.clone()], weight, &row[head.clone()]);
                row[head].copy_from_slice(&gradient);
            }
        }
        backend.head_norm_backward(
            tokens,
            &layout,
            eps,
            &raw.tensor,
            &q_weight.tensor,
            &k_weight.tensor,
            &mut dqkv.tensor,
        )?;
        checker.compare("head_norm_backward", &case, &dqkv.tensor, &want, &dqkv.values)?;
    }
    Ok(())
}
