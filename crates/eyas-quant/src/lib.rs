//! 4-bit and 8-bit quantisation as bitsandbytes stores it.
//!
//! The crate knows bytes, not devices: it turns float matrices into packed codes and scales, turns them back, and
//! reads and writes the checkpoint keys that bitsandbytes uses.
//!
//! - [`quantize`] and [`Quantizer`] write NF4 (Dettmers et al., "QLoRA", 2023) and FP4, with or without double
//!   quantisation; [`Quantized`] holds the result and reads it back, whole or by rows.
//! - [`dynamic_map`] and [`quantize_blockwise_8bit`] are the 8-bit dynamic type (Dettmers, "8-bit Approximations for
//!   Parallelism in Deep Learning", 2015), used for the scales of the scales and for 8-bit optimiser states.
//! - [`state_dict`] is the checkpoint layout.
//!
//! ```
//! use eyas_quant::{QuantConfig, quantize};
//!
//! let weight: Vec<f32> = (0..8 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
//! let quantized = quantize(&weight, 8, 64, &QuantConfig::default())?;
//! let mut back = vec![0.0f32; weight.len()];
//! quantized.dequantize_into(&mut back)?;
//! assert!(weight.iter().zip(&back).all(|(w, b)| (w - b).abs() < 0.2));
//! # Ok::<(), eyas_quant::Error>(())
//! ```

#[cfg(target_endian = "big")]
compile_error!(
    "checkpoint tensors are little-endian and are borrowed as they are; big-endian targets are not supported"
);

mod blockwise;
mod dequantize;
mod dtype;
mod error;
mod kernel;
mod quant_type;
mod quantize;
mod quantized;
pub mod state_dict;

pub use blockwise::{dequantize_blockwise_8bit, dynamic_map, quantize_blockwise_8bit};
pub use dtype::{Dtype, Element, round_to_dtype};
pub use error::{Error, Result};
pub use quant_type::{BLOCK_SIZES, QuantConfig, QuantType};
pub use quantize::{Quantizer, quantize};
pub use quantized::{Absmax, NESTED_BLOCK_SIZE, Quantized};
