//! Projections with their low-rank updates, forward and backward.
//!
//! One product has everything in it: the frozen weight and the update `[W | scaling * B]` meet `[x | hidden]` in the
//! same tiles, and the input gradients of all parts are summed in registers. The work is cut into blocks of output
//! columns, so that each block of a weight is decoded once; see [`super::product`].

mod backward;
mod forward;
#[cfg(test)]
mod tests;
mod thin;

use std::ops::Range;

use super::dropout::Mask;
use super::matvec;
use super::microkernel::{Element, Kernel, PortableF32};
use super::scratch::Scratch;
use super::simd::{Isa, Level};
use super::*;
use crate::spec::{LoraSlot, check_shape};
use backward::Backward;
use forward::Forward;

/// Columns of the output that a task computes: a multiple of every kernel's tile and of a counter's 8 columns.
const COLUMNS: usize = 96;
/// Fewest rows worth a task of their own: the block's weights are decoded again for them.
const MIN_ROWS: usize = 256;

/// One part of a projection with where its columns lie.
#[derive(Clone, Copy)]
struct Part<'a> {
    weight: &'a CpuWeight,
    bias: Option<&'a CpuTensor>,
    slot: Option<LoraSlot>,
    /// First column in `y`, and their number.
    col: usize,
    out_features: usize,
    /// First column in `hidden`.
    hidden: usize,
}

impl Part<'_> {
    fn cols(&self) -> Range<usize> {
        self.col..self.col + self.out_features
    }
}

/// The low-rank update of a part.
#[derive(Clone, Copy)]
struct Update<'a> {
    /// `[r, in]`.
    a: &'a [f32],
    /// `[out, r]`.
    b: &'a [f32],
    r: usize,
    scaling: f32,
    /// First column in `hidden`.
    hidden: usize,
}

/// A projection's parts and updates, checked, as both directions take them.
struct Layers<'a> {
    scratch: &'a Scratch,
    tokens: usize,
    in_features: usize,
    out_features: usize,
    /// Columns of `hidden`.
    rank: usize,
    parts: Vec<Part<'a>>,
    /// The parts' updates, in order.
    updates: Vec<Option<Update<'a>>>,
    mask: Option<Mask>,
}

impl<'a> Layers<'a> {
    fn new(
        op: &'static str,
        scratch: &'a Scratch,
        tokens: usize,
        projection: &'a Projection<CpuBackend>,
        adapter: Option<Adapter<'a, CpuBackend>>,
    ) -> Result<Self> {
        let parts = parts(op, projection, adapter.as_ref())?;
        let updates = updates(op, projection, &parts, adapter.map(|adapter| adapter.params))?;
        Ok(Self {
            scratch,
            tokens,
            in_features: projection.in_features,
            out_features: projection.out_features(),
            rank: adapter.map_or(0, |adapter| adapter.rank()),
            parts,
            updates,
            mask: adapter.and_then(|adapter| Mask::new(adapter.dropout, projection.index)),
        })
    }
}

fn parts<'a>(
    op: &'static str,
    projection: &'a Projection<CpuBackend>,
    adapter: Option<&Adapter<'_, CpuBackend>>,
) -> Result<Vec<Part<'a>>> {
    let slots = adapter.map(|adapter| adapter.slots);
    if slots.is_some_and(|slots| slots.len() != projection.parts.len()) {
        return Err(Error::Shape { op, reason: "the adapter has not one slot for each part".into() });
    }
    let (mut col, mut hidden) = (0, 0);
    projection
        .parts
        .iter()
        .enumerate()
        .map(|(i, linear)| {
            let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
            if rows != linear.out_features || cols != projection.in_features {
                return Err(Error::Shape {
                    op,
                    reason: format!(
                        "part {i} is {rows} x {cols}; {} x {} is needed",
                        linear.out_features, projection.in_features
                    ),
                });
            }
            if let Some(bias) = &linear.bias {
                check_shape(op, "bias", bias, 1, linear.out_features)?;
            }
            let slot = slots.and_then(|slots| slots[i]);
            let part = Part {
                weight: &linear.weight,
                bias: linear.bias.as_ref(),
                slot,
                col,
                out_features: linear.out_features,
                hidden,
            };
            col += linear.out_features;
            hidden += slot.map_or(0, |slot| slot.r);
            Ok(part)
        })
        .collect()
}

