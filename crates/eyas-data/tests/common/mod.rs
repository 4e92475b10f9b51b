//! What the tests against golden files share.

#![allow(dead_code)]

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The path of a golden file.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A golden file's JSON.
pub fn json(name: &str) -> Value {
    read_json(&golden(name))
}

/// A file's JSON.
pub fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A list of ids.
pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The turns of a list of messages.
pub fn turns(value: &Value) -> Vec<eyas_data::Turn> {
    let turn = |m: &Value| {
        let role = eyas_data::Role::parse(m["role"].as_str().unwrap()).unwrap();
        eyas_data::Turn::new(role, m["content"].as_str().unwrap())
    };
    value.as_array().unwrap().iter().map(turn).collect()
}
