//! What holds for every matrix, and for every broken one.

mod common;

use std::borrow::Cow;

use common::{cast, values};
use eyas_quant::state_dict::{StateDict, TensorDtype};
use eyas_quant::{
    Absmax, BLOCK_SIZES, Dtype, Error, QuantConfig, QuantType, Quantized, Quantizer, dynamic_map, quantize,
};
use half::bf16;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn configs() -> impl Strategy<Value = QuantConfig> {
    (any::<bool>(), prop::sample::select(&BLOCK_SIZES[..]), any::<bool>()).prop_map(
        |(nf4, block_size, double_quant)| QuantConfig {
            quant_type: if nf4 { QuantType::Nf4 } else { QuantType::Fp4 },
            block_size,
            double_quant,
        },
    )
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn read(quantized: &Quantized) -> Vec<f32> {
    let mut out = vec![f32::NAN; quantized.len()];
    quantized.dequantize_into(&mut out).unwrap();
    out
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        rng_seed: RngSeed::Fixed(17),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_value_is_its_level_times_its_scale(
        config in configs(), seed in any::<u64>(), rows in 1usize..40, cols in 1usize..200,
    ) {
        let quantized = quantize(&values(seed, rows * cols), rows, cols, &config).unwrap();
        let (levels, scales) = (quantized.levels(), quantized.scales());
        for (i, value) in read(&quantized).into_iter().enumerate() {
            let code = quantized.packed()[i / 2] >> (4 * (1 - i % 2)) & 15;
            let expected = levels[usize::from(code)] * scales[i / config.block_size];
            prop_assert_eq!(value.to_bits(), expected.to_bits(), "value {}", i);
        }
    }

    #[test]
    fn a_second_round_changes_nothing(
        config in configs(), seed in any::<u64>(), rows in 1usize..40, cols in 1usize..200,
    ) {
        // Without double quantisation the largest magnitude of a block is a level, so its scale survives.
        let config = QuantConfig { double_quant: false, ..config };
        let once = quantize(&values(seed, rows * cols), rows, cols, &config).unwrap();
        let twice = quantize(&read(&once), rows, cols, &config).unwrap();
        prop_assert_eq!(read(&once), read(&twice));
    }

    #[test]
    fn any_rows_are_those_of_the_whole(
        config in configs(), seed in any::<u64>(), rows in 1usize..30, cols in 1usize..150,
        a in 0usize..31, b in 0usize..31,
    ) {
        let quantized = quantize(&values(seed, rows * cols), rows, cols, &config).unwrap();
        let range = a.min(b).min(rows)..a.max(b).min(rows);
        let mut out = vec![f32::NAN; range.len() * cols];
        quantized.dequantize_rows_into(range.clone(), &mut out).unwrap();
        prop_assert_eq!(bits(&out), bits(&read(&quantized)[range.start * cols..range.end * cols]));
    }

    #[test]
    fn pieces_of_any_length_give_the_same_matrix(
        config in configs(), seed in any::<u64>(), rows in 1usize..40, cols in 1usize..400,
        lengths in prop::collection::vec(0usize..3000, 1..20),
    ) {
        let input: Vec<bf16> = cast(&values(seed, rows * cols));
        let mut quantizer = Quantizer::new(rows, cols, &config).unwrap();
        let mut rest = &input[..];
        for length in lengths.into_iter().cycle().take(1000) {
            let (piece, tail) = rest.split_at(length.min(rest.len()));
            quantizer.push(piece).unwrap();
            rest = tail;
        }
        quantizer.push(rest).unwrap();
        prop_assert_eq!(quantizer.finish().unwrap(), quantize(&input, rows, cols, &config).unwrap());
    }

    #[test]
    fn a_state_dict_reads_back(
        config in configs(), seed in any::<u64>(), rows in 1usize..40, cols in 1usize..200, dtype in 0usize..3,
    ) {
        let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16][dtype];
        let quantized = quantize(&values(seed, rows * cols), rows, cols, &config).unwrap().with_dtype(dtype);
        let state = quantized.to_state_dict("layer.weight");
        prop_assert_eq!(Quantized::from_state_dict("layer.weight", |key| state.get(key).cloned()).unwrap(), quantized);
    }

    #[test]
    fn a_broken_state_dict_is_an_error_or_a_sound_matrix(
        config in configs(), rows in 1usize..20, cols in 1usize..80,
        victim in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        damage in 0u8..5, byte in any::<u8>(),
    ) {
        let quantized = quantize(&values(3, rows * cols), rows, cols, &config).unwrap();
        let mut state = quantized.to_state_dict("w");
        let key = victim.get(&state.keys().cloned().collect::<Vec<_>>()).clone();
        let tensor = state.get_mut(&key).unwrap();
        let data = tensor.data.to_mut();
        let at = at.index(data.len());
        match damage {
            0 => data[at] = byte,
            1 => data.truncate(at),
            2 => tensor.shape = vec![usize::MAX, 2],
            3 => tensor.dtype = TensorDtype::Float(Dtype::F32),
            _ => { state.remove(&key); }
        }
        if let Ok(read_back) = Quantized::from_state_dict("w", |key| state.get(key).cloned()) {
            prop_assert_eq!(read(&read_back).len(), read_back.rows() * read_back.cols());
        }
    }

    #[test]
    fn lying_parts_are_refused(
        rows in any::<usize>(), cols in any::<usize>(), packed in 0usize..100, scales in 0usize..100,
        nested in 0usize..3, nested_block_size in 0usize..4, block_size in any::<usize>(),
    ) {
        let absmax = Absmax::Nested {
            codes: vec![0; scales],
            nested_absmax: vec![1.0; nested],
            nested_block_size,
            offset: 0.0,
            map: Box::new(*dynamic_map(true)),
        };
        let parts = |block_size| {
            Quantized::from_parts(rows, cols, QuantType::Nf4, block_size, Dtype::F32, vec![0; packed], absmax.clone())
        };
        prop_assert!(parts(block_size).is_err());
        if let Ok(quantized) = parts(64) {
            prop_assert_eq!(quantized.len().div_ceil(2), packed);
        }
    }
}

