//! Projections with their low-rank updates, forward and backward.
//!
//! All parts of a projection are dequantised side by side into one scratch matrix, so that a projection is one product.
//! The update costs no pass of its own over the larger activation: where the input is the narrower side, the input is
//! copied once with its low-rank activations beside it and the weights carry `scaling * B` in spare columns, one product
//! over `in + rank`; where the output is, the update is written to it first and the product adds to it. The backward
//! writes `mask(dh A)` to `dx` first, since the mask is inside, and adds `dy W`.

use eyas_backend::{Adapter, Dtype, Error, Linear, LoraSlot, Projection, Result, Write};

use crate::CudaTensor;
use crate::backend::CudaBackend;
use crate::device::Ptr;
use crate::few_rows::{FEW_ROWS, FewRows};
use crate::kernels::{Grid, args};
use crate::matmul::{Direction, Product};
use crate::scratch::{ScratchGuard, Slot};
use crate::tensor::check;
use crate::thin::{DropoutArg, Rows, rank_pad};

/// How a low-rank update joins the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraPath {
    /// One product over `in + rank`.
    Wide,
    /// The update first, then a product that adds to it.
    Accumulate,
}

/// One part of a projection, with where its columns and ranks start.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) linear: &'a Linear<CudaBackend>,
    pub(crate) column: usize,
    pub(crate) rank: usize,
    /// The update, when one is in force.
    pub(crate) lora: Option<LoraSlot>,
}

impl Part<'_> {
    /// Its bias, or null.
    pub(crate) fn bias(&self) -> Ptr {
        self.linear.bias.as_ref().map_or(Ptr::NULL, CudaTensor::ptr)
    }

    /// B of its update in the adapter's flat vector, its ranks and its scaling; null and zeros without one.
    pub(crate) fn update(&self, params: Option<&CudaTensor>) -> (Ptr, i32, f32) {
        self.lora
            .zip(params)
            .map_or((Ptr::NULL, 0, 0.0), |(lora, params)| (params.at(lora.b), lora.r as i32, lora.scaling))
    }
}

/// The parts of a projection, checked, with the updates that `adapter` has for them.
fn parts<'a>(
    op: &'static str,
    projection: &'a Projection<CudaBackend>,
    adapter: Option<Adapter<'_, CudaBackend>>,
) -> Result<Vec<Part<'a>>> {
    if adapter.is_some_and(|adapter| adapter.slots.len() != projection.parts.len()) {
        return Err(Error::Shape { op, reason: "the adapter has not one slot for each part".into() });
    }
    let (mut column, mut rank) = (0, 0);
    let mut parts = Vec::with_capacity(projection.parts.len());
    for (i, linear) in projection.parts.iter().enumerate() {
        let (rows, cols) = (linear.weight.rows, linear.weight.cols);
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
            check(op, "bias", bias, 1, rows, Dtype::F32)?;
        }
        let lora = adapter.and_then(|adapter| adapter.slots[i]).filter(|lora| lora.r > 0);
        if let (Some(adapter), Some(lora)) = (adapter, lora) {
            let count = adapter.params.cols();
            check(op, "params", adapter.params, 1, count, Dtype::F32)?;
            let end =
                |start: usize, width: usize| lora.r.checked_mul(width).and_then(|n| n.checked_add(start));
            if [end(lora.a, cols), end(lora.b, rows)].iter().any(|end| end.is_none_or(|end| end > count)) {
                return Err(Error::Shape {
                    op,
                    reason: format!("part {i}'s update ends past the {count} parameters"),
                });
            }
        }
        parts.push(Part { linear, column, rank, lora });
        column += rows;
        rank += lora.map_or(0, |lora| lora.r);
    }
    Ok(parts)
}

impl CudaBackend {
    /// The path with fewer bytes; only weights in scratch memory can be widened.
    fn lora_path_of(&self, projection: &Projection<Self>, in_scratch: bool) -> LoraPath {
        let narrow_input = projection.in_features <= projection.out_features();
        let by_bytes = if narrow_input { LoraPath::Wide } else { LoraPath::Accumulate };
        if in_scratch { self.lora_path.unwrap_or(by_bytes) } else { LoraPath::Accumulate }
    }

