//! Where NVIDIA's libraries are, and whether they hold what is called.
//!
//! cudarc opens a library by name through the loader and panics where it or a symbol is absent. So every library is
//! opened here first, from the loader's path or by its full path from the usual places; a later search for its name
//! then finds the one that is open.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use eyas_backend::{Error, Result};
use libloading::Library;

/// A library of NVIDIA's and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryInfo {
    /// Its name: `cuda`, `nvrtc`, `cublasLt`.
    pub name: &'static str,
    /// The file, or what is wrong and what to install.
    pub found: Result<PathBuf, String>,
}

/// What this crate opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lib {
    Driver,
    Nvrtc,
    CublasLt,
}

pub(crate) const LIBRARIES: [Lib; 3] = [Lib::Driver, Lib::Nvrtc, Lib::CublasLt];

impl Lib {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Driver => "cuda",
            Self::Nvrtc => "nvrtc",
            Self::CublasLt => "cublasLt",
        }
    }

    /// What to do when it is absent.
    const fn advice(self) -> &'static str {
        match self {
            Self::Driver => "install the NVIDIA driver (https://www.nvidia.com/drivers)",
            Self::Nvrtc => {
                "install it with `pip install nvidia-cuda-nvrtc` or the CUDA toolkit, or set CUDA_HOME to the folder of \
                 a toolkit"
            }
            Self::CublasLt => {
                "install it with `pip install nvidia-cublas` or the CUDA toolkit, or set CUDA_HOME to the folder of a \
                 toolkit"
            }
        }
    }

    /// The functions that this crate calls.
    const fn symbols(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &[
                "cuInit",
                "cuDriverGetVersion",
                "cuDeviceGet",
                "cuDeviceGetCount",
                "cuDeviceGetName",
                "cuDeviceGetAttribute",
                "cuDeviceTotalMem_v2",
                "cuDevicePrimaryCtxRetain",
                "cuDevicePrimaryCtxRelease_v2",
                "cuCtxSetCurrent",
                "cuMemGetInfo_v2",
                "cuMemAlloc_v2",
                "cuMemFree_v2",
                "cuMemHostAlloc",
                "cuMemFreeHost",
                "cuMemcpyHtoDAsync_v2",
                "cuMemcpyDtoHAsync_v2",
                "cuMemcpyDtoDAsync_v2",
                "cuMemsetD8Async",
                "cuStreamCreate",
                "cuStreamSynchronize",
                "cuStreamDestroy_v2",
                "cuStreamBeginCapture_v2",
                "cuStreamEndCapture",
                "cuGraphInstantiateWithFlags",
                "cuGraphLaunch",
                "cuGraphDestroy",
                "cuGraphExecDestroy",
                "cuEventCreate",
                "cuEventRecord",
                "cuEventSynchronize",
                "cuEventElapsedTime",
                "cuEventDestroy_v2",
                "cuModuleLoadData",
                "cuModuleUnload",
                "cuModuleGetFunction",
                "cuFuncSetAttribute",
                "cuLaunchKernel",
                "cuLaunchKernelEx",
                "cuGetErrorName",
                "cuGetErrorString",
            ],
            Self::Nvrtc => &[
                "nvrtcVersion",
                "nvrtcGetNumSupportedArchs",
                "nvrtcGetSupportedArchs",
                "nvrtcCreateProgram",
                "nvrtcDestroyProgram",
                "nvrtcCompileProgram",
                "nvrtcGetProgramLogSize",
                "nvrtcGetProgramLog",
                "nvrtcGetCUBINSize",
                "nvrtcGetCUBIN",
            ],
            Self::CublasLt => &[
                "cublasLtCreate",
                "cublasLtDestroy",
                "cublasLtGetVersion",
                "cublasLtMatmul",
                "cublasLtMatmulAlgoCheck",
                "cublasLtMatmulAlgoGetHeuristic",
                "cublasLtMatmulDescCreate",
                "cublasLtMatmulDescDestroy",
                "cublasLtMatmulDescSetAttribute",
                "cublasLtMatmulPreferenceCreate",
                "cublasLtMatmulPreferenceDestroy",
                "cublasLtMatmulPreferenceSetAttribute",
                "cublasLtMatrixLayoutCreate",
                "cublasLtMatrixLayoutDestroy",
            ],
        }
    }

    /// The file names it goes by, best first. Those that cudarc asks the loader for are among them.
    fn file_names(self) -> Vec<String> {
        let name = self.name();
        if cfg!(windows) {
            return match self {
                Self::Driver => vec!["nvcuda.dll".into()],
                Self::Nvrtc => [13, 12].map(|v| format!("nvrtc64_{v}0_0.dll")).into(),
                Self::CublasLt => [13, 12].map(|v| format!("cublasLt64_{v}.dll")).into(),
            };
        }
        let versions: &[&str] = match self {
            Self::Driver => &[".1", ""],
            _ => &[".13", ".12", ""],
        };
        versions.iter().map(|version| format!("lib{name}.so{version}")).collect()
    }

    /// Opens the library for the life of the process, once, and checks its symbols.
    pub(crate) fn open(self) -> LibraryInfo {
        static OPENED: [OnceLock<LibraryInfo>; 3] = [const { OnceLock::new() }; 3];
        OPENED[self as usize]
            .get_or_init(|| LibraryInfo { name: self.name(), found: self.search(&search_folders()) })
            .clone()
    }

    /// As [`Lib::open`]; an error where the library cannot be used.
    pub(crate) fn require(self) -> Result<PathBuf> {
        self.open().found.map_err(|reason| Error::Device { device: "CUDA".into(), reason })
    }

    fn search(self, folders: &[PathBuf]) -> Result<PathBuf, String> {
        let names = self.file_names();
        let by_name = names.iter().map(PathBuf::from);
        let by_path = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
        let mut refused = None;
        for path in by_name.chain(by_path.filter(|path| path.is_file())) {
            // SAFETY: NVIDIA's libraries may be loaded from any thread and their initialisers have no precondition.
            match unsafe { Library::new(&path) } {
                Ok(library) => {
                    let missing = self.symbols().iter().find(|symbol| {
                        // SAFETY: the symbol is only looked up, never called through this type.
                        unsafe { library.get::<unsafe extern "C" fn()>(symbol.as_bytes()) }.is_err()
                    });
                    if let Some(symbol) = missing {
                        refused = Some(format!("{} is too old: it has no {symbol}", path.display()));
                        continue;
                    }
                    // It stays open: cudarc's search by name must find it.
                    std::mem::forget(library);
                    return Ok(loaded_file(&path).unwrap_or(path));
                }
                Err(error) if path.is_absolute() => refused = Some(format!("{}: {error}", path.display())),
                Err(_) => {}
            }
        }
        let reason = refused.unwrap_or_else(|| format!("the library {} was not found", names[0]));
        Err(format!("{reason}; {}", self.advice()))
    }
}

