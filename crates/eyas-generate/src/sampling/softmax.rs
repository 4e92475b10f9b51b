//! Passes over a whole row of logits: the largest, the sum of exponentials, the search for the top.
//!
//! A row has up to a quarter of a million logits and is read for every token, so that the passes are written for
//! vector registers. Lanes and blocks are fixed: the result does not depend on the instructions at hand.

/// Logits summed up together.
pub(super) const BLOCK: usize = 256;
const LANES: usize = 16;

/// The largest logit, or `None` when one is not finite or there is none.
pub(super) fn finite_max(row: &[f32]) -> Option<f32> {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut zero = [0.0f32; LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            largest[i] = if chunk[i] > largest[i] { chunk[i] } else { largest[i] };
            // Zero unless the logit is infinite or not a number.
            zero[i] += chunk[i] * 0.0;
        }
    }
    for (i, &logit) in chunks.remainder().iter().enumerate() {
        largest[i] = if logit > largest[i] { logit } else { largest[i] };
        zero[i] += logit * 0.0;
    }
    let max = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    (zero.iter().sum::<f32>() == 0.0 && max.is_finite()).then_some(max)
}

/// `exp(x)` for `x <= 0`, to about 1e-7 relative; below -87 it is 0. Cephes' reduction and polynomial.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    // The integer sits in the low bits of `shifted`; moved up it is a power of two's exponent.
    let power = f32::from_bits(shifted.to_bits().wrapping_shl(23).wrapping_add(0x3f80_0000));
    if x > -87.0 { p * power } else { 0.0 }
}

/// The sum of `exp((logit - max) * scale)`; with `blocks` also the sum of each [`BLOCK`] logits.
pub(super) fn sum_exp(row: &[f32], max: f32, scale: f32, blocks: Option<&mut Vec<f64>>) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { sum_exp_avx2(row, max, scale, blocks) };
    }
    sum_exp_portable(row, max, scale, blocks)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_exp_avx2(row: &[f32], max: f32, scale: f32, blocks: Option<&mut Vec<f64>>) -> f64 {
    sum_exp_portable(row, max, scale, blocks)
}

#[inline(always)]
fn sum_exp_portable(row: &[f32], max: f32, scale: f32, mut blocks: Option<&mut Vec<f64>>) -> f64 {
    if let Some(blocks) = blocks.as_deref_mut() {
        blocks.clear();
    }
    let mut total = 0.0;
    for block in row.chunks(BLOCK) {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = block.chunks_exact(LANES);
        for chunk in &mut chunks {
            for i in 0..LANES {
                lanes[i] += exp((chunk[i] - max) * scale);
            }
        }
        for (lane, &logit) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane += exp((logit - max) * scale);
        }
        let sum: f64 = lanes.iter().map(|&lane| f64::from(lane)).sum();
        if let Some(blocks) = blocks.as_deref_mut() {
            blocks.push(sum);
        }
        total += sum;
    }
    total
}

/// `ln(sum(exp(logit)))`, or `None` when a logit is not finite.
pub(super) fn log_sum_exp(row: &[f32]) -> Option<f64> {
    let max = finite_max(row)?;
    Some(f64::from(max) + sum_exp(row, max, 1.0, None).ln())
}

/// A token and its logit.
pub(super) type Candidate = (f32, u32);

/// Likeliest first; of equals the lower id.
pub(super) fn by_logit(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Calls `visit` for every logit of at least `threshold`, which it may raise.
#[inline(always)]
fn scan(row: &[f32], mut threshold: f32, mut visit: impl FnMut(Candidate) -> f32) {
    for (number, chunk) in row.chunks(LANES).enumerate() {
        // One test without branches for all: nearly every chunk lies below.
        let any = chunk.iter().fold(false, |any, &logit| any | (logit >= threshold));
        if !any {
            continue;
        }
        for (i, &logit) in chunk.iter().enumerate() {
            if logit >= threshold {
                threshold = visit((logit, (number * LANES + i) as u32));
            }
        }
    }
}

/// Gathers all candidates of at least `threshold`, in the order of their ids.
pub(super) fn at_least(row: &[f32], threshold: f32, found: &mut Vec<Candidate>) {
    found.clear();
    scan(row, threshold, |candidate| {
        found.push(candidate);
        threshold
    });
}

/// The `k`-th largest logit, `1 <= k <= row.len()`. Keeps a bounded heap of sorts: what cannot be among the
/// largest any more is dropped whenever `found` is full.
pub(super) fn kth_largest(row: &[f32], k: usize, found: &mut Vec<Candidate>) -> f32 {
    let capacity = (4 * k).max(512);
    let mut threshold = f32::NEG_INFINITY;
    found.clear();
    scan(row, threshold, |candidate| {
        found.push(candidate);
        if found.len() >= capacity {
            found.select_nth_unstable_by(k - 1, by_logit);
            found.truncate(k);
            threshold = found[k - 1].0;
        }
        threshold
    });
    found.select_nth_unstable_by(k - 1, by_logit);
    found[k - 1].0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exp_is_exp(x in -86.9f32..0.0) {
            let exact = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "{x}");
        }

        #[test]
        fn the_sum_is_the_sum(row in prop::collection::vec(-40.0f32..40.0, 1..1500), scale in 0.2f32..3.0) {
            let max = finite_max(&row).unwrap();
            prop_assert_eq!(max, row.iter().copied().fold(f32::MIN, f32::max));
            let exact: f64 = row.iter().map(|&l| (f64::from(l - max) * f64::from(scale)).exp()).sum();
            let mut blocks = Vec::new();
            let sum = sum_exp(&row, max, scale, Some(&mut blocks));
            prop_assert!((sum / exact - 1.0).abs() < 2e-6, "{} {}", sum, exact);
            prop_assert_eq!(sum_exp_portable(&row, max, scale, None).to_bits(), sum.to_bits());
            prop_assert!((blocks.iter().sum::<f64>() / sum - 1.0).abs() < 1e-12);
        }

        #[test]
        fn the_kth_is_the_kth(row in prop::collection::vec((-30i8..30).prop_map(f32::from), 1..4000), k in 1usize..700) {
            let k = k.min(row.len());
            let mut sorted = row.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let mut found = Vec::new();
            let threshold = kth_largest(&row, k, &mut found);
            prop_assert_eq!(threshold, sorted[k - 1]);
            at_least(&row, threshold, &mut found);
            prop_assert_eq!(found.len(), row.iter().filter(|&&l| l >= threshold).count());
        }
    }

    #[test]
    fn what_is_not_finite_is_seen_wherever_it_is() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 15, 16, 39] {
                let mut row = vec![1.0; 40];
                row[at] = bad;
                assert_eq!(finite_max(&row), None);
            }
        }
        assert_eq!(finite_max(&[]), None);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }
}
