//! The inner loops of the matrix products: one small tile of the output, held in registers over the whole depth.
//!
//! A tile is `rows x NR` elements of `c = sum of a b` over any number of terms. `a` is read as it lies, row-major,
//! one broadcast element at a time; `b` is a panel, `NR` columns side by side for each step along the depth.
//! Every element is summed in the order of the depth, whatever the tile's place, so a result does not depend on how
//! a product is cut into tiles.

use std::fmt;

use half::bf16;

use super::panel::{Layout, packed_at};
use super::simd::Isa;

/// The kernel of the large matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatmulKernel {
    /// `f32` multiply-adds: AVX-512, AVX2 or what the target always has.
    F32,
    /// 16-bit integers with a scale for each group along the depth, whole sums within a group: AVX-512's `vpdpwssd` or
    /// AVX2's `vpmaddwd`.
    I16,
    /// `bf16` operands, `f32` sums: AVX-512's `vdpbf16ps`.
    Bf16,
    /// `bf16` operands, `f32` sums: the tiles of AMX, `tdpbf16ps`.
    AmxBf16,
}

impl MatmulKernel {
    /// All kernels, the fastest first.
    pub const ALL: [Self; 4] = [Self::AmxBf16, Self::I16, Self::Bf16, Self::F32];

    /// The fastest that this processor has.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|kernel| kernel.is_supported()).unwrap_or(Self::F32)
    }

    /// Whether this processor has the instructions, and `EYAS_MAX_CPU_ISA` lets them be used.
    pub fn is_supported(self) -> bool {
        match self {
            Self::F32 => true,
            Self::I16 => Isa::Avx2.is_usable(),
            Self::Bf16 => Isa::Avx512Bf16.is_usable(),
            Self::AmxBf16 => Isa::Amx.is_usable(),
        }
    }
}

impl fmt::Display for MatmulKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::I16 => "16-bit integer",
            Self::Bf16 => "bf16",
            Self::AmxBf16 => "AMX bf16",
        })
    }
}

/// A panel's term of a tile.
#[derive(Clone, Copy)]
pub(super) struct Term<E> {
    /// First row of `a`; its rows are `a_stride` elements apart. Behind each group lies its scale, where the type
    /// has them ([`Layout::GROUP`]).
    pub a: *const E,
    /// Elements from one row of `a` to the next.
    pub a_stride: usize,
    /// The panel: `depth * NR` elements, the columns' scales behind each group.
    pub b: *const E,
    /// Elements along the depth, a multiple of [`Kernel::GRAIN`].
    pub depth: usize,
}

impl<E: Element> Term<E> {
    /// The term cut into groups that share scales; a panel has `columns`.
    pub fn groups(self, columns: usize) -> impl Iterator<Item = Self> {
        (0..self.depth).step_by(E::GROUP).map(move |first| {
            let at = packed_at::<E>(first);
            let (a, b) = (self.a.wrapping_add(at), self.b.wrapping_add(at * columns));
            Self { a, b, depth: E::GROUP.min(self.depth - first), ..self }
        })
    }
}

/// A processor's way to compute a tile.
pub(super) trait Kernel: 'static {
    /// The operands' type.
    type Element: Element;
    /// Most rows of a tile.
    const MR: usize;
    /// Columns of a tile.
    const NR: usize;
    /// Operands are filled up with zeros to a multiple of it along the depth: whole words.
    const GRAIN: usize = Self::Element::PER_WORD;
    /// Most elements along the depth in one pass: a panel of them fits the first-level cache beside the rows it meets.
    const DEPTH: usize;
    /// Rows that meet all panels of a block before the next ones do: their share of the depth stays in the
    /// second-level cache. A multiple of `MR`.
    const ROWS: usize;

    /// Prepares this thread for [`Kernel::tile`].
    ///
    /// # Safety
    /// The processor has the kernel's instructions.
    unsafe fn begin() {}

    /// Ends what [`Kernel::begin`] began.
    ///
    /// # Safety
    /// As [`Kernel::begin`].
    unsafe fn end() {}

    /// Computes `rows x NR` elements at `c`, adding to them when `add`.
    ///
    /// # Safety
    /// The processor has the kernel's instructions and [`Kernel::begin`] was called; `1 <= rows <= MR`; the terms'
    /// operands and `c` can be accessed as far as `rows`, `NR`, the strides and the depths reach.
    unsafe fn tile(rows: usize, terms: &[Term<Self::Element>], c: *mut f32, c_stride: usize, add: bool);
}

/// An operand's type.
pub(super) trait Element: bytemuck::Pod + Send + Sync + Layout {
    /// `f32` values as they are, where this is their type.
    fn borrow(_values: &[f32]) -> Option<&[Self]> {
        None
    }
}

