//! What a person reads when the files are not right: the file, the tensor or key, what is wrong, what to do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use eyas_checkpoint::{Checkpoint, TensorDtype, TensorView, write_safetensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The message with which opening `bytes` as a file called `name` fails.
fn refusal(name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let message = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(message.contains(path.to_str().unwrap()), "no path in: {message}");
    message
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

/// A safetensors file with this header and this much data.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

/// A GGUF file: `general.architecture` and one tensor `w` of 4 rows of 32 at offset 0, as changed by `edit`.
fn gguf(edit: impl Fn(&mut GgufParts)) -> Vec<u8> {
    let mut parts = GgufParts {
        version: 3,
        keys: vec![("general.architecture".into(), 8, [5u64.to_le_bytes().as_slice(), b"llama"].concat())],
        tensors: vec![("w".into(), vec![32, 4], 8, 0)],
        tensor_count: None,
        data: 4 * 34,
    };
    edit(&mut parts);
    let mut file = b"GGUF".to_vec();
    let string = |file: &mut Vec<u8>, text: &str| {
        file.extend((text.len() as u64).to_le_bytes());
        file.extend(text.as_bytes());
    };
    file.extend(parts.version.to_le_bytes());
    file.extend(parts.tensor_count.unwrap_or(parts.tensors.len() as u64).to_le_bytes());
    file.extend((parts.keys.len() as u64).to_le_bytes());
    for (key, kind, value) in &parts.keys {
        string(&mut file, key);
        file.extend(kind.to_le_bytes());
        file.extend(value);
    }
    for (name, axes, kind, offset) in &parts.tensors {
        string(&mut file, name);
        file.extend((axes.len() as u32).to_le_bytes());
        axes.iter().for_each(|axis| file.extend(axis.to_le_bytes()));
        file.extend(kind.to_le_bytes());
        file.extend(offset.to_le_bytes());
    }
    file.resize(file.len().next_multiple_of(32) + parts.data, 0);
    file
}

struct GgufParts {
    version: u32,
    keys: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    tensor_count: Option<u64>,
    data: usize,
}

#[test]
fn downloads_gone_wrong() {
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4937\n";
    assert_says(&refusal("model.safetensors", lfs), &["Git LFS pointer", "git lfs pull"]);
    assert_says(&refusal("pytorch_model.bin", lfs), &["Git LFS pointer"]);
    assert_says(&refusal("m.gguf", b"\n<!DOCTYPE html>\n<html>"), &["a web page", "download again"]);
    assert_says(&refusal("m.safetensors", b""), &["the file is empty"]);
    assert_says(&refusal("m.gguf", b"{\"error\": \"not found\"}"), &["text that begins `{\"error\""]);
    assert_says(&refusal("weights.dat", &[1, 2, 3, 0, 9]), &["an unknown format", ".gguf"]);
    assert_says(&refusal("m.gguf", &[0; 64]), &["does not begin with `GGUF`"]);
}

#[test]
fn folders_without_weights() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert_says(&open(), &["no model weights here", "model.safetensors.index.json", "*.gguf"]);
    std::fs::write(folder.path().join("model-00001-of-00002.safetensors"), b"x").unwrap();
    assert_says(&open(), &["model-00001-of-00002.safetensors but no model.safetensors.index.json"]);
    std::fs::write(folder.path().join("adapter_config.json"), b"{}").unwrap();
    assert_says(&open(), &["LoRA adapter"]);
    for name in ["a.gguf", "b.gguf"] {
        std::fs::copy(fixture("v3.gguf"), folder.path().join(name)).unwrap();
    }
    assert_says(&open(), &["several GGUF files", "a.gguf, b.gguf"]);
    std::fs::remove_file(folder.path().join("b.gguf")).unwrap();
    assert!(Checkpoint::open(folder.path()).unwrap().gguf_metadata().is_some());
    let message = Checkpoint::open(folder.path().join("nowhere")).unwrap_err().to_string();
    assert_says(&message, &["nowhere: cannot open it", "check the path"]);
}

