//! The tiles of the products with vectors: `f32`, `bf16` and 16-bit integers.
//!
//! A tile has two vectors of columns. With AVX2 there are 6 x 16 sums in 12 registers; with AVX-512 12 x 32 in 24: two
//! loads of a panel and twelve broadcasts for 24 multiply-adds, so that even a processor with two 512-bit multiply-add
//! units waits for them and not for its loads.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use half::bf16;

use super::microkernel::{Element, Kernel, Term};
use super::panel::Layout;
use super::vector::{Floats, Register, Words};

/// How the words of two operands are multiplied: each is an element, or a pair of neighbours along the depth.
trait Product {
    type Element: Element;
    /// A vector of the output.
    type Floats: Floats;
    /// A vector of what is summed.
    type Sums: Copy;
    /// See [`Kernel::DEPTH`].
    const DEPTH: usize;
    /// Words along the depth for which the rows' addresses are worked out once.
    const UNROLL: usize;
    /// Columns of a tile.
    const COLUMNS: usize = 2 * Self::Floats::LANES;

    /// `sums + a * b`
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn multiply_add(a: Bits<Self>, b: Bits<Self>, sums: Self::Sums) -> Self::Sums;
}

/// A vector of an operand.
type Bits<P> = <<P as Product>::Floats as Floats>::Words;

/// The sums of a tile.
type Tile<V, const ROWS: usize> = [[V; 2]; ROWS];

/// `f32` multiply-adds.
struct F32<V>(PhantomData<V>);

impl<V: Floats> Product for F32<V> {
    type Element = f32;
    type Floats = V;
    type Sums = V;
    const DEPTH: usize = 256;
    const UNROLL: usize = 4;

    #[inline(always)]
    unsafe fn multiply_add(a: V::Words, b: V::Words, sums: V) -> V {
        // SAFETY: the caller promises the instructions.
        unsafe { V::from_bits(a).mul_add(V::from_bits(b), sums) }
    }
}

/// `bf16` operands and `f32` sums with `vdpbf16ps`.
struct Bf16;

impl Product for Bf16 {
    type Element = bf16;
    type Floats = __m512;
    type Sums = __m512;
    const DEPTH: usize = 384;
    const UNROLL: usize = 4;

    #[inline(always)]
    unsafe fn multiply_add(a: __m512i, b: __m512i, sums: __m512) -> __m512 {
        // SAFETY: the caller promises the instructions; a vector of `bf16` is plain bits.
        unsafe {
            let [a, b]: [__m512bh; 2] = std::mem::transmute([a, b]);
            _mm512_dpbf16_ps(sums, a, b)
        }
    }
}

/// 16-bit integers in groups: two products added to each 32-bit lane, with AVX2's `vpmaddwd` or with `vpdpwssd`.
struct I16<V>(PhantomData<V>);

impl<V: Floats> Product for I16<V> {
    type Element = i16;
    type Floats = V;
    type Sums = V::Words;
    const DEPTH: usize = 512;
    const UNROLL: usize = 1;

    #[inline(always)]
    unsafe fn multiply_add(a: V::Words, b: V::Words, sums: V::Words) -> V::Words {
        // SAFETY: the caller promises the instructions.
        unsafe { sums.add_pair_products(a, b) }
    }
}

/// Defines a kernel: a tile that is compiled for the instructions named with each number of rows as a constant, so that
/// its sums stay in registers.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident: $element:ty = $tile:ident::<$product:ty>, $instructions:literal, $($rows:literal)*) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Kernel for $name {
            type Element = $element;
            const MR: usize = [$($rows),*].len();
            const NR: usize = <$product>::COLUMNS;
            const DEPTH: usize = <$product>::DEPTH;
            const ROWS: usize = 8 * Self::MR;

            unsafe fn tile(
                rows: usize,
                terms: &[Term<Self::Element>],
                c: *mut f32,
                c_stride: usize,
                add: bool,
            ) {
                #[target_feature(enable = $instructions)]
                unsafe fn compiled<const ROWS: usize>(
                    terms: &[Term<$element>],
                    c: *mut f32,
                    c_stride: usize,
                    add: bool,
                ) {
                    // SAFETY: the caller promises the operands.
                    unsafe { $tile::<_, $product, ROWS>(terms, c, c_stride, add) }
                }
                match rows {
                    // SAFETY: the caller promises the instructions and the operands.
                    $($rows => unsafe { compiled::<$rows>(terms, c, c_stride, add) },)*
                    _ => unreachable!("a tile of {rows} rows"),
                }
            }
        }
    };
}

