//! Matrix products: the kernels, and the choice between them.

use std::fmt;

/// Where the elements of a matrix lie in a slice: `(row stride, column stride)`.
pub(super) type Strides = (usize, usize);

/// `c = alpha * a b + beta * c` on the calling thread: `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]`, any strides.
///
/// With `beta == 0` the old values of `c` are not read. For products inside a task of a parallel loop, as one
/// attention head's; the result depends on nothing but the operands.
///
/// # Panics
/// When an operand reaches past the end of its slice.
pub(super) fn gemm_f32(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: &[f32],
    a_strides: Strides,
    b: &[f32],
    b_strides: Strides,
    beta: f32,
    c: &mut [f32],
    c_strides: Strides,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(reach(m, n, c_strides) <= c.len(), "c is too short");
    if k == 0 {
        for i in 0..m {
            for j in 0..n {
                let value = &mut c[i * c_strides.0 + j * c_strides.1];
                *value = if beta == 0.0 { 0.0 } else { beta * *value };
            }
        }
        return;
    }
    assert!(reach(m, k, a_strides) <= a.len(), "a is too short");
    assert!(reach(k, n, b_strides) <= b.len(), "b is too short");
    // SAFETY: each matrix lies inside its slice, as just checked; `c` is borrowed mutably, so it overlaps neither.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            c_strides.1 as isize,
            c_strides.0 as isize,
            beta != 0.0,
            a.as_ptr(),
            a_strides.1 as isize,
            a_strides.0 as isize,
            b.as_ptr(),
            b_strides.1 as isize,
            b_strides.0 as isize,
            beta,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Elements a slice must have to hold a `rows` x `cols` matrix of these strides.
fn reach(rows: usize, cols: usize, strides: Strides) -> usize {
    (rows - 1)
        .checked_mul(strides.0)
        .zip((cols - 1).checked_mul(strides.1))
        .and_then(|(down, right)| down.checked_add(right)?.checked_add(1))
        .unwrap_or(usize::MAX)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i * 37 + seed * 101) % 61) as f32 / 61.0 - 0.5).collect()
    }

    #[test]
    fn strides_alpha_and_beta_are_honoured() {
        let (m, n, k) = (5, 7, 11);
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        for (a_strides, b_strides, c_strides) in
            [((k, 1), (n, 1), (n, 1)), ((1, m), (1, k), (1, m)), ((k, 1), (1, k), (n + 3, 1))]
        {
            for (alpha, beta) in [(1.0, 0.0), (0.5, 1.0), (-2.0, 0.25)] {
                let before = values(m * (n + 3), 3);
                let mut c = before.clone();
                if beta == 0.0 {
                    c.fill(f32::NAN);
                }
                gemm_f32(m, n, k, alpha, &a, a_strides, &b, b_strides, beta, &mut c, c_strides);
                for i in 0..m {
                    for j in 0..n {
                        let at = |s: Strides, r: usize, c: usize| r * s.0 + c * s.1;
                        let sum: f32 =
                            (0..k).map(|l| a[at(a_strides, i, l)] * b[at(b_strides, l, j)]).sum::<f32>()
                                * alpha;
                        let kept = if beta == 0.0 { 0.0 } else { beta * before[at(c_strides, i, j)] };
                        assert!((c[at(c_strides, i, j)] - sum - kept).abs() < 1e-5);
                    }
                }
            }
        }
    }

    #[test]
    fn an_empty_sum_scales_the_output() {
        let mut c = [2.0, 4.0];
        gemm_f32(1, 2, 0, 1.0, &[], (0, 1), &[], (2, 1), 0.5, &mut c, (2, 1));
        assert_eq!(c, [1.0, 2.0]);
    }

    #[test]
    #[should_panic(expected = "b is too short")]
    fn a_short_operand_is_refused() {
        gemm_f32(1, 2, 2, 1.0, &[1.0; 2], (2, 1), &[1.0; 3], (2, 1), 0.0, &mut [0.0; 2], (2, 1));
    }
}
