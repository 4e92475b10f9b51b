//! Projections with their low-rank updates.

use super::{Checker, Operand, tolerance};
use crate::philox::{dropout_bits, dropout_threshold};
use crate::spec::{Adapter, Dropout, HostMatrix, Linear, LoraSlot, Projection, QuantConfig, Storage, Write};
use crate::{Backend, Dtype, Result};

/// One part: its outputs, how its weight is stored, whether it has a bias, its rank.
type Part = (usize, Storage, bool, Option<usize>);

/// A projection and what it is tried on.
struct Case {
    name: &'static str,
    tokens: usize,
    in_features: usize,
    parts: Vec<Part>,
    dropout: f32,
}

fn cases() -> Vec<Case> {
    let nf4 = Storage::Quantised(QuantConfig::default());
    let plain = Storage::Quantised(QuantConfig { double_quant: false, ..QuantConfig::default() });
    let bf16 = Storage::Dense(Dtype::Bf16);
    vec![
        Case {
            name: "q, k, v of SmolLM2 in NF4",
            tokens: 37,
            in_features: 576,
            parts: vec![(576, nf4, false, Some(8)), (192, nf4, false, None), (192, nf4, false, Some(16))],
            dropout: 0.1,
        },
        Case {
            name: "4544 columns in NF4, dropout",
            tokens: 5,
            in_features: 4544,
            parts: vec![(100, nf4, false, Some(64))],
            dropout: 0.05,
        },
        Case {
            name: "one token, NF4",
            tokens: 1,
            in_features: 576,
            parts: vec![(1000, nf4, true, Some(4))],
            dropout: 0.0,
        },
        Case {
            name: "3 tokens, NF4 with and without nested scales",
            tokens: 3,
            in_features: 1024,
            parts: vec![(300, nf4, true, Some(8)), (40, plain, false, None), (17, nf4, false, Some(33))],
            dropout: 0.0,
        },
        Case {
            name: "21 tokens, NF4 with and without nested scales",
            tokens: 21,
            in_features: 1600,
            parts: vec![(129, nf4, false, Some(5)), (40, plain, true, None)],
            dropout: 0.0,
        },
        Case {
            name: "64 tokens, NF4",
            tokens: 64,
            in_features: 576,
            parts: vec![(200, nf4, true, Some(16))],
            dropout: 0.0,
        },
        Case {
            name: "blocks across rows, biases",
            tokens: 67,
            in_features: 100,
            parts: vec![(70, plain, true, Some(3)), (33, bf16, true, Some(5))],
            dropout: 0.3,
        },
        Case {
            name: "a dense head",
            tokens: 3,
            in_features: 72,
            parts: vec![(1003, bf16, false, None)],
            dropout: 0.0,
        },
        Case {
            name: "one dense token",
            tokens: 1,
            in_features: 72,
            parts: vec![(517, Storage::Dense(Dtype::F32), true, None)],
            dropout: 0.0,
        },
    ]
}

/// `a [m, k] b^T [n, k]`.
fn times_transposed(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    a.chunks(k).flat_map(|a| b.chunks(k).map(move |b| dot(a, b))).collect()
}

/// `a [m, k] b [k, n]`.
fn times(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    times_transposed(a, &transposed(b, b.len() / k), k)
}

/// The transpose of a matrix of `cols` columns.
fn transposed(a: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|col| a.iter().skip(col).step_by(cols).copied()).collect()
}

/// Columns `first..first + n` of a matrix of `cols` columns.
fn columns(a: &[f64], cols: usize, first: usize, n: usize) -> Vec<f64> {
    a.chunks(cols).flat_map(|row| row[first..first + n].to_vec()).collect()
}

/// The factor of every element of `[tokens, n]`: zero where it is dropped, or `1 / (1 - p)`.
fn mask(dropout: Option<Dropout>, projection: u32, tokens: usize, n: usize) -> Vec<f64> {
    let Some(Dropout { p, seed, micro_batch }) = dropout else { return vec![1.0; tokens * n] };
    (0..tokens * n)
        .map(|i| {
            let (token, column) = (i / n, i % n);
            let bits =
                dropout_bits(seed, micro_batch, projection, token as u32, column as u32 / 8)[column % 8];
            if u32::from(bits) < dropout_threshold(p) { 0.0 } else { 1.0 / (1.0 - f64::from(p)) }
        })
        .collect()
}

fn product(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x * y).collect()
}

/// `target[row][first..] += factor * source[row]`.
fn add_columns(target: &mut [f64], cols: usize, first: usize, source: &[f64], n: usize, factor: f64) {
    for (target, source) in target.chunks_mut(cols).zip(source.chunks(n)) {
        target[first..].iter_mut().zip(source).for_each(|(target, source)| *target += factor * source);
    }
}

