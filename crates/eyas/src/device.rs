//! Which device a command runs on.

use std::str::FromStr;

use anyhow::{Context, Result, bail};
use eyas_backend::{Backend, CpuBackend, CpuOptions, Dtype, MatmulKernel};
use eyas_cuda::{CudaBackend, CudaOptions, CudaReport};
use eyas_train::Recipe;
use eyas_train::recipe::MemoryBudget;

/// A device as it is named on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceArg {
    /// The first card where there is one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A card, by its number.
    Cuda(usize),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |number: &str| number.parse().ok().map(Self::Cuda);
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            other => other.strip_prefix("cuda:").and_then(number),
        }
        .ok_or_else(|| "auto, cpu, cuda or cuda:NUMBER was expected".into())
    }
}

/// Reads a size of memory, "11GB" or "10.5GiB".
pub fn memory(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(MemoryBudget::Bytes(bytes)) => Ok(bytes),
        _ => Err("a size such as 11GB or 10.5GiB was expected".into()),
    }
}

/// The device that was asked for, and how much of its memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    /// Which.
    pub device: DeviceArg,
    /// The most bytes of a card's memory.
    pub memory: Option<u64>,
}

/// What a command does once it has a device. A trait, since a closure cannot be generic over the device.
pub trait Work {
    /// What comes of it.
    type Output;
    /// Does it.
    fn run<B: Backend>(self, backend: &B) -> Result<Self::Output>;
}

impl Choice {
    /// Opens the device, computing in the type that the recipe asks for, and does the work on it.
    ///
    /// # Errors
    /// When the device is not there or lacks something, with what to do; and those of the work.
    pub fn run<W: Work>(self, recipe: &Recipe, work: W) -> Result<W::Output> {
        match self.card() {
            Some(device) => {
                let options = CudaOptions {
                    device,
                    memory_limit: self.memory,
                    compute_dtype: recipe.compute_dtype(),
                    lora_path: None,
                };
                let backend = CudaBackend::new(options)
                    .context("the card cannot be used (--device cpu leaves it out)")?;
                work.run(&backend)
            }
            None => {
                if self.memory.is_some() {
                    bail!("--gpu-memory is about a card; on the processor set memory_budget in the recipe");
                }
                work.run(&cpu(recipe)?)
            }
        }
    }

    /// Plans a run for the memory that was asked for.
    pub fn limit(self, recipe: &mut Recipe) {
        if let Some(bytes) = self.memory {
            recipe.training.memory_budget = MemoryBudget::Bytes(bytes);
        }
    }

    /// The same with `auto` decided by what was found. A card that is there but lacks a library is chosen, and an error
    /// later, not a reason to compute for days on the processor.
    pub fn decided(self, found: &CudaReport) -> Self {
        let device = match self.device {
            DeviceArg::Auto if found.devices.as_ref().is_ok_and(|cards| !cards.is_empty()) => {
                DeviceArg::Cuda(0)
            }
            DeviceArg::Auto => DeviceArg::Cpu,
            named => named,
        };
        Self { device, ..self }
    }

    /// The card to use; `None` for the processor.
    fn card(self) -> Option<usize> {
        match self.device {
            DeviceArg::Cpu => None,
            DeviceArg::Cuda(number) => Some(number),
            DeviceArg::Auto => self.decided(&eyas_cuda::probe()).card(),
        }
    }
}

/// The processor, computing as the recipe asks.
fn cpu(recipe: &Recipe) -> Result<CpuBackend> {
    let matmul = match recipe.compute_dtype() {
        Some(Dtype::F32) => Some(MatmulKernel::F32),
        _ => None,
    };
    Ok(CpuBackend::new(CpuOptions { matmul })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_elsewhere() {
        assert_eq!("cuda:1".parse(), Ok(DeviceArg::Cuda(1)));
        assert_eq!("cpu".parse(), Ok(DeviceArg::Cpu));
        for wrong in ["gpu", "cuda:", "cuda:-1", "CPU", ""] {
            assert!(wrong.parse::<DeviceArg>().is_err(), "{wrong}");
        }
        assert_eq!(memory("11GB"), Ok(11_000_000_000));
        assert!(memory("auto").is_err());
    }
}