kernel! {
    /// `f32` with AVX2 and FMA.
    Avx2F32: f32 = tile::<F32<__m256>>, "avx2,fma", 1 2 3 4 5 6
}
kernel! {
    /// 16-bit integers with AVX2.
    Avx2I16: i16 = grouped_tile::<I16<__m256>>, "avx2,fma", 1 2 3 4 5 6
}
kernel! {
    /// `f32` with AVX-512.
    Avx512F32: f32 = tile::<F32<__m512>>, "avx512f", 1 2 3 4 5 6 7 8 9 10 11 12
}
kernel! {
    /// `bf16` with AVX-512's own dot product.
    Avx512Bf16: bf16 = tile::<Bf16>, "avx512f,avx512bw,avx512bf16", 1 2 3 4 5 6 7 8 9 10 11 12
}
kernel! {
    /// 16-bit integers with AVX-512's VNNI.
    Avx512I16: i16 = grouped_tile::<I16<__m512>>, "avx512f,avx512bw,avx512vnni", 1 2 3 4 5 6 7 8 9 10 11 12
}

/// A tile of plain sums.
///
/// # Safety
/// As [`Kernel::tile`] with `ROWS` rows.
#[inline(always)]
unsafe fn tile<V: Floats, P: Product<Floats = V, Sums = V>, const ROWS: usize>(
    terms: &[Term<P::Element>],
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    // SAFETY: the caller promises the instructions, `ROWS` rows of every `a`, the panels and the rows at `c`.
    unsafe {
        let mut sums = [[V::zero(); 2]; ROWS];
        for term in terms {
            add_products::<P, ROWS>(*term, &mut sums);
        }
        store(&sums, c, c_stride, add);
    }
}

/// A tile of groups, each summed whole in integers before the scales of both operands meet it.
///
/// # Safety
/// As [`Kernel::tile`] with `ROWS` rows.
#[inline(always)]
unsafe fn grouped_tile<V: Floats, P: Product<Floats = V, Sums = V::Words>, const ROWS: usize>(
    terms: &[Term<P::Element>],
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    // SAFETY: the caller promises the instructions, `ROWS` rows of every `a`, the panels and the rows at `c`. Each group
    // has its scales behind it, at any alignment.
    unsafe {
        let mut sums = [[V::zero(); 2]; ROWS];
        for group in terms.iter().flat_map(|term| term.groups(P::COLUMNS)) {
            let mut whole = [[V::Words::splat(0); 2]; ROWS];
            add_products::<P, ROWS>(group, &mut whole);
            let Term { a, a_stride, b, depth } = group;
            let scales = b.add(depth * P::COLUMNS).cast::<f32>();
            let scales = [V::load(scales), V::load(scales.add(V::LANES))];
            for (i, (whole, sums)) in whole.iter().zip(&mut sums).enumerate() {
                let scale = V::splat(a.add(i * a_stride + depth).cast::<f32>().read_unaligned());
                for j in 0..2 {
                    sums[j] = V::from_integers(whole[j]).mul_add(scale.mul(scales[j]), sums[j]);
                }
            }
        }
        store(&sums, c, c_stride, add);
    }
}

/// Adds the products along the depth of a term, or of a group of it.
///
/// # Safety
/// The processor has the instructions; the term has `ROWS` rows of `a` and a panel; its depth is whole words.
#[inline(always)]
unsafe fn add_products<P: Product, const ROWS: usize>(
    term: Term<P::Element>,
    sums: &mut Tile<P::Sums, ROWS>,
) {
    let Term { mut a, a_stride, mut b, depth } = term;
    let words = depth / P::Element::PER_WORD;
    for _ in 0..words / P::UNROLL {
        // SAFETY: the caller promises the elements.
        unsafe {
            for k in 0..P::UNROLL {
                let k = k * P::Element::PER_WORD;
                add_words::<P, ROWS>(a.add(k), a_stride, b.add(k * P::COLUMNS), sums);
            }
            a = a.add(P::UNROLL * P::Element::PER_WORD);
            b = b.add(P::UNROLL * P::Element::PER_WORD * P::COLUMNS);
        }
    }
    for _ in 0..words % P::UNROLL {
        // SAFETY: as above.
        unsafe {
            add_words::<P, ROWS>(a, a_stride, b, sums);
            a = a.add(P::Element::PER_WORD);
            b = b.add(P::Element::PER_WORD * P::COLUMNS);
        }
    }
}

/// Adds the products of a word along the depth.
///
/// # Safety
/// The processor has the instructions; `a` has a word in each of `ROWS` rows, and `b` one for each column.
#[inline(always)]
unsafe fn add_words<P: Product, const ROWS: usize>(
    a: *const P::Element,
    a_stride: usize,
    b: *const P::Element,
    sums: &mut Tile<P::Sums, ROWS>,
) {
    // SAFETY: the caller promises the instructions and the elements; a word is read at any alignment.
    unsafe {
        let b = b.cast::<Bits<P>>();
        let b = [Bits::<P>::load(b), Bits::<P>::load(b.add(1))];
        for (i, sums) in sums.iter_mut().enumerate() {
            let a = Bits::<P>::splat(a.add(i * a_stride).cast::<u32>().read_unaligned());
            for j in 0..2 {
                sums[j] = P::multiply_add(a, b[j], sums[j]);
            }
        }
    }
}

