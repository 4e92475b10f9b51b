//! Exponentials that the compiler vectorises: `exp`, the logistic function and the normal tail.
//!
//! They are branch-free functions of one element, to be inlined into a loop of a
//! [`vectorised!`](super::simd::vectorised) function. The polynomials are minimax fits in relative error, found by
//! reweighted least squares in double precision.

/// `e^x` to about one unit in the last place; zero below -87.3, and constant above 88.3 (2.3e38), short of infinity.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.33;
    const HIGHEST: f32 = 88.3;
    // 1.5 * 2^23: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;

    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > HIGHEST { HIGHEST } else { clamped };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let p = 0.001_381_45f32
        .mul_add(r, 0.008_368_78)
        .mul_add(r, 0.041_668_39)
        .mul_add(r, 0.166_665_2)
        .mul_add(r, 0.499_999_93);
    let e = (p * r).mul_add(r, r) + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    let y = e * scale;
    if x < LOWEST { 0.0 } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The standard normal distribution and its density at `x`: `(Phi(x), phi(x))`.
///
/// `Phi(-|x|) = e^(-x^2/2) R(|x|)`, where Mills' ratio `R` is smooth: `R(x) (1 + x/K)` is a polynomial in
/// `(x - K) / (x + K)`. The tail keeps its relative accuracy, which `1 + erf` loses.
#[inline(always)]
pub(super) fn normal(x: f32) -> (f32, f32) {
    const K: f32 = 3.5;
    const FRAC_1_SQRT_TAU: f32 = 0.398_942_3;

    let a = x.abs();
    let e = exp(-0.5 * x * x);
    let s = 1.0 / (a + K);
    let t = (a - K) * s;
    let p = 3.221_032e-5_f32
        .mul_add(t, 1.216_17e-4)
        .mul_add(t, -1.413_295_4e-4)
        .mul_add(t, -9.079_419_5e-4)
        .mul_add(t, 1.854_974e-3)
        .mul_add(t, 4.973_402_7e-3)
        .mul_add(t, -0.033_157_97)
        .mul_add(t, 0.090_121_43)
        .mul_add(t, -0.161_589_07)
        .mul_add(t, 0.212_690_31);
    let tail = p * (K * s) * e;
    (if x < 0.0 { tail } else { 1.0 - tail }, FRAC_1_SQRT_TAU * e)
}

#[cfg(test)]
mod tests {
    use super::super::simd::vectorised;
    use super::*;
    use crate::parity::activation::{normal_density, normal_distribution};

    vectorised! {
        fn exp_all(x: &[f32], y: &mut [f32]) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = exp(x);
            }
        }
    }

    #[test]
    fn exp_is_within_two_units() {
        let x: Vec<f32> = (0..200_000).map(|i| -87.3 + i as f32 * (175.5 / 200_000.0)).collect();
        let mut y = vec![0.0; x.len()];
        exp_all(&x, &mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let exact = f64::from(x).exp();
            assert!((f64::from(y) / exact - 1.0).abs() < 1.5e-7, "exp({x}) = {y}, not {exact}");
            assert_eq!(y.to_bits(), exp(x).to_bits(), "another result outside the vector loop");
        }
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert!(exp(1000.0) > 2e38 && exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(sigmoid(-1000.0), 1.0 / (1.0 + exp(1000.0)));
        assert_eq!(sigmoid(1000.0), 1.0);
    }

    #[test]
    fn the_normal_tail_keeps_its_relative_accuracy() {
        for i in -1_200..=1_200 {
            let x = i as f32 * 0.01;
            let (distribution, density) = normal(x);
            let exact = normal_distribution(f64::from(x));
            // The density's argument is rounded, an error that grows with x^2.
            let tolerance = 4e-7 + f64::from(x * x) * 6e-8;
            assert!((f64::from(distribution) / exact - 1.0).abs() < tolerance, "Phi({x}) = {distribution}");
            let exact = normal_density(f64::from(x));
            assert!((f64::from(density) / exact - 1.0).abs() < tolerance, "phi({x}) = {density}");
        }
    }
}
