//! Every tensor of the files that `tools/golden_checkpoint.py` wrote, bit for bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use eyas_checkpoint::gguf::{Array, Value};
use eyas_checkpoint::{Checkpoint, Format, TensorDtype, TensorView, write_safetensors};

#[derive(serde::Deserialize)]
struct Expected {
    shape: Vec<usize>,
    dtype: String,
    f32_bits: Option<Vec<u32>>,
    bytes: Option<String>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn expected() -> BTreeMap<String, BTreeMap<String, Expected>> {
    serde_json::from_slice(&std::fs::read(fixtures().join("expected.json")).unwrap()).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn check(file: &str) {
    let checkpoint = Checkpoint::open(fixtures().join(file)).unwrap();
    let expected = &expected()[file];
    let names: Vec<_> = checkpoint.tensors().map(|info| info.name.as_str()).collect();
    assert_eq!(names, expected.keys().map(String::as_str).collect::<Vec<_>>());
    let mut values = vec![f32::NAN; 3];
    for (name, expected) in expected {
        let info = checkpoint.info(name).unwrap();
        assert_eq!(info.shape, expected.shape, "{name}");
        assert_eq!(info.dtype.to_string(), expected.dtype, "{name}");
        if let Some(expected) = &expected.f32_bits {
            checkpoint.read_f32(name, &mut values).unwrap();
            assert_eq!(&bits(&values), expected, "{name}");
            let mut joined = Vec::new();
            for row in 0..info.rows() {
                checkpoint.read_rows_f32(name, row..row + 1, &mut values).unwrap();
                joined.extend(bits(&values));
            }
            assert_eq!(&joined, expected, "{name} by rows");
        }
        if let Some(expected) = &expected.bytes {
            let bytes = checkpoint.read_bytes(name).unwrap();
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(&hex, expected, "{name}");
        }
    }
}

#[test]
fn gguf_version_3() {
    check("v3.gguf");
}

#[test]
fn gguf_version_2_with_its_own_alignment() {
    check("v2-aligned.gguf");
}

#[test]
fn safetensors_of_every_type() {
    check("dtypes.safetensors");
}

#[test]
fn safetensors_shards() {
    check("sharded-safetensors");
}

#[test]
fn bin_of_every_type() {
    check("dtypes.bin");
}

#[test]
fn bin_shards() {
    check("sharded-bin");
}

#[test]
fn bin_views_of_shared_and_strided_storage() {
    check("views.bin");
}

#[test]
fn bin_from_before_zip() {
    check("legacy.bin");
}

#[test]
fn formats_and_files_are_told() {
    let open = |file: &str| Checkpoint::open(fixtures().join(file)).unwrap();
    assert_eq!(open("v3.gguf").format(), Format::Gguf);
    assert_eq!(open("dtypes.bin").format(), Format::Pytorch);
    let sharded = open("sharded-safetensors");
    assert_eq!(sharded.format(), Format::Safetensors);
    let names: Vec<_> = sharded.files().iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
    assert_eq!(sharded.safetensors_metadata()["format"], "pt");
    assert!(sharded.gguf_metadata().is_none());
}

#[test]
fn rows_that_cut_through_a_block() {
    let checkpoint = Checkpoint::open(fixtures().join("v3.gguf")).unwrap();
    let (mut whole, mut part) = (Vec::new(), Vec::new());
    checkpoint.read_f32("blocks.Q4_1.1", &mut whole).unwrap();
    for (start, end) in [(0, 96), (31, 33), (40, 41), (5, 5), (64, 96)] {
        checkpoint.read_rows_f32("blocks.Q4_1.1", start..end, &mut part).unwrap();
        assert_eq!(bits(&part), bits(&whole[start..end]), "{start}..{end}");
    }
}

#[test]
fn gguf_metadata_of_every_type() {
    let checkpoint = Checkpoint::open(fixtures().join("v3.gguf")).unwrap();
    let metadata = checkpoint.gguf_metadata().unwrap();
    assert_eq!(metadata.str("general.architecture").unwrap(), "llama");
    assert_eq!(metadata.str("test.string").unwrap(), "Grüße, 世界 \n");
    assert_eq!(metadata.strings("test.strings").unwrap(), ["", "<s>", "Ġthe", "🦅"]);
    assert_eq!(metadata.i32s("test.int32s").unwrap(), [-2_000_000_000; 2]);
    assert_eq!(metadata.f32s("test.float32s").unwrap(), [0.1; 2]);
    assert_eq!(metadata.f32("test.float64").unwrap(), 0.1);
    assert_eq!(metadata.u32("test.uint8").unwrap(), 200);
    assert_eq!(metadata.u32("test.uint32").unwrap(), 4_000_000_000);
    assert_eq!(metadata.u64("test.uint64").unwrap(), 1 << 63);
    assert!(metadata.bool("test.bool").unwrap());

    let value = |key: &str| metadata.get(key).cloned().unwrap();
    assert_eq!(value("test.int8"), Value::I8(-100));
    assert_eq!(value("test.uint16"), Value::U16(60000));
    assert_eq!(value("test.int16"), Value::I16(-30000));
    assert_eq!(value("test.int64"), Value::I64(-(1 << 62)));
    assert_eq!(value("test.float64"), Value::F64(0.1));
    assert_eq!(value("test.uint8s"), Value::Array(Array::U8(vec![200; 2])));
    assert_eq!(value("test.int8s"), Value::Array(Array::I8(vec![-100; 2])));
    assert_eq!(value("test.uint16s"), Value::Array(Array::U16(vec![60000; 2])));
    assert_eq!(value("test.int16s"), Value::Array(Array::I16(vec![-30000; 2])));
    assert_eq!(value("test.uint32s"), Value::Array(Array::U32(vec![4_000_000_000; 2])));
    assert_eq!(value("test.uint64s"), Value::Array(Array::U64(vec![1 << 63; 2])));
    assert_eq!(value("test.int64s"), Value::Array(Array::I64(vec![-(1 << 62); 2])));
    assert_eq!(value("test.float64s"), Value::Array(Array::F64(vec![0.1; 2])));
    assert_eq!(value("test.bools"), Value::Array(Array::Bool(vec![true, false])));
}

#[test]
fn written_safetensors_equal_the_reference_writer_s() {
    let original = fixtures().join("dtypes.safetensors");
    let checkpoint = Checkpoint::open(&original).unwrap();
    let bytes: Vec<_> =
        checkpoint.tensors().map(|info| (info, checkpoint.read_bytes(&info.name).unwrap())).collect();
    let views: Vec<_> = bytes
        .iter()
        .map(|(info, data)| TensorView { name: &info.name, shape: &info.shape, dtype: info.dtype, data })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.safetensors");
    write_safetensors(&copy, &views, checkpoint.safetensors_metadata()).unwrap();
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(&original).unwrap());
}

#[test]
fn written_metadata_is_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let metadata: BTreeMap<_, _> = ('a'..='z').map(|c| (c.to_string(), c.to_string())).collect();
    let tensor = TensorView { name: "w", shape: &[1], dtype: TensorDtype::F32, data: &1f32.to_le_bytes() };
    write_safetensors(&path, &[tensor], &metadata).unwrap();
    let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
    let places: Vec<_> = ('a'..='z').map(|c| text.find(&format!("\"{c}\":")).unwrap()).collect();
    assert!(places.is_sorted());
    assert_eq!(Checkpoint::open(&path).unwrap().safetensors_metadata(), &metadata);
}

#[test]
fn a_pickle_s_code_is_not_run() {
    let checkpoint = Checkpoint::open(fixtures().join("hostile.bin"));
    // Whether the file is refused or its tensor read, nothing was called.
    if let Ok(checkpoint) = checkpoint {
        assert_eq!(checkpoint.tensors().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["weight"]);
    }
    assert!(!Path::new("hostile-pickle-ran").exists());
}