/// The file behind a loaded library: what the process has mapped under its name.
fn loaded_file(path: &Path) -> Option<PathBuf> {
    if path.is_absolute() {
        return Some(path.to_owned());
    }
    let name = path.file_name()?.to_str()?;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines()
        .filter_map(|line| line.find('/').map(|start| PathBuf::from(&line[start..])))
        .find(|file| file.file_name().and_then(|f| f.to_str()).is_some_and(|f| f.starts_with(name)))
}

/// Folders where NVIDIA's libraries usually lie, best first.
fn search_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    for home in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable) {
        folders
            .extend(["lib64", "lib", "targets/x86_64-linux/lib", "bin", "bin/x64"].map(|sub| home.join(sub)));
    }
    if let Some(paths) = std::env::var_os("LD_LIBRARY_PATH") {
        folders.extend(std::env::split_paths(&paths).filter(|path| path.is_absolute()));
    }
    // Python environments: the active ones, those of the interpreters on the path, the user's and the system's.
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).collect();
    prefixes.extend(std::env::current_dir().ok().map(|dir| dir.join(".venv")));
    if let Some(paths) = std::env::var_os("PATH") {
        for dir in std::env::split_paths(&paths) {
            if ["python3", "python", "python.exe"].iter().any(|name| dir.join(name).exists()) {
                prefixes.extend(dir.parent().map(Path::to_owned));
                // A link to an interpreter elsewhere.
                prefixes.extend(
                    std::fs::canonicalize(dir.join("python3"))
                        .ok()
                        .and_then(|file| Some(file.parent()?.parent()?.to_owned())),
                );
            }
        }
    }
    prefixes.extend(std::env::home_dir().map(|home| home.join(".local")));
    prefixes.push("/usr".into());
    for prefix in prefixes {
        folders.extend(python_folders(&prefix));
        folders.push(prefix.join("lib"));
    }
    folders.push("/usr/local/cuda/lib64".into());
    folders.extend(children(Path::new("/usr/local"), "cuda-").into_iter().map(|dir| dir.join("lib64")));
    folders.push("/usr/lib/wsl/lib".into());
    folders.push("/usr/local/nvidia/lib64".into());
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// `nvidia/*/lib` of every `site-packages` under a prefix.
fn python_folders(prefix: &Path) -> Vec<PathBuf> {
    let mut packages = vec![prefix.join("Lib/site-packages")];
    for lib in ["lib", "lib64"] {
        for python in children(&prefix.join(lib), "python3") {
            packages.extend(["site-packages", "dist-packages"].map(|name| python.join(name)));
        }
    }
    let mut folders = Vec::new();
    for package in packages {
        for part in children(&package.join("nvidia"), "") {
            folders.extend(["lib", "bin", "bin/x86_64"].map(|sub| part.join(sub)));
        }
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

/// Folders in `dir` whose name starts with `prefix`, newest name first.
fn children(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)))
        .map(|entry| entry.path())
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_packages_are_found_under_a_prefix() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("lib/python3.12/site-packages/nvidia/cu13/lib");
        std::fs::create_dir_all(&lib).unwrap();
        assert_eq!(python_folders(root.path()), [lib]);
    }

    #[test]
    fn a_file_that_is_no_library_is_refused_with_advice() {
        let root = tempfile::tempdir().unwrap();
        // The versioned names may be on the loader's path of the machine; the search is for a made-up folder first.
        std::fs::write(root.path().join(Lib::Nvrtc.file_names()[0].clone()), b"not a library").unwrap();
        match Lib::Nvrtc.search(&[root.path().to_owned()]) {
            Ok(path) => assert!(!path.starts_with(root.path())),
            Err(reason) => assert!(reason.contains("pip install nvidia-cuda-nvrtc"), "{reason}"),
        }
    }
}
