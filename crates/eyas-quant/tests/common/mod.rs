//! Inputs that `tools/golden_quant.py` makes too.

use eyas_quant::Element;

/// Bell-shaped values from integers alone; `values` in the script says how.
pub fn values(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64)
        .map(|i| {
            let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            let fields: i64 = (0..4).map(|k| (z >> (16 * k) & 0xFFFF) as i64).sum();
            let outlier = if i % 509 == 7 { 8.0 } else { 1.0 };
            let magnitude = (1u32 << (i / 4096 % 4)) as f32;
            (fields - 131_070) as f32 / 1_048_576.0 * outlier / magnitude
        })
        .collect()
}

/// The values in another type, rounded to the nearest.
pub fn cast<T: Element>(values: &[f32]) -> Vec<T> {
    let mut out = vec![T::zeroed(); values.len()];
    T::narrow(values, &mut out);
    out
}
