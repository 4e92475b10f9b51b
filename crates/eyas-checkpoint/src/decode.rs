//! Stored values to f32: floats of every width and ggml's 32-value blocks.
//!
//! Block formats: `ggml-quants` of the ggml project. Results equal its reference dequantisation bit for bit: products
//! and sums are rounded separately.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use rayon::prelude::*;

use crate::TensorDtype;

/// Elements that one task decodes: enough to hide the cost of the task, few enough to share small tensors out. A
/// multiple of every block length.
const TASK_ELEMENTS: usize = 1 << 15;

/// Values of a ggml block.
const BLOCK: usize = 32;

/// Decodes `bytes`, which hold exactly `out.len()` elements of a float or block type, in parallel.
pub(crate) fn decode_f32(dtype: TensorDtype, bytes: &[u8], out: &mut [f32]) {
    debug_assert!(dtype.is_float());
    debug_assert_eq!(dtype.byte_len(out.len()), Some(bytes.len()));
    if out.len() <= TASK_ELEMENTS {
        return decode_task(dtype, bytes, out);
    }
    let task_bytes = TASK_ELEMENTS / dtype.block_len() * dtype.block_bytes();
    out.par_chunks_mut(TASK_ELEMENTS)
        .zip(bytes.par_chunks(task_bytes))
        .for_each(|(out, bytes)| decode_task(dtype, bytes, out));
}

fn decode_task(dtype: TensorDtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        TensorDtype::F32 => bytemuck::cast_slice_mut::<f32, u8>(out).copy_from_slice(bytes),
        TensorDtype::F64 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *value = f64::from_le_bytes(*b) as f32;
            }
        }
        TensorDtype::BF16 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        TensorDtype::F16 => decode_f16(bytes, out),
        TensorDtype::Q8_0 => blocks(bytes, out, |block: &[u8; 34], out| {
            let d = scale(block, 0);
            for (value, q) in out.iter_mut().zip(&block[2..]) {
                *value = f32::from(*q as i8) * d;
            }
        }),
        TensorDtype::Q4_0 => blocks(bytes, out, |block: &[u8; 18], out| {
            let d = scale(block, 0);
            nibbles(&block[2..], out, |q| d * f32::from(q as i8 - 8));
        }),
        TensorDtype::Q4_1 => blocks(bytes, out, |block: &[u8; 20], out| {
            let (d, m) = (scale(block, 0), scale(block, 2));
            nibbles(&block[4..], out, |q| d * f32::from(q) + m);
        }),
        // The caller has refused these; leaving zeros would be a silent error.
        other => unreachable!("{other} is not decoded to f32"),
    }
}

/// Hands each block with its 32 values to `decode`.
fn blocks<const BYTES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; BLOCK]),
) {
    for (block, out) in bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        decode(block, out);
    }
}

fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low nibbles are the first half of the block, the high nibbles the second.
fn nibbles(packed: &[u8], out: &mut [f32; BLOCK], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(packed) {
        *low = value(byte & 0x0f);
        *high = value(byte >> 4);
    }
}

/// Through an aligned buffer, because a tensor may start at any byte and the conversion wants whole vectors.
fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    let mut bits = [0u16; 512];
    for (out, bytes) in out.chunks_mut(bits.len()).zip(bytes.chunks(bits.len() * 2)) {
        let bits = &mut bits[..out.len()];
        bytemuck::cast_slice_mut::<u16, u8>(bits).copy_from_slice(bytes);
        bits.reinterpret_cast::<f16>().convert_to_f32_slice(out);
    }
}

#[cfg(target_endian = "big")]
compile_error!("weights are stored little endian and read without swapping bytes");

#[cfg(test)]
mod tests {
    use super::*;

    /// A block with scale 0.5 (and minimum -3), nibbles 0..=15 low and 15..=0 high.
    fn four_bit_block(minimum: Option<f32>) -> Vec<u8> {
        let mut block = f16::from_f32(0.5).to_le_bytes().to_vec();
        block.extend(minimum.map(|m| f16::from_f32(m).to_le_bytes()).into_iter().flatten());
        block.extend((0..16u8).map(|i| i | ((15 - i) << 4)));
        block
    }

    #[test]
    fn q4_0_puts_low_nibbles_first_and_centres_on_eight() {
        let mut out = [0.0; 32];
        decode_f32(TensorDtype::Q4_0, &four_bit_block(None), &mut out);
        assert_eq!((out[0], out[15], out[16], out[31]), (-4.0, 3.5, 3.5, -4.0));
    }

    #[test]
    fn q4_1_adds_the_minimum() {
        let mut out = [0.0; 32];
        decode_f32(TensorDtype::Q4_1, &four_bit_block(Some(-3.0)), &mut out);
        assert_eq!((out[0], out[15], out[16], out[31]), (-3.0, 4.5, 4.5, -3.0));
    }

    #[test]
    fn q8_0_reads_signed_bytes() {
        let mut block = f16::from_f32(0.25).to_le_bytes().to_vec();
        block.extend((0..32i32).map(|i| (i * 8 - 128) as u8));
        let mut out = [0.0; 32];
        decode_f32(TensorDtype::Q8_0, &block, &mut out);
        assert_eq!((out[0], out[16], out[31]), (-32.0, 0.0, 30.0));
    }

    #[test]
    fn every_f16_and_bf16_decodes_as_the_half_crate_does() {
        // Past one task, and at an odd address.
        let all: Vec<u8> =
            std::iter::once(0).chain((0..=u16::MAX).flat_map(|bits| bits.to_le_bytes())).collect();
        let mut out = vec![0.0; 1 << 16];
        decode_f32(TensorDtype::F16, &all[1..], &mut out);
        for (bits, value) in (0..=u16::MAX).zip(&out) {
            let expected = f16::from_bits(bits).to_f32();
            assert!(value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()));
        }
        decode_f32(TensorDtype::BF16, &all[1..], &mut out);
        for (bits, value) in (0..=u16::MAX).zip(&out) {
            assert_eq!(value.to_bits(), u32::from(bits) << 16);
        }
    }
}
