//! The 8-bit dynamic type: its maps, and vectors quantised in blocks on such a map.

use std::sync::OnceLock;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernel::MIN_ABSMAX;

/// Values a rayon task handles at least.
const PARALLEL_VALUES: usize = 1 << 15;

/// The 256 levels of the 8-bit dynamic type, ascending, from about -1 (signed) or 0 to 1.
///
/// Seven decades, each with twice the levels of the one below it: the leading zero bits of a code count decades, the
/// remaining bits are a linear fraction. The bits equal those of bitsandbytes' `create_dynamic_map`.
pub fn dynamic_map(signed: bool) -> &'static [f32; 256] {
    static MAPS: [OnceLock<[f32; 256]>; 2] = [OnceLock::new(), OnceLock::new()];
    MAPS[usize::from(signed)].get_or_init(|| build_dynamic_map(signed))
}

fn build_dynamic_map(signed: bool) -> [f32; 256] {
    const DECADES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut map = [0.0f32; 256];
    // Zero is there already; one closes the range.
    let mut len = 1;
    let mut add = |level: f32| {
        map[len] = level;
        len += 1;
    };
    add(1.0);
    for (i, decade) in DECADES.into_iter().enumerate() {
        let intervals = if signed { 1usize << i } else { 2 << i };
        for k in 0..intervals {
            let mean = (linspace(k, intervals) + linspace(k + 1, intervals)) / 2.0;
            add(decade * mean);
            if signed {
                add(-(decade * mean));
            }
        }
    }
    map.sort_unstable_by(f32::total_cmp);
    map
}

/// Boundary `k` of `intervals` equal intervals of 0.1 .. 1, rounded as `torch.linspace` rounds it: counted from the
/// nearer end, with one fused multiply-add.
fn linspace(k: usize, intervals: usize) -> f32 {
    let step = (1.0 - 0.1f32) / intervals as f32;
    if k < intervals.div_ceil(2) {
        step.mul_add(k as f32, 0.1)
    } else {
        (-step).mul_add((intervals - k) as f32, 1.0)
    }
}

/// The midpoints of a map, closed by an infinity that no value exceeds.
fn midpoints(map: &[f32; 256]) -> [f32; 256] {
    let mut midpoints = [f32::INFINITY; 256];
    for i in 0..255 {
        midpoints[i] = (map[i] + map[i + 1]) * 0.5;
    }
    midpoints
}

fn nearest(midpoints: &[f32; 256], value: f32) -> u8 {
    let mut code = 0;
    for step in [128, 64, 32, 16, 8, 4, 2, 1] {
        code += usize::from(value > midpoints[(code + step - 1) & 255]) * step;
    }
    code as u8
}

fn check_lengths(values: usize, codes: usize, absmax: usize, block_size: usize) -> Result<()> {
    if block_size == 0 {
        return Err(Error::Config { key: "block_size", value: "0".into(), allowed: "1 or more" });
    }
    let blocks = values.div_ceil(block_size);
    if codes != values || absmax != blocks {
        return Err(Error::Shape(format!(
            "{values} values in blocks of {block_size} need {values} codes and {blocks} scales, not {codes} and {absmax}"
        )));
    }
    Ok(())
}

/// Quantises a vector in blocks: `absmax[b]` is the largest magnitude of block `b`, `codes[i]` the level of `map`
/// nearest to `values[i] / absmax[b]`. A value midway between two levels takes the lower one.
///
/// `map` must ascend; see [`dynamic_map`].
///
/// # Errors
/// [`Error::Shape`] where `codes` is not as long as `values` or `absmax` not one a block, [`Error::Config`] for a
/// block size of zero, [`Error::NonFinite`] (row 0, the index as column) for NaN or an infinity.
pub fn quantize_blockwise_8bit(
    values: &[f32],
    map: &[f32; 256],
    block_size: usize,
    codes: &mut [u8],
    absmax: &mut [f32],
) -> Result<()> {
    check_lengths(values.len(), codes.len(), absmax.len(), block_size)?;
    let midpoints = midpoints(map);
    let quantize_block = |((values, codes), absmax): ((&[f32], &mut [u8]), &mut f32)| {
        let bits = values.iter().fold(0, |max, v| max.max(v.abs().to_bits()));
        *absmax = f32::from_bits(bits);
        if !absmax.is_finite() {
            return false;
        }
        let inverse = 1.0 / absmax.max(MIN_ABSMAX);
        for (code, value) in codes.iter_mut().zip(values) {
            *code = nearest(&midpoints, value * inverse);
        }
        true
    };
    let finite = values
        .par_chunks(block_size)
        .zip(codes.par_chunks_mut(block_size))
        .zip(absmax.par_iter_mut())
        .with_min_len(PARALLEL_VALUES.div_ceil(block_size))
        .map(quantize_block)
        .all(|finite| finite);
    if finite {
        return Ok(());
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(col) => Err(Error::NonFinite { row: 0, col, value: values[col] }),
        None => Ok(()),
    }
}