/// A case's frozen layers as the device sees them, and its adapter.
struct Reference<'a> {
    in_features: usize,
    out_features: usize,
    weights: Vec<Vec<f64>>,
    biases: Vec<Vec<f64>>,
    slots: &'a [Option<LoraSlot>],
    params: &'a [f64],
    mask: Vec<f64>,
}

impl Reference<'_> {
    /// The parts: first column, outputs, weight, update.
    fn parts(&self) -> impl Iterator<Item = (usize, usize, &[f64], Option<LoraSlot>)> {
        let mut first = 0;
        self.weights.iter().zip(self.slots).map(move |(weight, slot)| {
            let n = weight.len() / self.in_features;
            first += n;
            (first - n, n, &weight[..], *slot)
        })
    }

    fn a(&self, slot: LoraSlot) -> &[f64] {
        &self.params[slot.a..slot.a + slot.r * self.in_features]
    }

    fn b(&self, slot: LoraSlot, n: usize) -> &[f64] {
        &self.params[slot.b..slot.b + n * slot.r]
    }

    /// `y = x W^T + bias + scaling * dropout(x) A^T B^T`, and `dropout(x) A^T` of each update.
    fn forward(&self, x: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
        let (k, cols) = (self.in_features, self.out_features);
        let mut y = vec![0.0; x.len() / k * cols];
        let mut hidden = Vec::new();
        for ((first, n, weight, slot), bias) in self.parts().zip(&self.biases) {
            add_columns(&mut y, cols, first, &times_transposed(x, weight, k), n, 1.0);
            add_columns(&mut y, cols, first, &bias.repeat(x.len() / k), n, 1.0);
            if let Some(slot) = slot {
                let part = times_transposed(&product(x, &self.mask), self.a(slot), k);
                add_columns(
                    &mut y,
                    cols,
                    first,
                    &times_transposed(&part, self.b(slot, n), slot.r),
                    n,
                    slot.scaling.into(),
                );
                hidden.push(part);
            }
        }
        (y, hidden)
    }

    /// Gradients of the adapter, flat, and of the input.
    fn backward(&self, x: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (k, cols) = (self.in_features, self.out_features);
        let tokens = x.len() / k;
        let (mut grads, mut dx) = (vec![0.0; self.params.len()], vec![0.0; x.len()]);
        for (first, n, weight, slot) in self.parts() {
            let dy = columns(dy, cols, first, n);
            add_columns(&mut dx, k, 0, &times(&dy, weight, n), k, 1.0);
            if let Some(slot) = slot {
                let scaling = f64::from(slot.scaling);
                let dropped = product(x, &self.mask);
                let hidden = times_transposed(&dropped, self.a(slot), k);
                // dB = scaling * dy^T hidden, dhidden = scaling * dy B, dA = dhidden^T dropout(x).
                let db = times(&transposed(&dy, n), &hidden, tokens);
                let dhidden = times(&dy, self.b(slot, n), n);
                let da = times(&transposed(&dhidden, slot.r), &dropped, tokens);
                add_columns(&mut grads[slot.b..], n * slot.r, 0, &db, n * slot.r, scaling);
                add_columns(&mut grads[slot.a..slot.a + slot.r * k], k, 0, &da, k, scaling);
                let through = product(&times(&dhidden, self.a(slot), slot.r), &self.mask);
                add_columns(&mut dx, k, 0, &through, k, scaling);
            }
        }
        (grads, dx)
    }
}

pub(super) fn check<B: Backend>(checker: &mut Checker<'_, B>) -> Result<()> {
    for case in cases() {
        try_case(checker, &case)?;
    }
    Ok(())
}

/// A case's layers on the device, and their weights and biases as they are there.
struct Loaded<B: Backend> {
    projection: Projection<B>,
    weights: Vec<Vec<f64>>,
    biases: Vec<Vec<f64>>,
}

