//! Which vector instructions the processor has, and functions compiled once for each.

use std::sync::OnceLock;

/// Instruction sets that code here is written for, each of which implies those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Isa {
    /// What the target always has.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    Avx512,
    /// And its dot product of 16-bit integers.
    Avx512Vnni,
    /// And its `bf16` dot product.
    Avx512Bf16,
    /// And the tiles of AMX, for `bf16`.
    Amx,
}

/// The environment variable that bounds what is used.
const LIMIT: &str = "EYAS_MAX_CPU_ISA";

impl Isa {
    const NAMES: [(&'static str, Self); 6] = [
        ("portable", Self::Portable),
        ("avx2", Self::Avx2),
        ("avx512", Self::Avx512),
        ("avx512_vnni", Self::Avx512Vnni),
        ("avx512_bf16", Self::Avx512Bf16),
        ("amx", Self::Amx),
    ];

    /// Whether the processor has it, and the user lets it be used.
    pub(super) fn is_usable(self) -> bool {
        self <= Self::best()
    }

    /// The best that is usable; cheap, the answer is kept.
    #[inline]
    fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::detect().min(Self::limit().unwrap_or(Self::Amx)))
    }

    /// What the user lets be used, by `EYAS_MAX_CPU_ISA`.
    ///
    /// # Errors
    /// What is wrong with the variable.
    pub(super) fn limit() -> Result<Self, String> {
        match std::env::var(LIMIT) {
            Err(_) => Ok(Self::Amx),
            Ok(name) => Self::parse(&name),
        }
    }

    fn parse(name: &str) -> Result<Self, String> {
        let known = Self::NAMES.iter().find(|(known, _)| name.eq_ignore_ascii_case(known));
        known.map(|&(_, isa)| isa).ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name).join(", ");
            format!("{LIMIT} is {name:?}; it may be one of {names}")
        })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Self::Portable
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        let has_avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq");
        if !has_avx2 {
            Self::Portable
        } else if !has_avx512 {
            Self::Avx2
        } else if !is_x86_feature_detected!("avx512vnni") {
            Self::Avx512
        } else if !is_x86_feature_detected!("avx512bf16") {
            Self::Avx512Vnni
        } else if !super::amx::is_available() {
            Self::Avx512Bf16
        } else {
            Self::Amx
        }
    }
}

/// The instruction sets that elementwise code is compiled for, the best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// What the target always has.
    Portable,
    /// AVX2 and fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The best of this processor.
    #[inline]
    pub(super) fn detect() -> Self {
        match Isa::best() {
            Isa::Portable => Self::Portable,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            _ => Self::Avx512,
            #[cfg(not(target_arch = "x86_64"))]
            _ => Self::Portable,
        }
    }
}

/// Defines a function whose body is compiled for every [`Level`] and run at the best.
///
/// The body is plain Rust that the compiler vectorises. Sums go through a fixed number of lanes and products
/// through `mul_add`, so that every level gives the same bits.
macro_rules! vectorised {
    ($(#[$attr:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$attr])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn portable($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                portable($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                portable($($arg),*)
            }
            match $crate::cpu::simd::Level::detect() {
                // SAFETY: the level was detected, so the processor has the instructions.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                $crate::cpu::simd::Level::Portable => portable($($arg),*),
            }
        }
    };
}
pub(super) use vectorised;

/// Lanes of every sum: two AVX2 registers, one of AVX-512.
pub(super) const LANES: usize = 16;

/// Combines the lanes by halves, in a fixed order.
#[inline(always)]
fn combine(mut lanes: [f32; LANES], with: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = with(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Sums `term` over the elements of slices of one length, in lanes.
///
/// Meant to be inlined into a [`vectorised!`] function.
///
/// # Panics
/// When a slice is shorter than the first.
#[inline(always)]
pub(super) fn sum<const N: usize>(operands: [&[f32]; N], term: impl Fn([f32; N]) -> f32) -> f32 {
    let n = operands[0].len();
    let split = operands.map(|operand| operand[..n].as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for c in 0..n / LANES {
        let chunks = split.map(|(chunks, _)| &chunks[c]);
        for l in 0..LANES {
            lanes[l] += term(chunks.map(|chunk| chunk[l]));
        }
    }
    for l in 0..n % LANES {
        lanes[l] += term(split.map(|(_, rest)| rest[l]));
    }
    combine(lanes, |a, b| a + b)
}

/// The largest of `values`, or minus infinity when there is none. NaN is skipped.
///
/// Meant to be inlined into a [`vectorised!`] function.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] = larger(lanes[l], chunk[l]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, value);
    }
    combine(lanes, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    vectorised! {
        fn total(values: &[f32]) -> f32 {
            sum([values], |[x]| x)
        }
    }

    #[test]
    fn the_limit_is_read_by_name() {
        assert_eq!(Isa::parse("avx512"), Ok(Isa::Avx512));
        assert_eq!(Isa::parse("AMX"), Ok(Isa::Amx));
        assert!(
            Isa::parse("avx3").unwrap_err().contains("portable, avx2, avx512, avx512_vnni, avx512_bf16, amx")
        );
        assert!(Isa::Portable.is_usable());
    }

    #[test]
    fn sums_of_any_length_are_whole() {
        for n in 0..70 {
            let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(total(&values), (n * (n.max(1) - 1) / 2) as f32);
            assert_eq!(max(&values), if n == 0 { f32::NEG_INFINITY } else { n as f32 - 1.0 });
        }
    }
}