impl Element for f32 {
    fn borrow(values: &[f32]) -> Option<&[Self]> {
        Some(values)
    }
}

impl Element for bf16 {}

impl Element for i16 {}

/// `f32` on any processor: loops that the compiler turns into vectors.
pub(super) struct PortableF32;

impl Kernel for PortableF32 {
    type Element = f32;
    const MR: usize = 4;
    const NR: usize = 16;
    const DEPTH: usize = 256;
    const ROWS: usize = 48;

    unsafe fn tile(rows: usize, terms: &[Term<f32>], c: *mut f32, c_stride: usize, add: bool) {
        // SAFETY: the caller's promises are those of this kernel.
        unsafe {
            portable_tile::<f32, 16, 1>(rows, terms, c, c_stride, add, |sum, a, b| {
                if cfg!(target_feature = "fma") || cfg!(target_arch = "aarch64") {
                    a.mul_add(b, sum)
                } else {
                    sum + a * b
                }
            })
        }
    }
}

/// The arithmetic of [`super::tile::Avx512Bf16`] on any processor, to check its packing and its shape. Slow.
#[cfg_attr(not(test), allow(dead_code))]
pub(super) struct PortableBf16;

impl Kernel for PortableBf16 {
    type Element = bf16;
    const MR: usize = 12;
    const NR: usize = 32;
    const DEPTH: usize = 384;
    const ROWS: usize = 48;

    unsafe fn tile(rows: usize, terms: &[Term<bf16>], c: *mut f32, c_stride: usize, add: bool) {
        // SAFETY: the caller's promises are those of this kernel.
        unsafe {
            portable_tile::<bf16, 32, 2>(rows, terms, c, c_stride, add, |sum, a, b| {
                sum + a.to_f32() * b.to_f32()
            })
        }
    }
}

/// The arithmetic of [`super::tile::Avx2I16`], and of [`super::tile::Avx512I16`] with 32 columns, on any processor.
/// Slow.
#[cfg_attr(not(test), allow(dead_code))]
pub(super) struct PortableI16<const COLUMNS: usize>;

impl<const COLUMNS: usize> Kernel for PortableI16<COLUMNS> {
    type Element = i16;
    const MR: usize = 6;
    const NR: usize = COLUMNS;
    const DEPTH: usize = 512;
    const ROWS: usize = 48;

    unsafe fn tile(rows: usize, terms: &[Term<i16>], c: *mut f32, c_stride: usize, add: bool) {
        for row in 0..rows {
            for col in 0..Self::NR {
                let mut sum = 0.0f32;
                for Term { a, a_stride, b, depth } in terms.iter().flat_map(|term| term.groups(Self::NR)) {
                    // SAFETY: the caller promises `rows` rows of `a` and the panel, with their scales.
                    sum += unsafe {
                        let a = a.add(row * a_stride);
                        let whole = (0..depth).fold(0i32, |sum, k| {
                            let b = *b.add(k / 2 * 2 * Self::NR + col * 2 + k % 2);
                            sum.wrapping_add(i32::from(*a.add(k)) * i32::from(b))
                        });
                        let a_scale = a.add(depth).cast::<f32>().read_unaligned();
                        let b_scale = b.add(depth * Self::NR).cast::<f32>().add(col).read_unaligned();
                        whole as f32 * (a_scale * b_scale)
                    };
                }
                // SAFETY: the caller promises `rows` rows of `NR` elements at `c`.
                unsafe {
                    let out = c.add(row * c_stride + col);
                    *out = if add { *out + sum } else { sum };
                }
            }
        }
    }
}

/// # Safety
/// As [`Kernel::tile`].
#[inline(always)]
unsafe fn portable_tile<E: Element, const NR: usize, const STEP: usize>(
    rows: usize,
    terms: &[Term<E>],
    c: *mut f32,
    c_stride: usize,
    add: bool,
    multiply_add: impl Fn(f32, E, E) -> f32,
) {
    for row in 0..rows {
        let mut sums = [0.0f32; NR];
        for term in terms {
            for k in 0..term.depth {
                // SAFETY: the caller promises `rows` rows of `a` and `depth * NR` elements of the panel.
                unsafe {
                    let a = *term.a.add(row * term.a_stride + k);
                    let b = term.b.add(k / STEP * STEP * NR + k % STEP);
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = multiply_add(*sum, a, *b.add(j * STEP));
                    }
                }
            }
        }
        for (j, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller promises `rows` rows of `NR` elements at `c`.
            unsafe {
                let out = c.add(row * c_stride + j);
                *out = if add { *out + sum } else { sum };
            }
        }
    }
}