/// Puts a case's layers on the device.
fn load<B: Backend>(checker: &mut Checker<'_, B>, case: &Case) -> Result<Loaded<B>> {
    let backend = checker.backend;
    let (mut parts, mut weights, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for &(out_features, storage, has_bias, _) in &case.parts {
        let matrix = checker.normal(out_features * case.in_features);
        let matrix = HostMatrix::from_f32(out_features, case.in_features, &matrix)?;
        let weight = backend.load_weight(matrix, storage)?;
        let mut seen = Vec::new();
        backend.download_weight(&weight, 0..out_features, &mut seen)?;
        weights.push(seen.into_iter().map(f64::from).collect());
        let Operand { tensor, values } = checker.parameter(1, out_features, 0.0)?;
        biases.push(if has_bias { values } else { vec![0.0; out_features] });
        parts.push(Linear { weight, bias: has_bias.then_some(tensor), out_features });
    }
    let projection = Projection { in_features: case.in_features, index: 7, parts };
    Ok(Loaded { projection, weights, biases })
}

fn try_case<B: Backend>(checker: &mut Checker<'_, B>, case: &Case) -> Result<()> {
    let (backend, tokens, k) = (checker.backend, case.tokens, case.in_features);
    let Loaded { projection, weights, biases } = load(checker, case)?;
    // A and B of the parts one after the other, behind a parameter of somebody else's.
    let mut len = 3;
    let mut take = |n: usize| {
        len += n;
        len - n
    };
    let slots: Vec<Option<LoraSlot>> = case
        .parts
        .iter()
        .map(|&(n, _, _, r)| {
            r.map(|r| LoraSlot { a: take(r * k), b: take(n * r), r, scaling: 16.0 / r as f32 })
        })
        .collect();
    let params = checker.parameter(1, len, 0.0)?;
    let dropout = (case.dropout > 0.0).then_some(Dropout { p: case.dropout, seed: 1 << 40, micro_batch: 5 });
    let has_adapter = slots.iter().any(Option::is_some);
    let adapter = has_adapter.then_some(Adapter { params: &params.tensor, slots: &slots, dropout });
    let rank = adapter.map_or(0, |adapter| adapter.rank());
    let reference = Reference {
        in_features: k,
        out_features: projection.out_features(),
        weights,
        biases,
        slots: &slots,
        params: &params.values,
        mask: mask(dropout, projection.index, tokens, k),
    };
    let dtype = backend.compute_dtype();
    let tolerance = tolerance(dtype).max(tolerance(checker.matmul));

    let x = checker.activation(tokens, k)?;
    let (want_y, want_hidden) = reference.forward(&x.values);
    let mut hidden = checker.activation(tokens + 1, rank.max(1))?;
    for write in [Write::Set, Write::Add] {
        let mut y = checker.activation(tokens + 1, reference.out_features)?;
        let want: Vec<f64> = want_y
            .iter()
            .zip(&y.values)
            .map(|(want, before)| if write == Write::Add { want + before } else { *want })
            .collect();
        let hidden_tensor = has_adapter.then_some(&mut hidden.tensor);
        backend.project(tokens, &projection, adapter, &x.tensor, &mut y.tensor, hidden_tensor, write)?;
        let name = format!("{}, {write:?}", case.name);
        checker.compare_within("project", name, &y.tensor, &want, &y.values, tolerance)?;
    }
    if has_adapter {
        let mut want = vec![0.0; tokens * rank];
        let mut first = 0;
        for part in &want_hidden {
            let r = part.len() / tokens;
            add_columns(&mut want, rank, first, part, r, 1.0);
            first += r;
        }
        let name = format!("{}, hidden", case.name);
        checker.compare_within("project", name, &hidden.tensor, &want, &hidden.values, tolerance)?;
        let mut y = checker.activation(tokens + 1, reference.out_features)?;
        backend.project(tokens, &projection, None, &x.tensor, &mut y.tensor, None, Write::Set)?;
        let base = Reference { slots: &vec![None; slots.len()], ..reference_of(&reference) };
        let (want, _) = base.forward(&x.values);
        let name = format!("{}, base alone", case.name);
        checker.compare_within("project", name, &y.tensor, &want, &y.values, tolerance)?;
    }

    let dy = checker.activation(tokens, reference.out_features)?;
    let (want_grads, want_dx) = reference.backward(&x.values, &dy.values);
    for (write, needs_dx) in [(Write::Set, true), (Write::Add, true), (Write::Set, false)] {
        let mut grads = checker.parameter(1, len, 0.0)?;
        let mut dx = checker.activation(tokens + 1, k)?;
        let updates = adapter.map(|adapter| (adapter, &mut grads.tensor));
        let saved = has_adapter.then_some(&hidden.tensor);
        let gradient = needs_dx.then_some((&mut dx.tensor, write));
        backend.project_backward(tokens, &projection, updates, &x.tensor, saved, &dy.tensor, gradient)?;
        let name = format!("{}, {}", case.name, if needs_dx { format!("{write:?}") } else { "no dx".into() });
        if has_adapter {
            let want: Vec<f64> = want_grads.iter().zip(&grads.values).map(|(g, before)| g + before).collect();
            checker.compare_within(
                "project_backward",
                format!("{name}, adapter"),
                &grads.tensor,
                &want,
                &[],
                tolerance,
            )?;
        }
        if needs_dx {
            let want: Vec<f64> = want_dx
                .iter()
                .zip(&dx.values)
                .map(|(want, before)| if write == Write::Add { want + before } else { *want })
                .collect();
            checker.compare_within("project_backward", name, &dx.tensor, &want, &dx.values, tolerance)?;
        }
    }
    Ok(())
}

/// A copy of the reference.
fn reference_of<'a>(reference: &Reference<'a>) -> Reference<'a> {
    Reference {
        weights: reference.weights.clone(),
        biases: reference.biases.clone(),
        mask: reference.mask.clone(),
        ..*reference
    }
}
