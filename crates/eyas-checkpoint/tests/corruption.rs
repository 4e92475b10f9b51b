//! Damaged files never panic and never make the readers ask for more memory than the file justifies.
//!
//! These are the entry points of the fuzz targets, run over mutations of the fixtures.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};

use eyas_checkpoint::gguf::GgufFile;
use eyas_checkpoint::{Checkpoint, SafetensorsFile};
use proptest::prelude::*;

/// Memory held by a parsed header, for each byte of the file.
const MEMORY_PER_BYTE: usize = 64;
/// Memory that does not depend on the file: buffers of readers, the text of an error.
const MEMORY_AT_LEAST: usize = 1 << 20;

thread_local! {
    /// Bytes that this thread holds, and the most that it held.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

fn count(change: isize) {
    // A thread that is ending has no counter left.
    let _ = HELD.try_with(|held| {
        let now = held.get().0 + change;
        held.set((now, held.get().1.max(now)));
    });
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` and checks that its memory stays in proportion to a file of `len` bytes.
#[track_caller]
fn bounded<T>(len: usize, work: impl FnOnce() -> T) -> T {
    let before = HELD.get().0;
    HELD.set((before, before));
    let result = work();
    let peak = (HELD.get().1 - before) as usize;
    let allowed = MEMORY_AT_LEAST + MEMORY_PER_BYTE * len;
    assert!(peak <= allowed, "{peak} bytes of memory for a file of {len}, more than {allowed}");
    result
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

/// Parses bytes as a GGUF file; says whether they passed.
fn gguf(bytes: &[u8]) -> bool {
    bounded(bytes.len(), || match GgufFile::parse(Path::new("mutated.gguf"), bytes) {
        Ok(file) => {
            assert!(file.tensors.iter().all(|(info, range)| bytes[range.clone()].len() == info.byte_len()));
            true
        }
        Err(_) => false,
    })
}

/// Parses bytes as a safetensors file; says whether they passed.
fn safetensors(bytes: &[u8]) -> bool {
    bounded(bytes.len(), || match SafetensorsFile::parse(Path::new("mutated.safetensors"), bytes) {
        Ok(file) => {
            assert!(file.tensors.iter().all(|(info, range)| bytes[range.clone()].len() == info.byte_len()));
            true
        }
        Err(_) => false,
    })
}

/// Opens bytes as a file of this name and reads every tensor; says whether all of it passed.
fn whole(path: &Path, bytes: &[u8]) -> bool {
    // Afresh: a file that was mapped must not be shortened.
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
    bounded(bytes.len(), || {
        let Ok(checkpoint) = Checkpoint::open(path) else { return false };
        let mut values = Vec::new();
        let mut passed = true;
        for info in checkpoint.tensors() {
            passed &= checkpoint.read_bytes(&info.name).is_ok();
            if info.dtype.is_float() {
                passed &= checkpoint.read_f32(&info.name, &mut values).is_ok();
            }
        }
        passed
    })
}

#[test]
fn gguf_cut_anywhere_is_refused() {
    for name in ["v3.gguf", "v2-aligned.gguf"] {
        let bytes = fixture(name);
        assert!(gguf(&bytes));
        // The last tensor ends before the padding that closes the file.
        let file = GgufFile::parse(Path::new(name), &bytes).unwrap();
        let end = file.tensors.iter().map(|(_, range)| range.end).max().unwrap();
        for len in 0..end {
            assert!(!gguf(&bytes[..len]), "{name} cut to {len} bytes passed");
        }
    }
}

#[test]
fn safetensors_cut_anywhere_is_refused() {
    let bytes = fixture("dtypes.safetensors");
    assert!(safetensors(&bytes));
    for len in 0..bytes.len() {
        assert!(!safetensors(&bytes[..len]), "cut to {len} bytes passed");
    }
}

#[test]
fn bin_cut_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["views.bin", "legacy.bin"] {
        let bytes = fixture(name);
        let path = folder.path().join(name);
        assert!(whole(&path, &bytes));
        for len in 0..bytes.len() {
            assert!(!whole(&path, &bytes[..len]), "{name} cut to {len} bytes passed");
        }
    }
}

/// One change to a file.
#[derive(Debug, Clone)]
enum Edit {
    Byte(usize, u8),
    Bit(usize, u8),
    /// A length, count or offset that a parser may trust.
    Number(usize, u64),
    Remove(usize, usize),
    Repeat(usize, usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let place = 0..1usize << 20;
    let number = prop_oneof![
        Just(u64::MAX),
        Just(i64::MAX as u64),
        Just(1 << 32),
        Just((1 << 61) + 1),
        Just(u64::from(u32::MAX)),
        0..300u64
    ];
    let edit = prop_oneof![
        4 => (place.clone(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        4 => (place.clone(), 0..8u8).prop_map(|(at, bit)| Edit::Bit(at, bit)),
        4 => (place.clone(), number).prop_map(|(at, number)| Edit::Number(at, number)),
        1 => (place.clone(), 1..64usize).prop_map(|(at, len)| Edit::Remove(at, len)),
        1 => (place, 1..64usize).prop_map(|(at, len)| Edit::Repeat(at, len)),
    ];
    prop::collection::vec(edit, 1..6)
}

fn apply(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let len = bytes.len();
        if len == 0 {
            break;
        }
        match *edit {
            Edit::Byte(at, byte) => bytes[at % len] = byte,
            Edit::Bit(at, bit) => bytes[at % len] ^= 1 << bit,
            Edit::Number(at, number) => {
                let at = at % len;
                for (slot, byte) in bytes[at..].iter_mut().zip(number.to_le_bytes()) {
                    *slot = byte;
                }
            }
            Edit::Remove(at, count) => drop(bytes.drain(at % len..(at % len + count).min(len))),
            Edit::Repeat(at, count) => {
                let part = bytes[at % len..(at % len + count).min(len)].to_vec();
                bytes.splice(at % len..at % len, part);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_gguf(edits in edits(), aligned: bool) {
        gguf(&apply(fixture(if aligned { "v2-aligned.gguf" } else { "v3.gguf" }), &edits));
    }

    #[test]
    fn mutated_safetensors(edits in edits()) {
        safetensors(&apply(fixture("dtypes.safetensors"), &edits));
    }

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        gguf(&bytes);
        gguf(&[b"GGUF\x03\0\0\0", bytes.as_slice()].concat());
        safetensors(&bytes);
    }
}

fn mutated_whole(name: &str, edits: &[Edit], folder: &Path) {
    let path: PathBuf = folder.join(name);
    whole(&path, &apply(fixture(name), edits));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_read_whole(edits in edits()) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["views.bin", "legacy.bin", "dtypes.bin", "v3.gguf", "dtypes.safetensors"] {
            mutated_whole(name, &edits, folder.path());
        }
    }
}