/// A slot's place in the flat vector, checked.
fn slot_ranges(
    op: &'static str,
    slot: LoraSlot,
    in_features: usize,
    out_features: usize,
    len: usize,
) -> Result<(Range<usize>, Range<usize>)> {
    let range = |start: usize, features: usize| {
        let end = slot.r.checked_mul(features).and_then(|n| n.checked_add(start)).filter(|&end| end <= len);
        end.map(|end| start..end)
    };
    range(slot.a, in_features).zip(range(slot.b, out_features)).ok_or_else(|| Error::Shape {
        op,
        reason: format!("{slot:?} of a {out_features} x {in_features} layer reaches past {len} parameters"),
    })
}

/// The parts' updates, in order; `None` where there is none.
fn updates<'a>(
    op: &'static str,
    projection: &Projection<CpuBackend>,
    parts: &[Part<'_>],
    params: Option<&'a CpuTensor>,
) -> Result<Vec<Option<Update<'a>>>> {
    parts
        .iter()
        .map(|part| {
            let (Some(slot), Some(params)) = (part.slot.filter(|slot| slot.r > 0), params) else {
                return Ok(None);
            };
            let (a, b) = slot_ranges(op, slot, projection.in_features, part.out_features, params.data.len())?;
            let (a, b) = (&params.data[a], &params.data[b]);
            Ok(Some(Update { a, b, r: slot.r, scaling: slot.scaling, hidden: part.hidden }))
        })
        .collect()
}

