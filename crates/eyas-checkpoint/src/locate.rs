//! From a path to the weight files behind it: a single file, or what a Hugging Face folder keeps.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::layout::{ADAPTER_CONFIG, INDEX_ENDING, WEIGHTS};
use crate::{Error, Format, Result};

/// The files of a checkpoint.
pub(crate) struct Located {
    /// The weight files.
    pub(crate) files: Vec<PathBuf>,
    /// The index that lists them, if they are shards.
    pub(crate) index: Option<Index>,
}

/// A `*.index.json`: which shard holds which tensor.
pub(crate) struct Index {
    pub(crate) path: PathBuf,
    /// Tensor name to the shard's place in [`Located::files`].
    pub(crate) weight_map: BTreeMap<String, usize>,
}

/// Finds the weight files behind `path`.
pub(crate) fn locate(path: &Path) -> Result<Located> {
    let kind = std::fs::metadata(path)
        .map_err(|e| Error::io(path, "open it", "check the path to the model's folder or file", e))?;
    if !kind.is_dir() {
        return file_or_index(path);
    }
    for name in WEIGHTS {
        let candidate = path.join(name);
        if candidate.exists() {
            return file_or_index(&candidate);
        }
    }
    let gguf = files_ending(path, ".gguf")?;
    match gguf.as_slice() {
        [] => Err(no_weights(path)?),
        [one] => file_or_index(&path.join(one)),
        several => Err(Error::NoWeights {
            folder: path.to_path_buf(),
            advice: format!(
                "there are several GGUF files, give the path of one of them: {}",
                several.join(", ")
            ),
        }),
    }
}

fn file_or_index(path: &Path) -> Result<Located> {
    if path.to_string_lossy().ends_with(INDEX_ENDING) {
        return read_index(path);
    }
    Ok(Located { files: vec![path.to_path_buf()], index: None })
}

fn no_weights(folder: &Path) -> Result<Error> {
    let advice = if folder.join(ADAPTER_CONFIG).exists() {
        "this is a LoRA adapter: give its base model here, and the adapter as the adapter".to_owned()
    } else {
        let shards = files_ending(folder, ".safetensors")?;
        if shards.is_empty() {
            format!("looked for {} and *.gguf", WEIGHTS.join(", "))
        } else {
            format!(
                "there is {} but no model.safetensors.index.json: download the index too, or give the path of the file",
                shards.join(", ")
            )
        }
    };
    Ok(Error::NoWeights { folder: folder.to_path_buf(), advice })
}

/// Names in `folder` with this ending, sorted.
fn files_ending(folder: &Path, ending: &str) -> Result<Vec<String>> {
    let refused = |e| Error::io(folder, "list the folder", "check that you may read it", e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(refused)? {
        let name = entry.map_err(refused)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(ending) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn read_index(path: &Path) -> Result<Located> {
    #[derive(Deserialize)]
    struct IndexJson {
        weight_map: BTreeMap<String, String>,
    }

    let text = std::fs::read(path)
        .map_err(|e| Error::io(path, "read the index", "check that you may read it", e))?;
    let json: IndexJson = serde_json::from_slice(&text).map_err(|e| {
        stand_in(path, &text).unwrap_or_else(|| Error::damaged(path, format!("the index is not valid: {e}")))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut shards = BTreeMap::new();
    for (tensor, shard) in &json.weight_map {
        let inside = Path::new(shard).components().all(|part| matches!(part, Component::Normal(_)));
        if shard.is_empty() || !inside {
            return Err(Error::damaged(
                path,
                format!(
                    "the index places tensor `{tensor}` in `{shard}`, which is not a file of the same folder"
                ),
            ));
        }
        if !shards.contains_key(shard.as_str()) && !folder.join(shard).exists() {
            return Err(Error::MissingShard {
                folder: folder.to_path_buf(),
                shard: shard.clone(),
                index: path.to_path_buf(),
                tensor: tensor.clone(),
            });
        }
        shards.insert(shard.as_str(), 0);
    }
    for (place, slot) in shards.values_mut().enumerate() {
        *slot = place;
    }
    let files = shards.keys().map(|shard| folder.join(shard)).collect();
    let weight_map =
        json.weight_map.iter().map(|(tensor, shard)| (tensor.clone(), shards[shard.as_str()])).collect();
    Ok(Located { files, index: Some(Index { path: path.to_path_buf(), weight_map }) })
}

/// Tells a file's format from its first bytes, then from its name.
pub(crate) fn detect(path: &Path) -> Result<Format> {
    let refused = |e| Error::io(path, "read the file", "check that you may read it", e);
    let mut head = Vec::with_capacity(256);
    File::open(path).map_err(refused)?.take(256).read_to_end(&mut head).map_err(refused)?;
    if let Some(error) = stand_in(path, &head).or_else(|| text(path, &head)) {
        return Err(error);
    }
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    match ending.as_str() {
        _ if head.starts_with(b"GGUF") => Ok(Format::Gguf),
        _ if head.starts_with(b"PK\x03\x04") => Ok(Format::Pytorch),
        "safetensors" => Ok(Format::Safetensors),
        "bin" | "pt" | "pth" => Ok(Format::Pytorch),
        "gguf" => Ok(Format::Gguf),
        _ if head.get(8) == Some(&b'{') => Ok(Format::Safetensors),
        _ => Err(Error::NotWeights {
            path: path.to_path_buf(),
            found: "an unknown format".into(),
            advice: "give a .safetensors, .bin or .gguf file, or a folder that holds one",
        }),
    }
}

/// An error for the files that take the place of others when a download goes wrong.
fn stand_in(path: &Path, head: &[u8]) -> Option<Error> {
    let start = head.trim_ascii_start();
    let begins = |text: &[u8]| start.get(..text.len()).is_some_and(|s| s.eq_ignore_ascii_case(text));
    let (found, advice) = if head.is_empty() {
        ("the file is empty", "download it again")
    } else if begins(b"version https://git-lfs") {
        ("a Git LFS pointer, not the file itself", "run `git lfs pull` in that folder")
    } else if begins(b"<!doctype html") || begins(b"<html") || begins(b"<?xml") {
        (
            "a web page",
            "the download went to an error or login page: check the address and your access, then download again",
        )
    } else {
        return None;
    };
    Some(Error::NotWeights { path: path.to_path_buf(), found: found.into(), advice })
}

/// An error for any other text, such as a server's error in JSON; weights are binary from the first bytes on.
fn text(path: &Path, head: &[u8]) -> Option<Error> {
    let printable = |b: &u8| matches!(b, b' '..=b'~' | b'\t' | b'\n' | b'\r');
    if head.len() < 8 || !head.iter().take(64).all(printable) {
        return None;
    }
    let shown: String = head.iter().take(60).map(|&b| if b < b' ' { ' ' } else { b as char }).collect();
    Some(Error::NotWeights {
        path: path.to_path_buf(),
        found: format!("text that begins `{}`", shown.trim()),
        advice: "download the file again",
    })
}
