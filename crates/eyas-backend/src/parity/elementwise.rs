//! Sums, copies, gathers and the embedding.

use super::Checker;
use crate::spec::{HostMatrix, QuantConfig, Storage};
use crate::{Backend, Dtype, Result};

/// Rows `rows` of `x`, one after the other.
fn gather(x: &[f64], n: usize, rows: impl IntoIterator<Item = usize>) -> Vec<f64> {
    rows.into_iter().flat_map(|row| x[row * n..(row + 1) * n].to_vec()).collect()
}

pub(super) fn check<B: Backend>(checker: &mut Checker<'_, B>) -> Result<()> {
    let backend = checker.backend;
    for (tokens, n) in [(1, 1), (7, 4544), (129, 33)] {
        let case = format!("{tokens} x {n}");
        let x = checker.activation(tokens, n)?;
        let mut y = checker.activation(tokens + 1, n)?;
        let sum: Vec<f64> = x.values.iter().zip(&y.values).map(|(x, y)| x + y).collect();
        backend.add(tokens, &x.tensor, &mut y.tensor)?;
        checker.compare("add", &case, &y.tensor, &sum, &y.values)?;

        let mut y = checker.activation(tokens + 1, n)?;
        backend.copy(tokens, &x.tensor, &mut y.tensor)?;
        checker.compare("copy", &case, &y.tensor, &x.values, &y.values)?;

        // Both ways, and to the row next to them.
        let mut z = checker.activation(2 * tokens + 1, n)?;
        for (from, to) in [(0..tokens, tokens + 1), (tokens + 1..2 * tokens + 1, 1), (0..1, 1)] {
            backend.copy_rows(&mut z.tensor, from.clone(), to)?;
            z.values.copy_within(from.start * n..from.end * n, to * n);
        }
        checker.compare_within("copy_rows", &case, &z.tensor, &z.values, &[], 0.0)?;

        backend.clear(&mut y.tensor)?;
        checker.compare("clear", &case, &y.tensor, &vec![0.0; (tokens + 1) * n], &y.values)?;

        // Away, overwritten, and back to another place.
        let mut away = checker.activation(tokens, n)?;
        let kept = away.values.clone();
        let mut host = backend.new_host_buffer(backend.compute_dtype(), tokens + 1, n)?;
        backend.offload(tokens, &away.tensor, &mut host)?;
        backend.await_copy(&host)?;
        backend.clear(&mut away.tensor)?;
        let mut y = checker.activation(tokens + 1, n)?;
        backend.fetch(tokens, &host, &mut y.tensor)?;
        backend.await_copy(&host)?;
        checker.compare_within("offload", &case, &y.tensor, &kept, &y.values, 0.0)?;

        // Read and changed on the way by the host.
        let values: Vec<f32> = kept.iter().map(|value| *value as f32).collect();
        let mut away = checker.operand(Dtype::F32, n, &values)?;
        let mut host = backend.new_host_buffer(Dtype::F32, tokens, n)?;
        backend.offload(tokens, &away.tensor, &mut host)?;
        backend.await_copy(&host)?;
        backend.clear(&mut away.tensor)?;
        let seen: Vec<f64> =
            backend.host_values(&host)?.iter().map(|value| f64::from(*value) * 2.0).collect();
        backend.host_values_mut(&mut host)?.iter_mut().for_each(|value| *value *= 2.0);
        backend.fetch(tokens, &host, &mut away.tensor)?;
        backend.await_copy(&host)?;
        let twice: Vec<f64> = kept.iter().map(|value| value * 2.0).collect();
        checker.compare_within(
            "offload",
            format!("{case}, changed by the host"),
            &away.tensor,
            &twice,
            &[],
            0.0,
        )?;
        checker.compare_within(
            "offload",
            format!("{case}, read by the host"),
            &away.tensor,
            &seen,
            &[],
            0.0,
        )?;
    }

    let (batch, host) = checker.batch(&[5, 1, 40, 3], 97)?;
    let (tokens, n) = (host.tokens(), 72);
    let rows: Vec<usize> = (0..tokens).filter(|&row| host.targets()[row] >= 0).collect();
    let x = checker.activation(tokens, n)?;
    for range in [0..rows.len(), 3..11, 2..2] {
        let case = format!("targets {range:?} of {}", rows.len());
        let mut y = checker.activation(range.len() + 1, n)?;
        backend.gather_targets(&batch, range.clone(), &x.tensor, &mut y.tensor)?;
        let want = gather(&x.values, n, rows[range.clone()].iter().copied());
        checker.compare("gather_targets", &case, &y.tensor, &want, &y.values)?;

        let part = checker.activation(range.len().max(1), n)?;
        let mut y = checker.activation(tokens + 1, n)?;
        backend.scatter_targets(&batch, range.clone(), &part.tensor, &mut y.tensor)?;
        let mut want = y.values.clone();
        for (&row, part) in rows[range].iter().zip(part.values.chunks(n)) {
            want[row * n..(row + 1) * n].copy_from_slice(part);
        }
        checker.compare("scatter_targets", &case, &y.tensor, &want, &y.values)?;
    }
    let mut y = checker.activation(host.sequences() + 1, n)?;
    backend.gather_last(&batch, &x.tensor, &mut y.tensor)?;
    let want = gather(&x.values, n, host.ranges().map(|range| range.end - 1));
    checker.compare("gather_last", "4 sequences", &y.tensor, &want, &y.values)?;

    for storage in [Storage::Dense(Dtype::Bf16), Storage::Quantised(QuantConfig::default())] {
        let values = checker.normal(97 * n);
        let table = backend.load_weight(HostMatrix::from_f32(97, n, &values)?, storage)?;
        let mut rows = Vec::new();
        backend.download_weight(&table, 0..97, &mut rows)?;
        let rows: Vec<f64> = rows.into_iter().map(f64::from).collect();
        let mut x = checker.activation(tokens + 1, n)?;
        backend.embed(&batch, &table, &mut x.tensor)?;
        let want = gather(&rows, n, host.input_ids().iter().map(|&id| id as usize));
        checker.compare("embed", format!("{storage:?}"), &x.tensor, &want, &x.values)?;
    }
    Ok(())
}