    /// Whether every part is dense in the activations' type and is read where it lies.
    fn is_direct(&self, projection: &Projection<Self>) -> bool {
        projection.parts.iter().all(|part| part.weight.is_dense(self.dtype))
    }

    /// All parts' weights below each other in scratch memory, rows of `ld` elements.
    fn materialise_parts(
        &self,
        scratch: &mut ScratchGuard<'_>,
        parts: &[Part<'_>],
        ld: usize,
    ) -> Result<Ptr> {
        let rows: usize = parts.iter().map(|part| part.linear.out_features).sum();
        let size = self.dtype.size();
        let to = scratch.get(Slot::Weight, rows * ld * size)?;
        for part in parts {
            self.materialise(&part.linear.weight, to.add(part.column * ld * size), ld)?;
        }
        Ok(to)
    }

    /// Every part's bias side by side in the activations' type; none where no part has one.
    fn pack_bias(&self, scratch: &mut ScratchGuard<'_>, parts: &[Part<'_>]) -> Result<Option<Ptr>> {
        if parts.iter().all(|part| part.linear.bias.is_none()) {
            return Ok(None);
        }
        let size = self.dtype.size();
        let cols: usize = parts.iter().map(|part| part.linear.out_features).sum();
        let to = scratch.get(Slot::Bias, cols * size)?;
        for part in parts {
            let n = part.linear.out_features;
            let grid = Grid::new(n.div_ceil(256), 256);
            self.kernels.launch(
                "pack_bias",
                self.dtype,
                grid,
                args![part.bias(), n as i32, to.add(part.column * size)],
            )?;
        }
        Ok(Some(to))
    }

