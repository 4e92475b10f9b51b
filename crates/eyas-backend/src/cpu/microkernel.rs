//! The inner loops of the matrix products: one small tile of the output, held in registers over the whole depth.
//!
//! A tile is `rows x NR` elements of `c = sum of a b` over any number of terms. `a` is read as it lies, row-major,
//! one broadcast element at a time; `b` is a panel, `NR` columns side by side for each step along the depth.
//! Every element is summed in the order of the depth, whatever the tile's place, so a result does not depend on how
//! a product is cut into tiles.

use std::fmt;

use half::bf16;

use super::panel::Layout;

/// The kernel of the large matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatmulKernel {
    /// `f32` multiply-adds.
    F32,
    /// `bf16` operands, `f32` sums: AVX-512's `vdpbf16ps`.
    Bf16,
}

impl MatmulKernel {
    /// The fastest that this processor has.
    pub fn best() -> Self {
        if Self::Bf16.is_supported() { Self::Bf16 } else { Self::F32 }
    }

    /// Whether this processor has the instructions.
    pub fn is_supported(self) -> bool {
        match self {
            Self::F32 => true,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Bf16 => false,
        }
    }
}

impl fmt::Display for MatmulKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// A panel's term of a tile.
#[derive(Clone, Copy)]
pub(super) struct Term<E> {
    /// First row of `a`; its rows are `a_stride` elements apart.
    pub a: *const E,
    /// Elements from one row of `a` to the next.
    pub a_stride: usize,
    /// The panel: `depth * NR` elements.
    pub b: *const E,
    /// Elements along the depth, a multiple of [`Kernel::STEP`].
    pub depth: usize,
}

/// A processor's way to compute a tile.
pub(super) trait Kernel: 'static {
    /// The operands' type.
    type Element: Element;
    /// Most rows of a tile.
    const MR: usize;
    /// Columns of a tile.
    const NR: usize;
    /// Neighbours along the depth that lie side by side in a panel.
    const STEP: usize;

    /// Computes `rows x NR` elements at `c`, adding to them when `add`.
    ///
    /// # Safety
    /// The processor has the kernel's instructions; `1 <= rows <= MR`; the terms' operands and `c` can be accessed
    /// as far as `rows`, `NR`, the strides and the depths reach.
    unsafe fn tile(rows: usize, terms: &[Term<Self::Element>], c: *mut f32, c_stride: usize, add: bool);
}

/// An operand's type.
pub(super) trait Element: bytemuck::Pod + Send + Sync + Layout {
    /// Rounds an `f32`.
    fn narrow(value: f32) -> Self;
    /// Widens to `f32`.
    #[cfg_attr(not(test), allow(dead_code))]
    fn widen(self) -> f32;
    /// `f32` values as they are, where this is their type.
    fn borrow(values: &[f32]) -> Option<&[Self]>;
}

impl Element for f32 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }

    fn widen(self) -> f32 {
        self
    }

    fn borrow(values: &[f32]) -> Option<&[Self]> {
        Some(values)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        // Nearest even, without the branch for NaN that keeps `half`'s conversion from being vectorised: a NaN
        // keeps its quiet bit here because a product's NaN always has it set.
        let bits = value.to_bits();
        Self::from_bits((bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16) as u16)
    }

    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn borrow(_values: &[f32]) -> Option<&[Self]> {
        None
    }
}

/// `f32` on any processor: loops that the compiler turns into vectors.
pub(super) struct PortableF32;

impl Kernel for PortableF32 {
    type Element = f32;
    const MR: usize = 4;
    const NR: usize = 16;
    const STEP: usize = 1;

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

/// The arithmetic of [`Avx512Bf16`] on any processor, to check its packing and its shape. Slow.
#[cfg_attr(not(test), allow(dead_code))]
pub(super) struct PortableBf16;

impl Kernel for PortableBf16 {
    type Element = bf16;
    const MR: usize = 12;
    const NR: usize = 32;
    const STEP: usize = 2;

