//! Vectors of 32-bit lanes in two widths, so that a loop is written once for both.
//!
//! A generic function over [`Floats`] or [`Words`] is `#[inline(always)]` and asks for no instructions: a function with
//! `#[target_feature]` calls it for each width, and what is inlined there is compiled for the instructions named. So no
//! closure that uses a vector is passed to a library function: it would be compiled on its own, without them.

use std::arch::x86_64::*;

use half::f16;

/// Defines a trait of operations on both widths: each has its expression for AVX2, then that for AVX-512.
macro_rules! widths {
    (
        $(#[$attr:meta])*
        $vis:vis trait $trait:ident: $super:path => $narrow:ty, $wide:ty;
        $(type $assoc:ident: $bound:path = $narrow_assoc:ty, $wide_assoc:ty;)?
        $($(#[$op_attr:meta])* fn $name:ident($($arg:tt)*) $(-> $ret:ty)? = $on_narrow:expr, $on_wide:expr;)*
    ) => {
        $(#[$attr])*
        $vis trait $trait: $super {
            $(#[doc = "The integers of this width."] type $assoc: $bound;)?
            $($(#[$op_attr])* unsafe fn $name($($arg)*) $(-> $ret)?;)*
        }

        impl $trait for $narrow {
            $(type $assoc = $narrow_assoc;)?
            $(
                #[inline(always)]
                unsafe fn $name($($arg)*) $(-> $ret)? {
                    // SAFETY: the caller promises AVX2, FMA and F16C, and the memory.
                    unsafe { $on_narrow }
                }
            )*
        }

        impl $trait for $wide {
            $(type $assoc = $wide_assoc;)?
            $(
                #[inline(always)]
                unsafe fn $name($($arg)*) $(-> $ret)? {
                    // SAFETY: the caller promises AVX-512, and the memory.
                    unsafe { $on_wide }
                }
            )*
        }
    };
}
pub(super) use widths;

/// A register of 32-bit lanes.
pub(super) trait Register: Copy + 'static {
    const LANES: usize = size_of::<Self>() / size_of::<u32>();
}

impl Register for __m256 {}
impl Register for __m512 {}
impl Register for __m256i {}
impl Register for __m512i {}

widths! {
    /// Lanes of `f32`.
    ///
    /// # Safety
    /// For all operations: the processor has the width's instructions; the elements behind a pointer exist.
    pub(super) trait Floats: Register => __m256, __m512;
    type Words: Words = __m256i, __m512i;

    fn zero() -> Self = _mm256_setzero_ps(), _mm512_setzero_ps();
    fn splat(value: f32) -> Self = _mm256_set1_ps(value), _mm512_set1_ps(value);
    /// Reads a vector at any alignment.
    fn load(from: *const f32) -> Self = _mm256_loadu_ps(from), _mm512_loadu_ps(from);
    /// Reads as many half-precision numbers as there are lanes.
    fn load_f16(from: *const f16) -> Self =
        _mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()));
    /// Writes a vector at any alignment.
    fn store(self, to: *mut f32) = _mm256_storeu_ps(to, self), _mm512_storeu_ps(to, self);
    fn from_bits(bits: Self::Words) -> Self = _mm256_castsi256_ps(bits), _mm512_castsi512_ps(bits);
    /// Converts signed integers.
    fn from_integers(integers: Self::Words) -> Self = _mm256_cvtepi32_ps(integers), _mm512_cvtepi32_ps(integers);
    fn add(self, other: Self) -> Self = _mm256_add_ps(self, other), _mm512_add_ps(self, other);
    fn mul(self, other: Self) -> Self = _mm256_mul_ps(self, other), _mm512_mul_ps(self, other);
    /// `self * by + sum`, rounded once.
    fn mul_add(self, by: Self, sum: Self) -> Self =
        _mm256_fmadd_ps(self, by, sum), _mm512_fmadd_ps(self, by, sum);
    /// The sum of all lanes, added by halves.
    fn sum(self) -> f32 = sum_of_eight(self), _mm512_reduce_add_ps(self);
}

widths! {
    /// Lanes of 32-bit integers.
    ///
    /// # Safety
    /// As [`Floats`].
    pub(super) trait Words: Register => __m256i, __m512i;

    fn splat(value: u32) -> Self = _mm256_set1_epi32(value as i32), _mm512_set1_epi32(value as i32);
    /// Reads a vector at any alignment.
    fn load(from: *const Self) -> Self = _mm256_loadu_si256(from), _mm512_loadu_si512(from);
    fn add(self, other: Self) -> Self = _mm256_add_epi32(self, other), _mm512_add_epi32(self, other);
    fn and(self, other: Self) -> Self = _mm256_and_si256(self, other), _mm512_and_si512(self, other);
    fn xor(self, other: Self) -> Self = _mm256_xor_si256(self, other), _mm512_xor_si512(self, other);
    /// The low half of every lane, moved to the high one.
    fn low_half_up(self) -> Self = _mm256_slli_epi32::<16>(self), _mm512_slli_epi32::<16>(self);
    /// Adds the two products of 16-bit neighbours in every lane. The wider one needs VNNI.
    fn add_pair_products(self, a: Self, b: Self) -> Self =
        _mm256_add_epi32(self, _mm256_madd_epi16(a, b)), _mm512_dpwssd_epi32(self, a, b);
}

#[target_feature(enable = "avx2")]
#[inline]
fn sum_of_eight(values: __m256) -> f32 {
    let sum = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps::<1>(values));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
}