/// A copy of a sharded fixture, and its index as JSON.
fn sharded() -> (tempfile::TempDir, PathBuf, serde_json::Value) {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("sharded-safetensors")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let index = folder.path().join("model.safetensors.index.json");
    let json = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    (folder, index, json)
}

#[test]
fn a_missing_shard() {
    let (folder, _, _) = sharded();
    std::fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert_says(
        &message,
        &[
            "shard `model-00002-of-00002.safetensors`",
            "model.safetensors.index.json",
            "is missing",
            "download it",
        ],
    );
}

#[test]
fn an_index_that_does_not_fit_its_shards() {
    let (folder, index, mut json) = sharded();
    let mut open = |shard: &str| {
        json["weight_map"]["extra.weight"] = shard.into();
        std::fs::write(&index, json.to_string()).unwrap();
        Checkpoint::open(folder.path()).unwrap_err().to_string()
    };
    let message = open("model-00001-of-00002.safetensors");
    assert_says(&message, &["model-00001-of-00002.safetensors: tensor `extra.weight`", "is not in it"]);
    for outside in ["../model.safetensors", "/etc/passwd", ""] {
        assert_says(&open(outside), &["`extra.weight`", "not a file of the same folder"]);
    }
    std::fs::write(&index, b"{\"weight_map\": [").unwrap();
    assert_says(&Checkpoint::open(folder.path()).unwrap_err().to_string(), &["the index is not valid"]);
}

#[test]
fn the_index_decides_between_two_shards() {
    let (folder, index, mut json) = sharded();
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    std::fs::copy(folder.path().join(first), folder.path().join("spare.safetensors")).unwrap();
    json["weight_map"]["model.embed.weight"] = "spare.safetensors".into();
    std::fs::write(&index, json.to_string()).unwrap();
    assert!(Checkpoint::open(folder.path()).is_ok());
    // The same tensor in two shards, with no word in the index on which one is meant.
    json["weight_map"]["model.norm.weight"] = second.into();
    json["weight_map"].as_object_mut().unwrap().remove("model.embed.weight");
    json["weight_map"]["model.layers.0.weight"] = "spare.safetensors".into();
    json["weight_map"]["model.layers.1.weight"] = first.into();
    std::fs::write(&index, json.to_string()).unwrap();
    assert_says(
        &Checkpoint::open(folder.path()).unwrap_err().to_string(),
        &["`model.embed.weight` is also in"],
    );
}

#[test]
fn safetensors_that_lie() {
    let entry = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let refuse = |entries: &[String], data| {
        refusal("m.safetensors", &safetensors(&format!("{{{}}}", entries.join(",")), data))
    };
    let a = entry("a", "F32", "[2]", 0, 8);
    assert_says(&refuse(std::slice::from_ref(&a), 7), &["describes 8 bytes", "7 follow", "incomplete"]);
    assert_says(&refuse(std::slice::from_ref(&a), 9), &["bytes follow the last tensor"]);
    assert_says(
        &refuse(&[a.clone(), entry("b", "F32", "[2]", 4, 12)], 12),
        &["`b` starts at offset 4", "ends at 8"],
    );
    assert_says(&refuse(&[a.clone(), entry("b", "F32", "[2]", 12, 20)], 20), &["`b` starts at offset 12"]);
    assert_says(&refuse(&[a.clone(), a.clone()], 8), &["`a` appears twice"]);
    assert_says(&refuse(&[entry("a", "F32", "[3]", 0, 8)], 8), &["`a` has data_offsets [0, 8]", "takes 12"]);
    assert_says(&refuse(&[entry("a", "F32", "[2]", 8, 0)], 8), &["`a` has data_offsets [8, 0]"]);
    let huge = "[4294967296,4294967296]";
    assert_says(&refuse(&[entry("a", "F32", huge, 0, 8)], 8), &["`a` has the impossible shape"]);
    assert_says(&refuse(&[entry("a", "F32", "[0,18446744073709551615,2]", 0, 0)], 0), &["impossible shape"]);
    assert_says(&refuse(&[entry("a", "F8_E4M3", "[8]", 0, 8)], 8), &["`a` has type F8_E4M3", "BF16"]);
    assert_says(&refuse(&[entry("a", "F31", "[2]", 0, 8)], 8), &["tensor `a`", "F31"]);
    assert_says(&refuse(&[entry("a", "F32", "[-2]", 0, 8)], 8), &["tensor `a`", "-2"]);
    assert_says(&refuse(&[], 0), &["holds no tensors"]);
    assert_says(&refusal("m.safetensors", &[255; 16]), &["claim a header of"]);
    assert_says(&refusal("m.safetensors", &[16, 0, 0, 0, 0, 0, 0, 0, b'{']), &["should have 16 bytes"]);
    assert_says(&refusal("m.safetensors", &[1, 0, 0]), &["only 3 bytes"]);
}

