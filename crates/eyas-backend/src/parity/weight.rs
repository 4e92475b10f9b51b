//! Frozen weights as they are read back.

use eyas_quant::{QuantConfig, QuantType, quantize};

use super::{Checker, relative_error, tolerance};
use crate::parity::OpParity;
use crate::spec::{HostMatrix, Storage};
use crate::{Backend, Dtype, Result};

pub(super) fn check<B: Backend>(checker: &mut Checker<'_, B>) -> Result<()> {
    let backend = checker.backend;
    let (rows, cols) = (37, 100);
    let values = checker.normal(rows * cols);
    let matrix = HostMatrix::from_f32(rows, cols, &values)?;
    let mut record = |op, case: String, weight: &B::Weight, want: &[f32], dtype| -> Result<()> {
        let mut got = Vec::new();
        backend.download_weight(weight, 5..rows, &mut got)?;
        let want: Vec<f64> = want[5 * cols..].iter().copied().map(f64::from).collect();
        let error = relative_error(&got, &want);
        checker.rows.push(OpParity { op, case, error, tolerance: tolerance(dtype) });
        Ok(())
    };
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let weight = backend.load_weight(matrix, Storage::Dense(dtype))?;
        record("download_weight", format!("dense {dtype:?}"), &weight, &values, dtype)?;
    }
    for quant_type in [QuantType::Nf4, QuantType::Fp4] {
        for double_quant in [false, true] {
            let config = QuantConfig { quant_type, double_quant, ..QuantConfig::default() };
            let case = format!("{config:?}");
            let quantized = quantize(&values, rows, cols, &config)?;
            let mut want = vec![0.0; values.len()];
            quantized.dequantize_into(&mut want)?;
            let dtype = backend.compute_dtype();
            let weight = backend.load_weight(matrix, Storage::Quantised(config))?;
            record("download_weight", case.clone(), &weight, &want, dtype)?;
            let weight = backend.load_quantized(quantized)?;
            record("load_quantized", case, &weight, &want, dtype)?;
        }
    }
    Ok(())
}
