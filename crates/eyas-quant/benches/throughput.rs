//! Speed of quantising and reading Falcon-7B's query_key_value, in bytes of the float matrix a second.
//!
//!     cargo bench -p eyas-quant

use divan::Bencher;
use divan::counter::BytesCount;
use eyas_quant::{Element, QuantConfig, QuantType, dynamic_map, quantize, quantize_blockwise_8bit};
use half::bf16;

const ROWS: usize = 4672;
const COLS: usize = 4544;

fn main() {
    divan::main();
}

fn matrix<T: Element>() -> Vec<T> {
    let wide: Vec<f32> =
        (0..ROWS * COLS).map(|i| (i as f32 * 0.7).sin() * (i as f32 * 0.011).cos()).collect();
    let mut out = vec![T::zeroed(); wide.len()];
    T::narrow(&wide, &mut out);
    out
}

fn config(quant_type: QuantType) -> QuantConfig {
    QuantConfig { quant_type, ..QuantConfig::default() }
}

/// The bound: how fast a buffer of the matrix's size is copied on one thread.
#[divan::bench(types = [f32, bf16])]
fn copy<T: Element>(bencher: Bencher) {
    let input = matrix::<T>();
    let mut out = input.clone();
    bencher
        .counter(BytesCount::of_slice(&input))
        .bench_local(|| out.copy_from_slice(divan::black_box(&input)));
}

#[divan::bench(types = [f32, bf16], args = [QuantType::Nf4, QuantType::Fp4])]
fn write<T: Element>(bencher: Bencher, quant_type: QuantType) {
    let input = matrix::<T>();
    bencher
        .counter(BytesCount::of_slice(&input))
        .bench_local(|| quantize(divan::black_box(&input), ROWS, COLS, &config(quant_type)).unwrap());
}

#[divan::bench(types = [f32, bf16], args = [QuantType::Nf4, QuantType::Fp4])]
fn read<T: Element>(bencher: Bencher, quant_type: QuantType) {
    let quantized = quantize(&matrix::<T>(), ROWS, COLS, &config(quant_type)).unwrap();
    let mut out = vec![T::zeroed(); ROWS * COLS];
    bencher
        .counter(BytesCount::of_slice(&out.clone()))
        .bench_local(|| quantized.dequantize_into(divan::black_box(&mut out)).unwrap());
}

/// Eight rows at a time, single-threaded and in the cache: the speed of the inner loop.
#[divan::bench(types = [f32, bf16])]
fn write_rows<T: Element>(bencher: Bencher) {
    let input = &matrix::<T>()[..8 * COLS];
    let config = QuantConfig { double_quant: false, ..config(QuantType::Nf4) };
    bencher
        .counter(BytesCount::of_slice(input))
        .bench_local(|| quantize(divan::black_box(input), 8, COLS, &config).unwrap());
}

/// As [`write_rows`].
#[divan::bench]
fn read_rows(bencher: Bencher) {
    let quantized = quantize(&matrix::<f32>(), ROWS, COLS, &config(QuantType::Nf4)).unwrap();
    let mut out = vec![0.0f32; 8 * COLS];
    bencher.counter(BytesCount::of_slice(&out.clone())).bench_local(|| {
        quantized.dequantize_rows_into(divan::black_box(1000..1008), divan::black_box(&mut out)).unwrap();
    });
}

#[divan::bench]
fn write_8bit(bencher: Bencher) {
    let input = matrix::<f32>();
    let (mut codes, mut absmax) = (vec![0; input.len()], vec![0.0; input.len().div_ceil(256)]);
    bencher.counter(BytesCount::of_slice(&input)).bench_local(|| {
        quantize_blockwise_8bit(divan::black_box(&input), dynamic_map(true), 256, &mut codes, &mut absmax)
            .unwrap();
    });
}
