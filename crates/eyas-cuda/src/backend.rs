//! One NVIDIA card: how it is set up, and what it says of itself. Its operations are in [`crate::operations`].

use std::sync::Arc;

use eyas_backend::{Dtype, Error, Result};

use crate::CudaWeight;
use crate::device::Device;
use crate::kernels::Kernels;
use crate::matmul::Matmul;
use crate::offload::Copies;
use crate::profile::Profile;
use crate::project::LoraPath;
use crate::scratch::{Scratch, Slot};
use crate::staging::Staging;

/// How the CUDA backend is set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct CudaOptions {
    /// The card's number, from 0.
    pub device: usize,
    /// The most bytes that this backend takes of the card's memory; `None` for what is free.
    pub memory_limit: Option<u64>,
    /// The type of activations; `None` for bfloat16, or half precision where the card has no bfloat16. `F32` computes
    /// in full single precision, for tests of exactness.
    pub compute_dtype: Option<Dtype>,
    /// How low-rank updates join the products; `None` takes the path with fewer bytes.
    pub lora_path: Option<LoraPath>,
}

/// One NVIDIA card as a [`eyas_backend::Backend`].
#[derive(Debug)]
pub struct CudaBackend {
    pub(crate) kernels: Kernels,
    pub(crate) matmul: Matmul,
    pub(crate) scratch: Scratch,
    pub(crate) staging: Staging,
    pub(crate) copies: Copies,
    pub(crate) dtype: Dtype,
    pub(crate) lora_path: Option<LoraPath>,
    pub(crate) profile: Profile,
    pub(crate) device: Arc<Device>,
}

/// Bytes of a card's memory, as its backend sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Free, within the backend's limit.
    pub free: u64,
    /// The card's.
    pub total: u64,
    /// Held by this backend.
    pub used: u64,
    /// The most that this backend held.
    pub peak: u64,
    /// Of those held, scratch memory.
    pub scratch: u64,
}

impl CudaBackend {
    /// Opens a card, its libraries, and compiles the kernels that are not in the cache yet.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no card, no driver or a library is missing, with what to install;
    /// [`Error::OutOfMemory`] where not even the workspace fits.
    pub fn new(options: CudaOptions) -> Result<Self> {
        let device = Arc::new(Device::open(options.device, options.memory_limit)?);
        let has_bf16 = device.limits.sm >= (8, 0);
        let dtype = match options.compute_dtype {
            None if has_bf16 => Dtype::Bf16,
            None => Dtype::F16,
            Some(Dtype::Bf16) if !has_bf16 => {
                return Err(Error::Device {
                    device: device.name.clone(),
                    reason: "the card has no bfloat16; use half precision".into(),
                });
            }
            Some(dtype) => dtype,
        };
        Ok(Self {
            kernels: Kernels::new(&device, dtype)?,
            matmul: Matmul::new(&device, dtype)?,
            scratch: Scratch::new(&device),
            staging: Staging::new(&device),
            copies: Copies::new(&device)?,
            dtype,
            lora_path: options.lora_path,
            profile: Profile::default(),
            device,
        })
    }

    /// The card's memory.
    ///
    /// # Errors
    /// When the driver does not say.
    pub fn memory(&self) -> Result<MemoryUse> {
        let (free, total, used) = self.device.memory()?;
        Ok(MemoryUse { free, total, used, peak: self.device.peak_bytes(), scratch: self.scratch.bytes() })
    }

    /// Dequantises a weight into scratch memory, as a projection does before its product: to measure that part alone.
    ///
    /// # Errors
    /// Those of the device.
    pub fn dequantise(&self, weight: &CudaWeight) -> Result<()> {
        let mut scratch = self.scratch.lock();
        let to = scratch.get(Slot::Weight, weight.len() * self.dtype.size())?;
        self.materialise(weight, to, weight.cols)
    }

    /// Milliseconds that the card takes for what `work` queues, queued work before it aside.
    ///
    /// # Errors
    /// Those of `work` and of the device.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        let (start, end) = (self.device.event()?, self.device.event()?);
        start.record()?;
        work()?;
        end.record()?;
        end.wait()?;
        start.milliseconds_to(&end)
    }
}

#[cfg(test)]
mod tests {
    use eyas_backend::Backend as _;

    use super::*;

    /// With a card this opens it; without one the error must say what to do.
    #[test]
    fn without_a_card_the_error_says_what_to_do() {
        match CudaBackend::new(CudaOptions::default()) {
            Ok(backend) => assert!(!backend.name().is_empty()),
            Err(error) => {
                let text = error.to_string();
                assert!(["install", "nvidia-smi"].iter().any(|advice| text.contains(advice)), "{text}");
            }
        }
    }
}