/// Calls a generic function with the kernel chosen for this processor.
macro_rules! with_kernel {
    ($backend:expr, $function:ident ($($arg:expr),* $(,)?)) => {
        match ($backend.matmul, Level::detect()) {
            #[cfg(target_arch = "x86_64")]
            (MatmulKernel::AmxBf16, _) => $function::<super::amx::AmxBf16>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            (MatmulKernel::Bf16, _) => $function::<super::tile::Avx512Bf16>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            (MatmulKernel::I16, _) if Isa::Avx512Vnni.is_usable() => {
                $function::<super::tile::Avx512I16>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            (MatmulKernel::I16, _) => $function::<super::tile::Avx2I16>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            (MatmulKernel::F32, Level::Avx512) => $function::<super::tile::Avx512F32>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            (MatmulKernel::F32, Level::Avx2) => $function::<super::tile::Avx2F32>($($arg),*),
            _ => $function::<PortableF32>($($arg),*),
        }
    };
}

pub(super) fn project(
    backend: &CpuBackend,
    tokens: usize,
    projection: &Projection<CpuBackend>,
    adapter: Option<Adapter<'_, CpuBackend>>,
    x: &CpuTensor,
    y: &mut CpuTensor,
    hidden: Option<&mut CpuTensor>,
    write: Write,
) -> Result<()> {
    with_kernel!(backend, project_with(&backend.scratch, tokens, projection, adapter, x, y, hidden, write))
}

/// [`project`] with a kernel that the processor must have.
fn project_with<K: Kernel>(
    scratch: &Scratch,
    tokens: usize,
    projection: &Projection<CpuBackend>,
    adapter: Option<Adapter<'_, CpuBackend>>,
    x: &CpuTensor,
    y: &mut CpuTensor,
    hidden: Option<&mut CpuTensor>,
    write: Write,
) -> Result<()> {
    let op = "project";
    let layers = Layers::new(op, scratch, tokens, projection, adapter)?;
    check_shape(op, "x", x, tokens, layers.in_features)?;
    check_shape(op, "y", y, tokens, layers.out_features)?;
    let mut own;
    let hidden: &mut [f32] = match hidden {
        Some(hidden) if adapter.is_some() => {
            check_shape(op, "hidden", hidden, tokens, layers.rank)?;
            hidden.rows_mut(tokens)
        }
        _ => {
            own = scratch.take::<f32>(tokens * layers.rank);
            &mut own
        }
    };
    if tokens == 0 {
        return Ok(());
    }
    let forward = Forward { layers, x: x.rows(tokens), add: write == Write::Add };
    if tokens <= matvec::TOKENS {
        // What the kernel of many rows keeps in `f32` stays so here.
        let exact = K::Element::borrow(&[]).is_some();
        forward.few(hidden, y.rows_mut(tokens), exact);
    } else {
        forward.many::<K>(hidden, y.rows_mut(tokens));
    }
    Ok(())
}

pub(super) fn project_backward(
    backend: &CpuBackend,
    tokens: usize,
    projection: &Projection<CpuBackend>,
    adapter: Option<(Adapter<'_, CpuBackend>, &mut CpuTensor)>,
    x: &CpuTensor,
    hidden: Option<&CpuTensor>,
    dy: &CpuTensor,
    dx: Option<(&mut CpuTensor, Write)>,
) -> Result<()> {
    with_kernel!(
        backend,
        project_backward_with(&backend.scratch, tokens, projection, adapter, x, hidden, dy, dx)
    )
}

/// [`project_backward`] with a kernel that the processor must have.
fn project_backward_with<K: Kernel>(
    scratch: &Scratch,
    tokens: usize,
    projection: &Projection<CpuBackend>,
    adapter: Option<(Adapter<'_, CpuBackend>, &mut CpuTensor)>,
    x: &CpuTensor,
    hidden: Option<&CpuTensor>,
    dy: &CpuTensor,
    dx: Option<(&mut CpuTensor, Write)>,
) -> Result<()> {
    let op = "project_backward";
    let (adapter, grads) = adapter.unzip();
    let layers = Layers::new(op, scratch, tokens, projection, adapter)?;
    check_shape(op, "dy", dy, tokens, layers.out_features)?;
    if let Some((dx, _)) = &dx {
        check_shape(op, "dx", *dx, tokens, layers.in_features)?;
    }
    let (mut x_rows, mut hidden_rows): (&[f32], &[f32]) = (&[], &[]);
    if layers.rank > 0 {
        check_shape(op, "x", x, tokens, layers.in_features)?;
        let Some(hidden) = hidden else {
            return Err(Error::Shape {
                op,
                reason: "an adapter's backward needs `hidden` of the forward".into(),
            });
        };
        check_shape(op, "hidden", hidden, tokens, layers.rank)?;
        (x_rows, hidden_rows) = (x.rows(tokens), hidden.rows(tokens));
    }
    if let (Some(grads), Some(adapter)) = (&grads, adapter)
        && grads.data.len() < adapter.params.data.len()
    {
        return Err(Error::Shape {
            op,
            reason: format!("{} gradients for {} parameters", grads.data.len(), adapter.params.data.len()),
        });
    }
    if tokens == 0 {
        return Ok(());
    }
    let backward = Backward { layers, x: x_rows, hidden: hidden_rows, dy: dy.rows(tokens) };
    let grads = grads.map_or(&mut [][..], |grads| &mut grads.data[..]);
    let dx = dx.map(|(dx, write)| (dx.rows_mut(tokens), write == Write::Add));
    backward.run::<K>(grads, dx);
    Ok(())
}

/// Column blocks of a matrix.
fn blocks(cols: usize) -> impl Iterator<Item = Range<usize>> {
    (0..cols).step_by(COLUMNS).map(move |start| start..(start + COLUMNS).min(cols))
}

/// Shares column blocks out by rows too where there are too few for the threads. Does not change results.
fn row_tasks<T: Clone>(rows: usize, blocks: Vec<T>) -> Vec<(T, Range<usize>)> {
    let wanted = (3 * rayon::current_num_threads()).div_ceil(blocks.len().max(1));
    let pieces = wanted.clamp(1, (rows / MIN_ROWS).max(1));
    let len = rows.div_ceil(pieces).next_multiple_of(thin::THIN_ROWS);
    let pieces = (0..rows).step_by(len.max(1)).map(|start| start..(start + len).min(rows));
    pieces.flat_map(|rows| blocks.iter().cloned().map(move |block| (block, rows.clone()))).collect()
}