/// Writes a tile, or adds it.
///
/// # Safety
/// The processor has the instructions; `c` has `ROWS` rows of two vectors, `c_stride` apart.
#[inline(always)]
unsafe fn store<V: Floats, const ROWS: usize>(sums: &Tile<V, ROWS>, c: *mut f32, c_stride: usize, add: bool) {
    for (i, sums) in sums.iter().enumerate() {
        for (j, &sum) in sums.iter().enumerate() {
            // SAFETY: the caller promises the instructions and the elements.
            unsafe {
                let out = c.add(i * c_stride + V::LANES * j);
                let sum = if add { V::load(out).add(sum) } else { sum };
                sum.store(out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::panel::{Source, pack, packed_len, padded_depth, panels_len, staging_len};
    use crate::cpu::product::{Operand, Output, multiply_panels};
    use crate::cpu::simd::Isa;

    /// Small integers, whose products and sums are exact but for those of quantised groups.
    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + i / 17 * 5 + seed * 101) % 17) as f32 - 8.0).collect()
    }

    /// Any number of rows, terms of any depth and a tile cut short give the product, set or added.
    fn check<K: Kernel>(isa: Isa, tolerance: f32) {
        if !isa.is_usable() {
            return eprintln!("skipped: this processor lacks {isa:?}");
        }
        let shapes: [(usize, &[usize]); 4] =
            [(K::NR, &[1]), (K::NR, &[70, 200]), (3, &[8]), (K::NR + 5, &[131, 4, 64])];
        for rows in 1..=K::MR + 1 {
            for (cols, depths) in shapes {
                let lefts: Vec<_> = depths.iter().map(|depth| values(rows * depth, *depth)).collect();
                let rights: Vec<_> = depths.iter().map(|depth| values(depth * cols, 7 + depth)).collect();
                let packed: Vec<_> = depths
                    .iter()
                    .zip(lefts.iter().zip(&rights))
                    .map(|(&depth, (left, right))| {
                        let stride = packed_len::<K>(depth);
                        let mut lefts: Vec<K::Element> = vec![bytemuck::Zeroable::zeroed(); rows * stride];
                        for (left, out) in left.chunks_exact(depth).zip(lefts.chunks_exact_mut(stride)) {
                            K::Element::pack_row(left, out);
                        }
                        let source = Source::Matrix { values: right, stride: cols, scale: 1.0 };
                        let mut staging = vec![0.0; staging_len::<K>(depth, cols)];
                        let mut panels: Vec<K::Element> =
                            vec![bytemuck::Zeroable::zeroed(); panels_len::<K>(depth, cols)];
                        pack::<K>(&source, 0..depth, 0..cols, &mut staging, &mut panels);
                        (lefts, stride, panels, padded_depth::<K>(depth))
                    })
                    .collect();
                let operands: Vec<_> = packed
                    .iter()
                    .map(|(left, stride, panels, depth)| Operand {
                        left,
                        stride: *stride,
                        panels,
                        depth: *depth,
                    })
                    .collect();
                for add in [false, true] {
                    let stride = cols + 3;
                    let mut out = values((rows + 1) * stride, 3);
                    let mut expected = out.clone();
                    for (i, expected) in expected[..rows * stride].iter_mut().enumerate() {
                        let (row, col) = (i / stride, i % stride);
                        if col >= cols {
                            continue;
                        }
                        *expected = if add { *expected } else { 0.0 };
                        for (left, right) in lefts.iter().zip(&rights) {
                            let left = left.chunks_exact(left.len() / rows).nth(row).unwrap();
                            let column = right[col..].iter().step_by(cols);
                            *expected += left.iter().zip(column).map(|(a, b)| a * b).sum::<f32>();
                        }
                    }
                    // SAFETY: the processor has the instructions; the output is this test's own.
                    unsafe {
                        multiply_panels::<K>(&operands, rows, cols, Output::new(&mut out, stride), add)
                    };
                    for (got, expected) in out.iter().zip(&expected) {
                        assert!(
                            (got - expected).abs() <= tolerance,
                            "{rows} x {cols}: {got}, not {expected}"
                        );
                    }
                }
            }
        }
    }

    /// Magnitudes up to 8 in steps of 8/4095, in some hundred products: a missing one would be far off.
    const ROUNDING: f32 = 0.5;

    #[test]
    fn avx2_tiles_of_any_shape_give_the_product() {
        check::<Avx2F32>(Isa::Avx2, 0.0);
        check::<Avx2I16>(Isa::Avx2, ROUNDING);
    }

    #[test]
    fn avx512_tiles_of_any_shape_give_the_product() {
        check::<Avx512F32>(Isa::Avx512, 0.0);
        check::<Avx512I16>(Isa::Avx512Vnni, ROUNDING);
        check::<Avx512Bf16>(Isa::Avx512Bf16, 0.0);
    }
}