    /// Products of all parts with their weights: one over scratch memory, or one a part over dense weights.
    fn products(
        &self,
        scratch: &ScratchGuard<'_>,
        direction: Direction,
        tokens: usize,
        parts: &[Part<'_>],
        scratch_weight: Option<(Ptr, usize)>,
        in_features: usize,
        (input, ld_input): (Ptr, usize),
        (output, ld_output): (Ptr, usize),
        add: bool,
        bias: Option<Ptr>,
    ) -> Result<()> {
        let size = self.dtype.size();
        let out_features: usize = parts.iter().map(|part| part.linear.out_features).sum();
        // The sums in pieces are done with by now, and so is the wide input where it is not what is multiplied.
        let (wide, partial) = (scratch.held(Slot::Wide), scratch.held(Slot::Partial));
        let spare = if wide.0 == input || wide.1 < partial.1 { partial } else { wide };
        let whole = Product {
            direction,
            tokens,
            out_features,
            in_features,
            weight: Ptr::NULL,
            ldw: in_features,
            input,
            ld_input,
            output,
            ld_output,
            add,
            bias,
        };
        if let Some((weight, ldw)) = scratch_weight {
            return self.matmul.run(&Product { weight, ldw, ..whole }, spare);
        }
        for (i, part) in parts.iter().enumerate() {
            let offset = part.column * size;
            let (input, output) = match direction {
                Direction::Forward => (input, output.add(offset)),
                Direction::InputGradient => (input.add(offset), output),
            };
            let product = Product {
                out_features: part.linear.out_features,
                weight: part.linear.weight.ptr(),
                input,
                output,
                // Gradients of the parts add up.
                add: add || (i > 0 && direction == Direction::InputGradient),
                bias: bias.map(|bias| bias.add(offset)),
                ..whole
            };
            self.matmul.run(&product, spare)?;
        }
        Ok(())
    }

    pub(crate) fn run_project(
        &self,
        tokens: usize,
        projection: &Projection<Self>,
        adapter: Option<Adapter<'_, Self>>,
        x: &CudaTensor,
        y: &mut CudaTensor,
        hidden: Option<&mut CudaTensor>,
        write: Write,
    ) -> Result<()> {
        let op = "project";
        let (k, n) = (projection.in_features, projection.out_features());
        check(op, "x", x, tokens, k, self.dtype)?;
        check(op, "y", y, tokens, n, self.dtype)?;
        let parts = parts(op, projection, adapter)?;
        let rank = adapter.map_or(0, |adapter| adapter.rank());
        if let Some(hidden) = &hidden
            && rank > 0
        {
            check(op, "hidden", hidden, tokens, rank, self.dtype)?;
        }
        if tokens == 0 {
            return Ok(());
        }
        let dropout = DropoutArg::new(adapter.and_then(|a| a.dropout), projection.index);
        let mut scratch = self.scratch.lock();
        let add = write == Write::Add;
        let hidden = hidden.as_deref().map(CudaTensor::ptr);
        let plain = adapter.is_none_or(|a| a.dropout.is_none());
        let params = adapter.map(|a| a.params);
        let few = FewRows { tokens, parts: &parts, params, rank, x, saved: hidden, add };
        if plain && self.is_few_mma(tokens, projection, x) {
            return self.few_mma(&mut scratch, &few, y);
        }
        if tokens <= FEW_ROWS && plain && self.is_few_rows(projection, x) {
            return self.few_rows(&mut scratch, &few, y);
        }
        let bias = self.pack_bias(&mut scratch, &parts)?;
        let in_scratch = !self.is_direct(projection);
        let size = self.dtype.size();
        let input = Rows { ptr: x.ptr(), ld: k, cols: k };
        let Some(adapter) = adapter.filter(|_| rank > 0) else {
            let weight =
                if in_scratch { Some((self.materialise_parts(&mut scratch, &parts, k)?, k)) } else { None };
            let (from, to) = ((x.ptr(), k), (y.ptr(), n));
            return self.products(
                &scratch,
                Direction::Forward,
                tokens,
                &parts,
                weight,
                k,
                from,
                to,
                add,
                bias,
            );
        };
        let slots: Vec<_> = parts.iter().filter_map(|part| part.lora.map(|lora| (lora.a, lora.r))).collect();
        let packed = self.pack_a(&mut scratch, adapter.params, &slots, k)?;
        let h = match hidden {
            Some(h) => h,
            None => scratch.get(Slot::Hidden, tokens * rank * size)?,
        };
        if self.lora_path_of(projection, in_scratch) == LoraPath::Wide {
            // Whole steps of the product's inner loop, and rows that start on 128 bytes.
            let spare = (k + rank).next_multiple_of(64) - k;
            let ld = k + spare;
            let wide = scratch.get(Slot::Wide, tokens * ld * size)?;
            self.thin_down(&mut scratch, tokens, input, packed, h, rank, Some((wide, ld, spare)), dropout)?;
            let weight = self.materialise_parts(&mut scratch, &parts, ld)?;
            for part in &parts {
                let to = weight.add((part.column * ld + k) * size);
                let rows = part.linear.out_features;
                let (b, r, scaling) = part.update(Some(adapter.params));
                self.kernels.launch(
                    "widen",
                    self.dtype,
                    Grid::over(rows * spare),
                    args![to, ld as u64, rows as i32, spare as i32, b, part.rank as i32, r, scaling],
                )?;
            }
            let (from, to) = ((wide, ld), (y.ptr(), n));
            return self.products(
                &scratch,
                Direction::Forward,
                tokens,
                &parts,
                Some((weight, ld)),
                ld,
                from,
                to,
                add,
                bias,
            );
        }
        self.thin_down(&mut scratch, tokens, input, packed, h, rank, None, dropout)?;
        for part in &parts {
            let to = Rows { ptr: y.at(part.column), ld: n, cols: part.linear.out_features };
            match part.lora {
                Some(lora) => {
                    let b = self.pack_b(
                        &mut scratch,
                        adapter.params,
                        lora.b,
                        lora.r,
                        part.linear.out_features,
                        lora.scaling,
                    )?;
                    self.thin_up(tokens, h.add(part.rank * size), rank, b, to, add, DropoutArg::NONE)?;
                }
                // The product adds to all columns: those without an update start from zero.
                None if !add => {
                    let zero = crate::thin::Packed { ptr: packed.ptr, rank: 0, ld: packed.ld };
                    self.thin_up(tokens, h, rank, zero, to, false, DropoutArg::NONE)?;
                }
                None => {}
            }
        }
        let weight =
            if in_scratch { Some((self.materialise_parts(&mut scratch, &parts, k)?, k)) } else { None };
        let (from, to) = ((x.ptr(), k), (y.ptr(), n));
        self.products(&scratch, Direction::Forward, tokens, &parts, weight, k, from, to, true, bias)
    }

    pub(crate) fn run_project_backward(
        &self,
        tokens: usize,
        projection: &Projection<Self>,
        adapter: Option<(Adapter<'_, Self>, &mut CudaTensor)>,
        x: &CudaTensor,
        hidden: Option<&CudaTensor>,
        dy: &CudaTensor,
        dx: Option<(&mut CudaTensor, Write)>,
    ) -> Result<()> {
        let op = "project_backward";
        let (k, n) = (projection.in_features, projection.out_features());
        check(op, "dy", dy, tokens, n, self.dtype)?;
        if let Some((dx, _)) = &dx {
            check(op, "dx", dx, tokens, k, self.dtype)?;
        }
        let parts = parts(op, projection, adapter.as_ref().map(|(adapter, _)| *adapter))?;
        let rank = adapter.as_ref().map_or(0, |(adapter, _)| adapter.rank());
        if tokens == 0 {
            return Ok(());
        }
        let mut scratch = self.scratch.lock();
        let mut dx = dx.map(|(dx, write)| (dx, write == Write::Add));
        if let Some((adapter, grads)) = adapter.filter(|_| rank > 0) {
            check(op, "x", x, tokens, k, self.dtype)?;
            let hidden = hidden.ok_or_else(|| Error::Shape {
                op,
                reason: "the low-rank activations of the forward are needed for the adapter's gradient"
                    .into(),
            })?;
            check(op, "hidden", hidden, tokens, rank, self.dtype)?;
            check(op, "grads", grads, 1, adapter.params.cols(), Dtype::F32)?;
            let dropout = DropoutArg::new(adapter.dropout, projection.index);
            let size = self.dtype.size();
            let ld_h = rank_pad(rank);
            let dh = scratch.get(Slot::Hidden, tokens * ld_h * size)?;
            for part in &parts {
                let Some(lora) = part.lora else { continue };
                let out = part.linear.out_features;
                let from = Rows { ptr: dy.at(part.column), ld: n, cols: out };
                let b = self.pack_b(&mut scratch, adapter.params, lora.b, lora.r, out, lora.scaling)?;
                self.thin_down(
                    &mut scratch,
                    tokens,
                    from,
                    b,
                    dh.add(part.rank * size),
                    ld_h,
                    None,
                    DropoutArg::NONE,
                )?;
                let h = hidden.at(part.rank);
                let pieces = self.thin_grad(&mut scratch, tokens, h, rank, lora.r, from, DropoutArg::NONE)?;
                self.add_grad(&pieces, 0, lora.r, lora.scaling, true, grads.at(lora.b))?;
            }
            let input = Rows { ptr: x.ptr(), ld: k, cols: k };
            let pieces = self.thin_grad(&mut scratch, tokens, dh, ld_h, rank, input, dropout)?;
            for part in &parts {
                if let Some(lora) = part.lora {
                    self.add_grad(&pieces, part.rank, lora.r, dropout.keep_scale, false, grads.at(lora.a))?;
                }
            }
            if let Some((dx, add)) = &mut dx {
                let slots: Vec<_> =
                    parts.iter().filter_map(|part| part.lora.map(|lora| (lora.a, lora.r))).collect();
                let packed = self.pack_a(&mut scratch, adapter.params, &slots, k)?;
                let to = Rows { ptr: dx.ptr(), ld: k, cols: k };
                self.thin_up(tokens, dh, ld_h, packed, to, *add, dropout)?;
                *add = true;
            }
        }
        let Some((dx, add)) = dx else { return Ok(()) };
        let weight = if self.is_direct(projection) {
            None
        } else {
            Some((self.materialise_parts(&mut scratch, &parts, k)?, k))
        };
        let (from, to) = ((dy.ptr(), n), (dx.ptr(), k));
        self.products(&scratch, Direction::InputGradient, tokens, &parts, weight, k, from, to, add, None)
    }
}
