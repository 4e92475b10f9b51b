//! Frozen weights in host memory: dense or quantised.

#![allow(unused_variables)]
use std::ops::Range;

use eyas_quant::Quantized;

use crate::Result;
use crate::spec::{HostMatrix, Storage};

/// A frozen weight, `[out, in]`.
#[derive(Debug)]
pub struct CpuWeight {}

impl CpuWeight {
    pub(super) fn load(matrix: HostMatrix<'_>, storage: Storage) -> Result<Self> {
        todo!()
    }

    pub(super) fn from_quantized(weight: Quantized) -> Result<Self> {
        todo!()
    }

    /// Resident bytes.
    pub fn bytes(&self) -> u64 {
        todo!()
    }

    pub(super) fn read_rows(&self, rows: Range<usize>, values: &mut Vec<f32>) -> Result<()> {
        todo!()
    }
}