#[test]
fn gguf_that_lies() {
    let refuse = |edit: &dyn Fn(&mut GgufParts)| refusal("m.gguf", &gguf(edit));
    assert_says(&refuse(&|p| p.version = 1), &["version 1 is not supported", "convert"]);
    assert_says(&refuse(&|p| p.version = 3u32.swap_bytes()), &["big endian"]);
    assert_says(&refuse(&|p| p.tensor_count = Some(u64::MAX)), &["claims 18446744073709551615 entries"]);
    assert_says(&refuse(&|p| p.tensors[0].2 = 14), &["`w` has type Q6_K", "Q8_0, Q4_0, Q4_1"]);
    assert_says(&refuse(&|p| p.tensors[0].2 = 77), &["number 77"]);
    assert_says(&refuse(&|p| p.tensors[0].1 = vec![33, 4]), &["`w` has rows of 33", "Q8_0 blocks of 32"]);
    assert_says(&refuse(&|p| p.tensors[0].1 = vec![1 << 40, 1 << 40]), &["`w` has the impossible shape"]);
    assert_says(&refuse(&|p| p.tensors[0].1 = vec![1; 5]), &["`w` claims 5 axes"]);
    assert_says(&refuse(&|p| p.tensors[0].3 = 7), &["`w` starts at offset 7", "alignment 32"]);
    assert_says(&refuse(&|p| p.tensors[0].3 = u64::MAX - 31), &["`w` wants 136 bytes", "incomplete"]);
    assert_says(&refuse(&|p| p.data = 135), &["`w` wants 136 bytes", "incomplete"]);
    assert_says(&refuse(&|p| p.tensors.push(p.tensors[0].clone())), &["tensor `w` appears twice"]);
    assert_says(&refuse(&|p| p.tensors.push(("v".into(), vec![32], 8, 32))), &["`w` and `v` overlap"]);
    assert_says(&refuse(&|p| p.keys.push(p.keys[0].clone())), &["`general.architecture` appears twice"]);
    assert_says(&refuse(&|p| p.keys[0].1 = 13), &["`general.architecture` has the unknown type 13"]);
    let key = |kind: u32, value: &[u8]| ("k".to_owned(), kind, value.to_vec());
    assert_says(&refuse(&|p| p.keys.push(key(7, &[2]))), &["key `k` should be a boolean", "is 2"]);
    assert_says(
        &refuse(&|p| p.keys.push(key(8, &u64::MAX.to_le_bytes()))),
        &["file ends inside metadata key `k`"],
    );
    let invalid = [&1u64.to_le_bytes()[..], &[0xff]].concat();
    assert_says(&refuse(&|p| p.keys.push(key(8, &invalid))), &["key `k`", "not UTF-8"]);
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    assert_says(
        &refuse(&|p| p.keys.push(key(9, &array(6, 1 << 60)))),
        &["key `k` claims 1152921504606846976"],
    );
    let nested = array(9, 1).repeat(9);
    assert_says(&refuse(&|p| p.keys.push(key(9, &nested))), &["key `k` nests arrays more than 8 deep"]);
    let alignment = |value: u32| ("general.alignment".to_owned(), 4, value.to_le_bytes().to_vec());
    assert_says(&refuse(&|p| p.keys.push(alignment(0))), &["general.alignment", "power of two but is 0"]);
    let split = ("split.count".to_owned(), 2, 3u16.to_le_bytes().to_vec());
    assert_says(&refuse(&|p| p.keys.push(split.clone())), &["one of 3 parts", "llama-gguf-split --merge"]);
    assert_says(&refuse(&|p| p.tensors.clear()), &["holds no tensors"]);
}

