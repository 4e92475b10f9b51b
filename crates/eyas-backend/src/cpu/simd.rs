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

/// Sums the lanes by halves, in a fixed order.
#[inline(always)]
pub(super) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Sums `term(i)` for `i` in `0..n`, in lanes.
///
/// Meant to be inlined into a [`vectorised!`] function.
#[inline(always)]
pub(super) fn sum(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = n - n % LANES;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += term(i + l);
        }
        i += LANES;
    }
    for (l, lane) in lanes.iter_mut().enumerate() {
        if whole + l < n {
            *lane += term(whole + l);
        }
    }
    sum_lanes(lanes)
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
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, value);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    vectorised! {
        fn total(values: &[f32]) -> f32 {
            sum(values.len(), |i| values[i])
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