    unsafe fn tile(rows: usize, terms: &[Term<bf16>], c: *mut f32, c_stride: usize, add: bool) {
        // SAFETY: the caller's promises are those of this kernel.
        unsafe {
            portable_tile::<bf16, 32, 2>(rows, terms, c, c_stride, add, |sum, a, b| {
                sum + a.to_f32() * b.to_f32()
            })
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

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2F32, Avx512Bf16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::{Kernel, Term};

    /// Calls a kernel with its number of rows as a constant, so that its sums stay in registers.
    macro_rules! by_rows {
        ($rows:expr, $call:ident $args:tt, $($n:literal)*) => {
            match $rows {
                $($n => unsafe { $call::<$n> $args },)*
                _ => unreachable!("a tile of {} rows", $rows),
            }
        };
    }

    /// `f32` with AVX2 and FMA: 6 x 16 sums in 12 registers.
    pub(in super::super) struct Avx2F32;

    impl Kernel for Avx2F32 {
        type Element = f32;
        const MR: usize = 6;
        const NR: usize = 16;
        const STEP: usize = 1;

        unsafe fn tile(rows: usize, terms: &[Term<f32>], c: *mut f32, c_stride: usize, add: bool) {
            // SAFETY: the caller promises the instructions and the operands.
            by_rows!(rows, f32_tile(terms, c, c_stride, add), 1 2 3 4 5 6)
        }
    }

    /// # Safety
    /// As [`Kernel::tile`] with `ROWS` rows.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn f32_tile<const ROWS: usize>(terms: &[Term<f32>], c: *mut f32, c_stride: usize, add: bool) {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        for term in terms {
            let (mut a, mut b) = (term.a, term.b);
            // Four steps at a time: the rows' addresses are then worked out once for all of them.
            for _ in 0..term.depth / 4 {
                // SAFETY: the caller promises `ROWS` rows of `a` and `depth * 16` elements of the panel.
                unsafe {
                    f32_steps::<ROWS, 4>(a, term.a_stride, b, &mut sums);
                    a = a.add(4);
                    b = b.add(4 * 16);
                }
            }
            for _ in 0..term.depth % 4 {
                // SAFETY: as above.
                unsafe {
                    f32_steps::<ROWS, 1>(a, term.a_stride, b, &mut sums);
                    a = a.add(1);
                    b = b.add(16);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                // SAFETY: the caller promises `ROWS` rows of 16 elements at `c`.
                unsafe {
                    let out = c.add(i * c_stride + 8 * j);
                    let sum = if add { _mm256_add_ps(_mm256_loadu_ps(out), sum) } else { sum };
                    _mm256_storeu_ps(out, sum);
                }
            }
        }
    }

    /// Adds the products of `STEPS` steps along the depth.
    ///
    /// # Safety
    /// The processor has the instructions; `a` has `ROWS` rows of `STEPS` elements and `b` `STEPS * 16`.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn f32_steps<const ROWS: usize, const STEPS: usize>(
        a: *const f32,
        a_stride: usize,
        b: *const f32,
        sums: &mut [[__m256; 2]; ROWS],
    ) {
        for k in 0..STEPS {
            // SAFETY: the caller promises the elements.
            unsafe {
                let (b0, b1) = (_mm256_loadu_ps(b.add(16 * k)), _mm256_loadu_ps(b.add(16 * k + 8)));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = _mm256_broadcast_ss(&*a.add(i * a_stride + k));
                    sums[0] = _mm256_fmadd_ps(a, b0, sums[0]);
                    sums[1] = _mm256_fmadd_ps(a, b1, sums[1]);
                }
            }
        }
    }

    /// `bf16` operands and `f32` sums with AVX-512's `vdpbf16ps`: 12 x 32 sums in 24 registers.
    pub(in super::super) struct Avx512Bf16;

    impl Kernel for Avx512Bf16 {
        type Element = bf16;
        const MR: usize = 12;
        const NR: usize = 32;
        const STEP: usize = 2;

        unsafe fn tile(rows: usize, terms: &[Term<bf16>], c: *mut f32, c_stride: usize, add: bool) {
            // SAFETY: the caller promises the instructions and the operands.
            by_rows!(rows, bf16_tile(terms, c, c_stride, add), 1 2 3 4 5 6 7 8 9 10 11 12)
        }
    }

    /// # Safety
    /// As [`Kernel::tile`] with `ROWS` rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn bf16_tile<const ROWS: usize>(terms: &[Term<bf16>], c: *mut f32, c_stride: usize, add: bool) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for term in terms {
            let (mut a, mut b) = (term.a, term.b);
            for _ in 0..term.depth / 2 {
                // SAFETY: the caller promises `ROWS` rows of `a` and `depth * 32` elements of the panel; vectors of
                // bf16 are plain bits, and a pair of them is read as one `i32` of any alignment.
                unsafe {
                    let b0: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.cast()));
                    let b1: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(32).cast()));
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let pair = a.add(i * term.a_stride).cast::<i32>().read_unaligned();
                        let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(pair));
                        sums[0] = _mm512_dpbf16_ps(sums[0], a, b0);
                        sums[1] = _mm512_dpbf16_ps(sums[1], a, b1);
                    }
                    a = a.add(2);
                    b = b.add(64);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                // SAFETY: the caller promises `ROWS` rows of 32 elements at `c`.
                unsafe {
                    let out = c.add(i * c_stride + 16 * j);
                    let sum = if add { _mm512_add_ps(_mm512_loadu_ps(out), sum) } else { sum };
                    _mm512_storeu_ps(out, sum);
                }
            }
        }
    }
}