/// Reads back what [`quantize_blockwise_8bit`] wrote: `out[i] = map[codes[i]] * absmax[i / block_size]`.
///
/// # Errors
/// [`Error::Shape`] where the lengths do not fit, [`Error::Config`] for a block size of zero.
pub fn dequantize_blockwise_8bit(
    codes: &[u8],
    absmax: &[f32],
    map: &[f32; 256],
    block_size: usize,
    out: &mut [f32],
) -> Result<()> {
    check_lengths(out.len(), codes.len(), absmax.len(), block_size)?;
    codes
        .par_chunks(block_size)
        .zip(out.par_chunks_mut(block_size))
        .zip(absmax.par_iter())
        .with_min_len(PARALLEL_VALUES.div_ceil(block_size))
        .for_each(|((codes, out), absmax)| {
            for (out, code) in out.iter_mut().zip(codes) {
                *out = map[*code as usize] * absmax;
            }
        });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_ascend_strictly() {
        for signed in [false, true] {
            assert!(dynamic_map(signed).windows(2).all(|w| w[0] < w[1]));
        }
    }

    #[test]
    fn every_level_keeps_its_code() {
        for signed in [false, true] {
            let map = dynamic_map(signed);
            let (mut codes, mut absmax) = ([0; 256], [0.0]);
            quantize_blockwise_8bit(map, map, 256, &mut codes, &mut absmax).unwrap();
            assert_eq!(codes, std::array::from_fn(|i| i as u8));
        }
    }

    #[test]
    fn the_nearest_level_is_chosen() {
        let map = dynamic_map(true);
        let values: Vec<f32> = (-2000..=2000).map(|i| i as f32 / 2000.0).collect();
        let (mut codes, mut absmax) = (vec![0; values.len()], vec![0.0]);
        quantize_blockwise_8bit(&values, map, 4096, &mut codes, &mut absmax).unwrap();
        for (value, code) in values.iter().zip(codes) {
            let best = map.iter().map(|level| (level - value).abs()).fold(f32::MAX, f32::min);
            let chosen = (map[code as usize] - value).abs();
            assert!(
                chosen <= best + f32::EPSILON,
                "{value}: code {code} is {chosen} away, the nearest {best}"
            );
        }
    }

    #[test]
    fn zero_and_denormal_blocks_stay_finite() {
        let values = [0.0, -0.0, 0.0, f32::from_bits(1), -f32::from_bits(3), 0.0];
        let (mut codes, mut absmax) = ([0; 6], [0.0; 2]);
        quantize_blockwise_8bit(&values, dynamic_map(true), 3, &mut codes, &mut absmax).unwrap();
        assert_eq!(absmax, [0.0, f32::from_bits(3)]);
        let mut out = [1.0; 6];
        dequantize_blockwise_8bit(&codes, &absmax, dynamic_map(true), 3, &mut out).unwrap();
        assert!(out.iter().all(|v| v.is_finite() && v.abs() <= f32::from_bits(3)));
    }

    #[test]
    fn a_nan_is_found() {
        let mut values = vec![1.0f32; 1000];
        values[777] = f32::NAN;
        let (mut codes, mut absmax) = (vec![0; 1000], vec![0.0; 4]);
        let error =
            quantize_blockwise_8bit(&values, dynamic_map(true), 256, &mut codes, &mut absmax).unwrap_err();
        assert!(matches!(error, Error::NonFinite { row: 0, col: 777, .. }));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let map = dynamic_map(true);
        assert!(quantize_blockwise_8bit(&[0.0; 4], map, 2, &mut [0; 4], &mut [0.0; 1]).is_err());
        assert!(quantize_blockwise_8bit(&[0.0; 4], map, 0, &mut [0; 4], &mut [0.0; 1]).is_err());
        assert!(dequantize_blockwise_8bit(&[0; 3], &[0.0; 2], map, 2, &mut [0.0; 4]).is_err());
    }
}
