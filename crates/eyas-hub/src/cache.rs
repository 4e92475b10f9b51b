//! The folder that eyas' own downloads are kept in.

use std::path::PathBuf;

use crate::{Error, Result};

/// The folder that eyas' own downloads are kept in: `EYAS_CACHE`, or `eyas` in the system's folder for caches. What
/// comes from the hub is in Hugging Face's cache instead.
///
/// # Errors
/// When the system names none.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("EYAS_CACHE").filter(|folder| !folder.is_empty()) {
        return Ok(folder.into());
    }
    let folders = directories::ProjectDirs::from("", "", "eyas").ok_or(Error::NoCache)?;
    Ok(folders.cache_dir().to_path_buf())
}