#[test]
fn an_infinite_value_is_placed() {
    for (n, bad) in [(70_000, 69_999), (70_000, 65_000), (100, 99), (100, 3)] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut input = values(1, n);
            input[bad] = value;
            let error = quantize(&input, n / 10, 10, &QuantConfig::default()).unwrap_err();
            let Error::NonFinite { row, col, value: found } = error else { panic!("{error}") };
            assert_eq!((row, col, found.to_bits()), (bad / 10, bad % 10, value.to_bits()));
        }
    }
}

#[test]
fn a_value_that_overflows_in_half_precision_is_placed() {
    let mut input = cast::<half::f16>(&values(1, 300));
    input[299] = half::f16::INFINITY;
    let error = quantize(&input, 3, 100, &QuantConfig::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "inf at row 2, column 99: only finite values can be quantised; repair the tensor first"
    );
}

#[test]
fn too_many_and_too_few_values_are_refused() {
    let config = QuantConfig::default();
    assert!(matches!(quantize(&[0.0f32; 5], 2, 2, &config), Err(Error::Shape(_))));
    assert!(matches!(quantize(&[0.0f32; 3], 2, 2, &config), Err(Error::Shape(_))));
    assert!(matches!(quantize(&[0.0f32; 3], usize::MAX, 2, &config), Err(Error::Shape(_))));
    assert!(matches!(Quantizer::<f32>::new(1 << 31, 1 << 31, &config), Err(Error::Shape(_))));
}

#[test]
fn an_empty_matrix_is_a_matrix() {
    for double_quant in [false, true] {
        let quantized =
            quantize::<f32>(&[], 0, 64, &QuantConfig { double_quant, ..QuantConfig::default() }).unwrap();
        assert!(quantized.is_empty());
        quantized.dequantize_into::<f32>(&mut []).unwrap();
    }
}

