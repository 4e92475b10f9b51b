//! From what a person types to a folder or file on this machine.

use std::path::{Path, PathBuf};

use crate::demo::{DEMO_MODEL, demo_model};
use crate::{Error, Result};

/// Finds a model: a path, the demo's model by its name, or a hub name (`owner/name`) whose files the Hugging Face
/// cache holds.
///
/// # Errors
/// When it is nowhere; the message says where it was looked for.
pub fn locate(name: &str, fetching: impl FnOnce()) -> Result<PathBuf> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.into());
    }
    if name == DEMO_MODEL {
        return demo_model(fetching);
    }
    let looks_like_hub_name = name.split('/').count() == 2
        && name.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
        && !name.contains('\\');
    if !looks_like_hub_name {
        return Err(Error::NotFound(format!(
            "{name}: there is no such folder or file. Give a model folder, a GGUF file, `{DEMO_MODEL}`, or the \
             owner/name of a model in the Hugging Face cache"
        )));
    }
    let cache = hugging_face_cache();
    if let Some(found) = cache.as_deref().and_then(|cache| snapshot(cache, name)) {
        return Ok(found);
    }
    let place = cache.map_or_else(|| "the Hugging Face cache".into(), |cache| cache.display().to_string());
    Err(Error::NotFound(format!(
        "{name}: neither a folder here nor in {place}. Fetch it first (`hf download {name}`), or give --model a folder"
    )))
}

/// Where Hugging Face's own tools keep downloads.
fn hugging_face_cache() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("HF_HUB_CACHE")
        .or_else(|| var("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| directories::BaseDirs::new().map(|dirs| dirs.home_dir().join(".cache/huggingface/hub")))
}

/// The folder of a model's `main` revision, or of its only one.
fn snapshot(cache: &Path, name: &str) -> Option<PathBuf> {
    let model = cache.join(format!("models--{}", name.replace('/', "--")));
    let snapshots = model.join("snapshots");
    if let Ok(revision) = std::fs::read_to_string(model.join("refs/main")) {
        let folder = snapshots.join(revision.trim());
        if folder.is_dir() {
            return Some(folder);
        }
    }
    let mut folders = std::fs::read_dir(snapshots).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let only = folders.next()?;
    folders.next().is_none().then_some(only)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_snapshot_is_found_by_its_revision() {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--tiiuae--falcon-7b");
        for revision in ["aaa", "bbb"] {
            std::fs::create_dir_all(model.join("snapshots").join(revision)).unwrap();
        }
        assert_eq!(snapshot(cache.path(), "tiiuae/falcon-7b"), None);
        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::write(model.join("refs/main"), "bbb\n").unwrap();
        assert_eq!(snapshot(cache.path(), "tiiuae/falcon-7b"), Some(model.join("snapshots/bbb")));
    }

    #[test]
    fn what_is_nowhere_is_reported_with_what_to_do() {
        let message = locate("nobody/nothing-at-all", || ()).unwrap_err().to_string();
        assert!(message.contains("hf download nobody/nothing-at-all"), "{message}");
        let message = locate("./no/such/folder", || ()).unwrap_err().to_string();
        assert!(message.contains("no such folder"), "{message}");
    }
}
