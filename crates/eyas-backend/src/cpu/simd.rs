//! Which vector instructions the processor has, and functions compiled once for each.

/// The instruction sets that kernels are compiled for, the best last.
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
    /// The best of this processor; cheap, the answer is kept.
    #[inline]
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
            {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
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
    fn sums_of_any_length_are_whole() {
        for n in 0..70 {
            let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(total(&values), (n * (n.max(1) - 1) / 2) as f32);
            assert_eq!(max(&values), if n == 0 { f32::NEG_INFINITY } else { n as f32 - 1.0 });
        }
    }
}
