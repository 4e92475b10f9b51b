//! safetensors headers.

#![no_main]

use std::path::Path;

use eyas_checkpoint::SafetensorsFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = SafetensorsFile::parse(Path::new("fuzz.safetensors"), bytes) {
        for (info, range) in file.tensors {
            assert_eq!(bytes[range].len(), info.byte_len());
        }
    }
});
