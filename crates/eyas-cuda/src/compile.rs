//! CUDA C++ to machine code by NVRTC, kept on disk.
//!
//! A cache entry's name is the SHA-256 of all that decides it: source, options, architecture, NVRTC's version. Its
//! content carries its own SHA-256, so a damaged entry is noticed and built again.

use std::ffi::CString;
use std::io::Write;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result as nvrtc, sys};
use eyas_backend::{Error, Result};
use sha2::{Digest, Sha256};

use crate::library::Lib;

/// NVRTC for one architecture.
#[derive(Debug)]
pub(crate) struct Compiler {
    architecture: String,
    version: (i32, i32),
    cache: Option<PathBuf>,
}

fn error(reason: String) -> Error {
    Error::Device { device: "NVRTC".into(), reason }
}

/// What NVRTC calls a compute capability: with the architecture's own instructions (`a`) where there are such.
pub(crate) fn architecture_name(sm: (u32, u32)) -> String {
    let suffix = if sm.0 >= 9 { "a" } else { "" };
    format!("sm_{}{}{suffix}", sm.0, sm.1)
}

/// Options of every compilation.
pub(crate) fn options(architecture: &str, element: &str) -> Vec<String> {
    let name = if element == "f32" { "float" } else { element };
    vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".into(),
        "--device-as-default-execution-space".into(),
        format!("-DELEM={name}"),
        format!("-DELEM_IS_F32={}", u8::from(element == "f32")),
    ]
}

/// The folder of compiled kernels and tuned plans: `EYAS_CACHE_DIR`, or the user's cache folder.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("EYAS_CACHE_DIR") {
        return Some(PathBuf::from(dir).join("cuda"));
    }
    directories::ProjectDirs::from("", "", "eyas").map(|dirs| dirs.cache_dir().join("cuda"))
}

impl Compiler {
    /// Opens NVRTC for a card of compute capability `sm`.
    pub(crate) fn new(sm: (u32, u32)) -> Result<Self> {
        Lib::Nvrtc.require()?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is open, its symbols were checked, and both out-pointers are valid.
        unsafe { sys::nvrtcVersion(&mut major, &mut minor) }
            .result()
            .map_err(|e| error(format!("asking its version: {e}")))?;
        let supported = supported_architectures()?;
        let number = (sm.0 * 10 + sm.1) as i32;
        if !supported.contains(&number) {
            return Err(error(format!(
                "NVRTC {major}.{minor} cannot compile for compute capability {}.{}; install a newer one with \
                 `pip install --upgrade nvidia-cuda-nvrtc`",
                sm.0, sm.1
            )));
        }
        Ok(Self { architecture: architecture_name(sm), version: (major, minor), cache: cache_folder() })
    }

    /// The machine code of a source for an element type, from the cache or compiled now.
    pub(crate) fn cubin(&self, file: &str, source: &str, element: &str) -> Result<Vec<u8>> {
        let options = options(&self.architecture, element);
        let Some(cache) = &self.cache else { return self.compile(file, source, &options) };
        let path = cache.join(format!("{file}-{element}-{}.cubin", self.key(source, &options)));
        if let Some(cubin) = read_entry(&path) {
            return Ok(cubin);
        }
        let cubin = self.compile(file, source, &options)?;
        if let Err(e) = write_entry(&path, &cubin) {
            tracing::warn!("compiled kernels cannot be kept in {}: {e}", cache.display());
        }
        Ok(cubin)
    }

    fn key(&self, source: &str, options: &[String]) -> String {
        let mut hash = Sha256::new();
        for part in options.iter().map(String::as_str).chain([source]) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(format!("{}.{}", self.version.0, self.version.1));
        hex(&hash.finalize()[..16])
    }

