//! What NVIDIA hardware and software there is, for `eyas doctor`.

use cudarc::driver::{result, sys};
use eyas_backend::Result;

use crate::device::{describe, init, limits};
use crate::library::{LIBRARIES, LibraryInfo};

/// One card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number, as `CudaOptions::device` takes it.
    pub ordinal: usize,
    /// What NVIDIA calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub sm: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: u64,
}

/// What [`probe`] found.
#[derive(Clone, Debug)]
pub struct CudaReport {
    /// Each library and its file, or what to install.
    pub libraries: Vec<LibraryInfo>,
    /// The CUDA version that the driver supports, major and minor.
    pub driver: Option<(u32, u32)>,
    /// The cards; an error where the driver does not answer.
    pub devices: Result<Vec<DeviceInfo>, String>,
}

/// Looks for the driver, the libraries and the cards. Never fails: what is missing is part of the answer.
pub fn probe() -> CudaReport {
    let libraries = LIBRARIES.map(|library| library.open()).into();
    let devices = init().map_err(|e| e.to_string()).and_then(|()| devices().map_err(describe));
    let driver = devices.is_ok().then(driver_version).flatten();
    CudaReport { libraries, driver, devices }
}

fn driver_version() -> Option<(u32, u32)> {
    let mut version = 0;
    // SAFETY: the driver is open, its symbols were checked, the out-pointer is valid.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().ok()?;
    let version = u32::try_from(version).ok()?;
    Some((version / 1000, version % 1000 / 10))
}

fn devices() -> Result<Vec<DeviceInfo>, result::DriverError> {
    (0..result::device::get_count()?)
        .map(|ordinal| {
            let device = result::device::get(ordinal)?;
            let limits = limits(device)?;
            Ok(DeviceInfo {
                ordinal: ordinal as usize,
                name: result::device::get_name(device)?,
                sm: limits.sm,
                multiprocessors: limits.multiprocessors,
                // SAFETY: `device` came from the driver.
                memory: unsafe { result::device::total_mem(device)? } as u64,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_library_is_found_or_comes_with_advice() {
        let report = probe();
        assert_eq!(report.libraries.len(), 3);
        for library in &report.libraries {
            match &library.found {
                Ok(path) => assert!(!path.as_os_str().is_empty()),
                Err(reason) => assert!(reason.contains("install"), "{reason}"),
            }
        }
        assert!(report.devices.is_ok() || report.libraries[0].found.is_err() || report.driver.is_none());
    }
}
