//! GGUF headers: metadata, tensor descriptions, offsets.

#![no_main]

use std::path::Path;

use eyas_checkpoint::gguf::GgufFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = GgufFile::parse(Path::new("fuzz.gguf"), bytes) {
        for (info, range) in file.tensors {
            assert_eq!(bytes[range].len(), info.byte_len());
        }
    }
});
