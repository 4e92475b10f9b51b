//! PyTorch files as a whole: container, pickle, storages. Through a file, because the reader seeks in one.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use eyas_checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));
static PATH: LazyLock<PathBuf> = LazyLock::new(|| FOLDER.path().join("fuzz.bin"));

fuzz_target!(|bytes: &[u8]| {
    // The other formats have their own targets, and a mapped file must not be shortened.
    if bytes.starts_with(b"GGUF") {
        return;
    }
    std::fs::write(&*PATH, bytes).expect("a temporary file");
    let Ok(checkpoint) = Checkpoint::open(&*PATH) else { return };
    let mut values = Vec::new();
    for info in checkpoint.tensors() {
        if let Ok(bytes) = checkpoint.read_bytes(&info.name) {
            assert_eq!(bytes.len(), info.byte_len());
        }
        if info.dtype.is_float() && checkpoint.read_f32(&info.name, &mut values).is_ok() {
            assert_eq!(values.len(), info.elements());
        }
    }
});