#[test]
fn gguf_keys_of_another_kind() {
    let checkpoint = Checkpoint::open(fixture("v3.gguf")).unwrap();
    let metadata = checkpoint.gguf_metadata().unwrap();
    let path = fixture("v3.gguf").display().to_string();
    let missing = metadata.u32("llama.block_count").unwrap_err().to_string();
    assert_says(&missing, &[&path, "no metadata key `llama.block_count`", "convert"]);
    let wrong = metadata.u32("test.int8").unwrap_err().to_string();
    assert_says(&wrong, &[&path, "`test.int8` should be an integer from 0", "is the integer -100"]);
    assert_says(&metadata.u32("test.uint64").unwrap_err().to_string(), &["the integer 9223372036854775808"]);
    assert_says(&metadata.f32s("test.strings").unwrap_err().to_string(), &["is an array of strings"]);
    assert_says(
        &metadata.str("test.bool").unwrap_err().to_string(),
        &["should be a string but is the boolean true"],
    );
}

#[test]
fn bin_files_that_are_not_whole() {
    let whole = std::fs::read(fixture("views.bin")).unwrap();
    assert_says(&refusal("pytorch_model.bin", &whole[..whole.len() / 2]), &["the checkpoint cannot be read"]);
    assert_says(&refusal("pytorch_model.bin", &[0; 40]), &["not a PyTorch checkpoint"]);
}

#[test]
fn reads_that_cannot_be() {
    let checkpoint = Checkpoint::open(fixture("dtypes.safetensors")).unwrap();
    let mut out = Vec::new();
    let message = checkpoint.read_f32("special.BF17", &mut out).unwrap_err().to_string();
    assert_says(
        &message,
        &["dtypes.safetensors: no tensor `special.BF17`", "the nearest name is `special.BF16`"],
    );
    let message = checkpoint.read_f32("lm_head", &mut out).unwrap_err().to_string();
    assert_says(&message, &["the 15 tensors there have quite other names"]);
    let message = checkpoint.read_f32("special.U8", &mut out).unwrap_err().to_string();
    assert_says(&message, &["`special.U8`: it holds U8, not real numbers", "read its bytes"]);
    let message = checkpoint.read_rows_f32("special.F32", 1..3, &mut out).unwrap_err().to_string();
    assert_says(&message, &["`special.F32`: rows 1..3 were asked for, but it has 2"]);
    #[expect(clippy::reversed_empty_ranges)]
    let message = checkpoint.read_rows_f32("special.F32", 2..1, &mut out).unwrap_err().to_string();
    assert_says(&message, &["rows 2..1"]);
}

#[test]
fn tensors_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    let write = |tensors: &[TensorView]| {
        let message = write_safetensors(&path, tensors, &BTreeMap::new()).unwrap_err().to_string();
        assert!(!path.exists());
        message
    };
    let tensor = TensorView { name: "w", shape: &[2], dtype: TensorDtype::F16, data: &[0; 4] };
    assert_says(&write(&[tensor, tensor]), &["out.safetensors: cannot write tensor `w`", "given twice"]);
    assert_says(&write(&[TensorView { shape: &[3], ..tensor }]), &["4 bytes of data do not fit F16 [3]"]);
    assert_says(
        &write(&[TensorView { dtype: TensorDtype::Q8_0, ..tensor }]),
        &["safetensors has no type Q8_0"],
    );
    assert_says(&write(&[TensorView { name: "__metadata__", ..tensor }]), &["the name is reserved"]);
}