    fn compile(&self, file: &str, source: &str, options: &[String]) -> Result<Vec<u8>> {
        let text = CString::new(source).map_err(|_| error(format!("{file}.cu holds a zero byte")))?;
        let name =
            CString::new(format!("{file}.cu")).map_err(|_| error(format!("{file}: not a file name")))?;
        let program =
            Program(nvrtc::create_program(&text, Some(&name)).map_err(|e| error(format!("{file}.cu: {e}")))?);
        // SAFETY: the program is alive until the end of this function.
        let compiled = unsafe { nvrtc::compile_program(program.0, options) };
        if let Err(e) = compiled {
            // SAFETY: as above.
            let log = unsafe { nvrtc::get_program_log(program.0) }.unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|c| c as u8).filter(|&c| c != 0).collect();
            return Err(error(format!("{file}.cu: {e}: {}", String::from_utf8_lossy(&log))));
        }
        let mut size = 0;
        // SAFETY: the program was compiled for a real architecture, so it has machine code.
        unsafe { sys::nvrtcGetCUBINSize(program.0, &mut size) }
            .result()
            .map_err(|e| error(format!("{file}.cu: {e}")))?;
        let mut cubin = vec![0u8; size];
        // SAFETY: `cubin` is as long as NVRTC asked.
        unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) }
            .result()
            .map_err(|e| error(format!("{file}.cu: {e}")))?;
        Ok(cubin)
    }
}

struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by `create_program`, destroyed once.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

fn supported_architectures() -> Result<Vec<i32>> {
    let mut count = 0;
    // SAFETY: the library is open and the out-pointer is valid.
    unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) }.result().map_err(|e| error(e.to_string()))?;
    let mut architectures = vec![0; count.max(0) as usize];
    // SAFETY: the vector has room for as many numbers as NVRTC counted.
    unsafe { sys::nvrtcGetSupportedArchs(architectures.as_mut_ptr()) }
        .result()
        .map_err(|e| error(e.to_string()))?;
    Ok(architectures)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A cache entry's content, unless it is absent or damaged.
pub(crate) fn read_entry(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let body = bytes.len().checked_sub(32)?;
    let sound = Sha256::digest(&bytes[..body]).as_slice() == &bytes[body..];
    bytes.truncate(body);
    sound.then_some(bytes)
}

/// Writes a cache entry whole or not at all.
pub(crate) fn write_entry(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.write_all(&Sha256::digest(content))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/entry.cubin");
        assert_eq!(read_entry(&path), None);
        write_entry(&path, b"machine code").unwrap();
        assert_eq!(read_entry(&path).as_deref(), Some(b"machine code".as_slice()));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read_entry(&path), None);
        std::fs::write(&path, &bytes[..7]).unwrap();
        assert_eq!(read_entry(&path), None);
    }

    #[test]
    fn newer_architectures_use_their_own_instructions() {
        assert_eq!(architecture_name((7, 5)), "sm_75");
        assert_eq!(architecture_name((9, 0)), "sm_90a");
        assert_eq!(architecture_name((12, 0)), "sm_120a");
    }

    /// Runs where NVRTC is installed; a card is not needed.
    #[test]
    fn a_damaged_entry_is_built_again() {
        let Ok(mut compiler) = Compiler::new((9, 0)) else {
            eprintln!("skipped: no NVRTC here");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        compiler.cache = Some(folder.path().into());
        let source = "extern \"C\" __global__ void nothing() {}";
        let first = compiler.cubin("nothing", source, "f32").unwrap();
        let entry = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        std::fs::write(&entry, b"damaged").unwrap();
        assert_eq!(compiler.cubin("nothing", source, "f32").unwrap(), first);
        assert_eq!(read_entry(&entry), Some(first));
    }

    #[test]
    fn a_wrong_source_is_an_error_with_its_line() {
        let Ok(compiler) = Compiler::new((9, 0)) else {
            eprintln!("skipped: no NVRTC here");
            return;
        };
        let error =
            compiler.compile("wrong", "\n__global__ void f() { nonsense; }", &options("sm_90a", "f32"));
        assert!(error.unwrap_err().to_string().contains("wrong.cu(2)"));
    }
}
