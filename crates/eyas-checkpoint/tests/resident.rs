//! Streaming a large tensor leaves little of the file in resident memory.

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;

use eyas_checkpoint::{Checkpoint, TensorDtype, TensorView, write_safetensors};

/// Resident pages of mapped files, in bytes.
fn resident_files() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssFile:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn a_tensor_read_by_rows_does_not_stay() {
    const ROWS: usize = 64 << 10;
    const COLUMNS: usize = 512;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let data = vec![0x3c; ROWS * COLUMNS * 2];
    let tensor = TensorView { name: "w", shape: &[ROWS, COLUMNS], dtype: TensorDtype::BF16, data: &data };
    write_safetensors(&path, &[tensor], &BTreeMap::new()).unwrap();
    drop(data);

    let checkpoint = Checkpoint::open(&path).unwrap();
    let mut block = Vec::new();
    let before = resident_files();
    let mut most = 0;
    for start in (0..ROWS).step_by(1024) {
        checkpoint.read_rows_f32("w", start..start + 1024, &mut block).unwrap();
        most = most.max(resident_files().saturating_sub(before));
    }
    // 64 MiB were read.
    assert!(most < 8 << 20, "{most} bytes stayed");

    checkpoint.read_f32("w", &mut block).unwrap();
    assert!(resident_files().saturating_sub(before) < 8 << 20);
    assert!(checkpoint.read_bytes("w").unwrap().iter().all(|&byte| byte == 0x3c));
    assert!(resident_files().saturating_sub(before) > 32 << 20, "the test cannot see resident pages");
    checkpoint.release("w").unwrap();
    assert!(resident_files().saturating_sub(before) < 8 << 20);
}