#[test]
fn rows_outside_the_matrix_are_refused() {
    let quantized = quantize(&values(1, 64), 2, 32, &QuantConfig::default()).unwrap();
    for (rows, len) in [(0..3, 96), (3..3, 0), (0..1, 31), (usize::MAX..usize::MAX, 0)] {
        assert!(matches!(quantized.dequantize_rows_into(rows, &mut vec![0.0f32; len]), Err(Error::Shape(_))));
    }
}

#[test]
fn the_resident_size_is_half_a_byte_and_an_eighth_of_a_bit_more() {
    // 4 bits a value, 8 bits a block of 64, 32 bits for 256 blocks, the map and the offset.
    let quantized = quantize(&values(1, 64 * 256 * 8), 256, 512, &QuantConfig::default()).unwrap();
    assert_eq!(quantized.bytes(), 64 * 256 * 8 / 2 + 256 * 8 + 8 * 4 + 1024 + 4);
}

fn state_of(quantized: &Quantized) -> StateDict<'_> {
    quantized.to_state_dict("w")
}

fn error_of(state: &StateDict<'_>) -> String {
    Quantized::from_state_dict("w", |key| state.get(key).cloned()).unwrap_err().to_string()
}

fn matrix() -> Quantized {
    quantize(&values(1, 128), 2, 64, &QuantConfig::default()).unwrap()
}

#[test]
fn a_missing_state_is_named() {
    let quantized = matrix();
    let mut state = state_of(&quantized);
    state.remove("w.quant_state.bitsandbytes__nf4");
    assert!(error_of(&state).contains("`w.quant_state.bitsandbytes__nf4`"));
}

#[test]
fn a_shape_that_does_not_fit_the_codes_is_refused() {
    let quantized = matrix();
    let mut state = state_of(&quantized);
    let json = state.get_mut("w.quant_state.bitsandbytes__nf4").unwrap();
    let text = String::from_utf8(json.data.to_vec()).unwrap().replace("[2, 64]", "[3, 64]");
    json.data = Cow::Owned(text.into_bytes());
    assert_eq!(error_of(&state), "tensor `w`: shape 3 x 64 needs 96 bytes, not 64");
}

#[test]
fn another_types_levels_are_refused() {
    let quantized = matrix();
    let mut state = state_of(&quantized);
    state.get_mut("w.quant_map").unwrap().data.to_mut()[3] ^= 0x80;
    assert_eq!(error_of(&state), "tensor `w.quant_map`: these are not the 16 levels of nf4");
}

#[test]
fn two_states_are_refused() {
    let quantized = matrix();
    let mut state = state_of(&quantized);
    let nf4 = state["w.quant_state.bitsandbytes__nf4"].clone();
    state.insert("w.quant_state.bitsandbytes__fp4".into(), nf4);
    assert!(error_of(&state).contains("keep one"));
}

#[test]
fn codes_packed_in_a_wider_type_are_read() {
    let quantized = matrix();
    let mut state = state_of(&quantized);
    let weight = state.get_mut("w").unwrap();
    weight.dtype = TensorDtype::Float(Dtype::Bf16);
    weight.shape = vec![32, 1];
    assert_eq!(Quantized::from_state_dict("w", |key| state.get(key).cloned()).unwrap(), quantized);
}

#[test]
fn scales_in_half_precision_are_widened() {
    let config = QuantConfig { double_quant: false, ..QuantConfig::default() };
    let quantized = quantize(&[0.5f32; 64], 1, 64, &config).unwrap();
    let mut state = state_of(&quantized);
    let absmax = state.get_mut("w.absmax").unwrap();
    absmax.dtype = TensorDtype::Float(Dtype::Bf16);
    absmax.data = Cow::Owned(bf16::from_f32(0.5).to_le_bytes().to_vec());
    assert_eq!(Quantized::from_state_dict("w", |key| state.get(key).cloned()).unwrap(), quantized);
}
