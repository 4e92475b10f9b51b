//! Checks on a card: parity of every operation, quantisation, determinism, memory. Without a card they say so and pass.

use eyas_backend::parity;
use eyas_backend::{
    Adapter, Backend, Dropout, Dtype, HostMatrix, Linear, LoraSlot, Projection, Storage, Write,
};
use eyas_cuda::{CudaBackend, CudaOptions, LoraPath};
use eyas_quant::{Absmax, QuantConfig, QuantType, quantize};

fn backend(options: CudaOptions) -> Option<CudaBackend> {
    match CudaBackend::new(options) {
        Ok(backend) => Some(backend),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn with_dtype(dtype: Dtype) -> Option<CudaBackend> {
    backend(CudaOptions { compute_dtype: Some(dtype), ..CudaOptions::default() })
}

/// Deterministic noise of about unit size.
fn noise(len: usize, seed: u32) -> Vec<f32> {
    (0..len as u32)
        .map(|i| {
            let mut x = i.wrapping_mul(0x9E37_79B9) ^ seed.wrapping_mul(0x85EB_CA6B);
            x ^= x >> 16;
            x = x.wrapping_mul(0x7FEB_352D);
            x ^= x >> 15;
            x = x.wrapping_mul(0x846C_A68B);
            x ^= x >> 16;
            (x as f32 / u32::MAX as f32 - 0.5) * 3.4
        })
        .collect()
}

fn check_parity(dtype: Dtype, lora_path: Option<LoraPath>) {
    let options = CudaOptions { compute_dtype: Some(dtype), lora_path, ..CudaOptions::default() };
    let Some(backend) = backend(options) else { return };
    let rows = parity::check(&backend, dtype).unwrap();
    let failed: Vec<String> = rows
        .iter()
        .filter(|row| !row.passes())
        .map(|row| format!("{} ({}): {:.2e} > {:.0e}", row.op, row.case, row.error, row.tolerance))
        .collect();
    eprintln!("{dtype:?} {lora_path:?}: {} of {} rows pass", rows.len() - failed.len(), rows.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_operation_agrees_in_f32() {
    check_parity(Dtype::F32, None);
}

#[test]
fn every_operation_agrees_in_bf16() {
    check_parity(Dtype::Bf16, None);
}

#[test]
fn every_operation_agrees_in_f16() {
    check_parity(Dtype::F16, None);
}

#[test]
fn both_ways_of_a_low_rank_update_agree() {
    check_parity(Dtype::Bf16, Some(LoraPath::Accumulate));
    check_parity(Dtype::F32, Some(LoraPath::Wide));
}

fn check_quantisation(config: QuantConfig, rows: usize, cols: usize) {
    let Some(backend) = with_dtype(Dtype::F32) else { return };
    let mut values = noise(rows * cols, 7);
    // A block of zeros and a block of tiny values are awkward.
    values[..config.block_size].fill(0.0);
    values[config.block_size..2 * config.block_size].iter_mut().for_each(|v| *v *= 1e-39);
    let values: Vec<half::bf16> = values.into_iter().map(half::bf16::from_f32).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let matrix = HostMatrix { rows, cols, dtype: Dtype::Bf16, bytes: &bytes };
    let weight = backend.load_weight(matrix, Storage::Quantised(config)).unwrap();
    let got = backend.download_quantized(&weight, &config, eyas_quant::Dtype::Bf16).unwrap().unwrap();
    let want = quantize(&values, rows, cols, &config).unwrap();
    assert!(got.packed() == want.packed(), "{config:?}: codes differ");
    assert_eq!(got.absmax(), want.absmax(), "{config:?}");
    // And back: what is placed as it is comes out as it was.
    let placed = backend.load_quantized(want.clone()).unwrap();
    assert_eq!(backend.download_quantized(&placed, &config, eyas_quant::Dtype::Bf16).unwrap().unwrap(), want);
    let (mut from_card, mut here) = (Vec::new(), vec![0.0f32; rows * cols]);
    backend.download_weight(&placed, 0..rows, &mut from_card).unwrap();
    want.dequantize_into(&mut here).unwrap();
    assert!(from_card == here, "{config:?}: values differ");
}

#[test]
fn weights_quantised_on_the_card_equal_those_of_the_processor() {
    for quant_type in [QuantType::Nf4, QuantType::Fp4] {
        for (block_size, double_quant) in [(64, true), (32, false), (256, true), (4096, true)] {
            check_quantisation(QuantConfig { quant_type, block_size, double_quant }, 331, 4544);
            check_quantisation(QuantConfig { quant_type, block_size, double_quant }, 131, 77);
        }
    }
    // More than one piece of the staging buffers.
    check_quantisation(QuantConfig::default(), 4096, 4544);
}

#[test]
fn a_weight_that_is_not_finite_is_refused_with_its_place() {
    let Some(backend) = with_dtype(Dtype::F32) else { return };
    let mut values = noise(64 * 100, 3);
    values[37 * 100 + 21] = f32::NAN;
    let matrix = HostMatrix::from_f32(64, 100, &values).unwrap();
    let error =
        backend.load_weight(matrix, Storage::Quantised(QuantConfig::default())).unwrap_err().to_string();
    assert!(error.contains("row 37, column 21"), "{error}");
}

struct Case {
    projection: Projection<CudaBackend>,
    params: <CudaBackend as Backend>::Tensor,
    slots: Vec<Option<LoraSlot>>,
}

fn case(backend: &CudaBackend, k: usize, outs: &[usize], r: usize) -> Case {
    let (mut parts, mut slots, mut end) = (Vec::new(), Vec::new(), 0);
    for (i, &out) in outs.iter().enumerate() {
        let values: Vec<f32> = noise(out * k, i as u32).iter().map(|v| v * 0.02).collect();
        let storage = Storage::Quantised(QuantConfig::default());
        let weight = backend.load_weight(HostMatrix::from_f32(out, k, &values).unwrap(), storage).unwrap();
        parts.push(Linear { weight, bias: None, out_features: out });
        slots.push(Some(LoraSlot { a: end, b: end + r * k, r, scaling: 0.5 }));
        end += r * (k + out);
    }
    let mut params = backend.zeros(Dtype::F32, 1, end).unwrap();
    backend.upload(&noise(end, 99).iter().map(|v| v * 0.05).collect::<Vec<_>>(), &mut params).unwrap();
    Case { projection: Projection { in_features: k, index: 5, parts }, params, slots }
}

/// `y`, `dx` and the adapter's gradient of one pass.
fn pass(backend: &CudaBackend, case: &Case, tokens: usize, dropout: bool) -> [Vec<f32>; 3] {
    let (k, n, dtype) =
        (case.projection.in_features, case.projection.out_features(), backend.compute_dtype());
    let dropout = dropout.then_some(Dropout { p: 0.1, seed: 42, micro_batch: 3 });
    let adapter = Adapter { params: &case.params, slots: &case.slots, dropout };
    let tensor = |cols: usize, seed: u32| {
        let mut tensor = backend.zeros(dtype, tokens, cols).unwrap();
        backend.upload(&noise(tokens * cols, seed), &mut tensor).unwrap();
        tensor
    };
    let (x, dy, mut y, mut dx) = (tensor(k, 11), tensor(n, 12), tensor(n, 13), tensor(k, 14));
    let mut hidden = tensor(adapter.rank(), 15);
    let parameters = case.slots.iter().flatten().map(|s| s.r).sum::<usize>() * k
        + case
            .slots
            .iter()
            .flatten()
            .zip(&case.projection.parts)
            .map(|(s, p)| s.r * p.out_features)
            .sum::<usize>();
    let mut grads = backend.zeros(Dtype::F32, 1, parameters).unwrap();
    backend
        .project(tokens, &case.projection, Some(adapter), &x, &mut y, Some(&mut hidden), Write::Set)
        .unwrap();
    backend
        .project_backward(
            tokens,
            &case.projection,
            Some((adapter, &mut grads)),
            &x,
            Some(&hidden),
            &dy,
            Some((&mut dx, Write::Add)),
        )
        .unwrap();
    let read = |tensor: &<CudaBackend as Backend>::Tensor, len: usize| {
        let mut values = vec![0.0; len];
        backend.download(tensor, &mut values).unwrap();
        values
    };
    [read(&y, tokens * n), read(&dx, tokens * k), read(&grads, parameters)]
}

#[test]
fn the_same_inputs_give_the_same_bits() {
    let Some(first) = with_dtype(Dtype::Bf16) else { return };
    let make = |backend: &CudaBackend| pass(backend, &case(backend, 1024, &[512, 256, 256], 16), 777, true);
    let want = make(&first);
    assert!(make(&first) == want, "two passes of one backend differ");
    let Some(second) = with_dtype(Dtype::Bf16) else { return };
    assert!(make(&second) == want, "two backends differ");
}

#[test]
fn a_second_step_allocates_nothing() {
    let Some(backend) = with_dtype(Dtype::Bf16) else { return };
    let case = case(&backend, 512, &[1024], 8);
    pass(&backend, &case, 300, true);
    let before = backend.memory().unwrap();
    pass(&backend, &case, 300, true);
    pass(&backend, &case, 200, false);
    let after = backend.memory().unwrap();
    assert_eq!((before.used, before.scratch), (after.used, after.scratch));
}

/// Up to 64 tokens take other paths; with tokens beyond that the product must give the same rows.
#[test]
fn few_tokens_give_the_rows_of_many() {
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let Some(backend) = with_dtype(dtype) else { return };
        let case = case(&backend, 2048, &[512, 96, 33], 8);
        let n = case.projection.out_features();
        let [many, ..] = pass(&backend, &case, 100, false);
        for tokens in [1, 3, 8, 9, 17, 33, 64] {
            let adapter = Adapter { params: &case.params, slots: &case.slots, dropout: None };
            let mut x = backend.zeros(dtype, tokens, 2048).unwrap();
            backend.upload(&noise(tokens * 2048, 11), &mut x).unwrap();
            let mut y = backend.zeros(dtype, tokens, n).unwrap();
            backend.project(tokens, &case.projection, Some(adapter), &x, &mut y, None, Write::Set).unwrap();
            let mut few = vec![0.0; tokens * n];
            backend.download(&y, &mut few).unwrap();
            let (mut difference, mut norm) = (0.0f64, 0.0f64);
            for (a, b) in few.iter().zip(&many) {
                difference += f64::from(a - b).powi(2);
                norm += f64::from(*b).powi(2);
            }
            let error = (difference / norm).sqrt();
            let tolerance = if dtype == Dtype::F32 { 1e-5 } else { 1e-2 };
            assert!(error < tolerance, "{dtype:?}, {tokens} tokens: {error:.2e}");
        }
    }
}

#[test]
fn a_memory_limit_is_kept() {
    let limit = 200 << 20;
    let options =
        CudaOptions { memory_limit: Some(limit), compute_dtype: Some(Dtype::F32), ..CudaOptions::default() };
    let Some(backend) = backend(options) else { return };
    assert!(backend.zeros(Dtype::F32, 1, 1 << 20).is_ok());
    let error = backend.zeros(Dtype::F32, 1024, 1 << 16).unwrap_err();
    assert!(matches!(error, eyas_backend::Error::OutOfMemory { .. }), "{error}");
    assert!(backend.memory().unwrap().peak <= limit);
}

#[test]
fn nested_scales_round_trip() {
    let Some(backend) = with_dtype(Dtype::F32) else { return };
    let values = noise(128 * 512, 1);
    let want = quantize(&values, 128, 512, &QuantConfig::default()).unwrap();
    assert!(matches!(want.absmax(), Absmax::Nested { .. }));
    let weight = backend.load_quantized(want.clone()).unwrap();
    assert!(backend.weight_bytes(&weight) < 128 * 512 * 6 / 10);
}
