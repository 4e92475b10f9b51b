//! Parity with a plain `f64` reference, finite differences, and independence of the number of threads.

use eyas_quant::{QuantConfig, QuantType};

use super::*;
use crate::cpu::microkernel::{PortableBf16, PortableI16};
use crate::philox::{dropout_bits, dropout_threshold};
use crate::spec::{Dropout, Linear, Storage};

const SEED: u64 = 0x5eed_0000_0042;

/// One projection, with what it is given and what it must return.
#[derive(Clone, Debug)]
struct Case {
    tokens: usize,
    in_features: usize,
    outs: Vec<usize>,
    ranks: Vec<usize>,
    storage: Storage,
    bias: bool,
    p: f32,
    write: Write,
}

impl Case {
    fn new(tokens: usize, in_features: usize, outs: &[usize], ranks: &[usize]) -> Self {
        Self {
            tokens,
            in_features,
            outs: outs.to_vec(),
            ranks: ranks.to_vec(),
            storage: Storage::Quantised(QuantConfig::default()),
            bias: false,
            p: 0.0,
            write: Write::Set,
        }
    }
}

/// Values between -1 and 1.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn tensor(rows: usize, cols: usize, seed: u64) -> CpuTensor {
    CpuTensor { data: values(rows * cols, seed), rows, cols }
}

struct Setup {
    case: Case,
    projection: Projection<CpuBackend>,
    weights: Vec<Vec<f32>>,
    params: CpuTensor,
    slots: Vec<Option<LoraSlot>>,
    dropout: Option<Dropout>,
    x: CpuTensor,
    dy: CpuTensor,
}

/// Results of both passes.
#[derive(Clone, Debug, PartialEq)]
struct Results {
    y: Vec<f32>,
    hidden: Vec<f32>,
    grads: Vec<f32>,
    dx: Vec<f32>,
}

impl Setup {
    fn new(case: &Case) -> Self {
        let k = case.in_features;
        let (mut next, mut slots) = (3, Vec::new());
        for (&out, &r) in case.outs.iter().zip(&case.ranks) {
            slots.push((r > 0).then(|| LoraSlot { a: next, b: next + r * k, r, scaling: 0.75 }));
            next += r * (k + out);
        }
        let parts: Vec<Linear<CpuBackend>> = case
            .outs
            .iter()
            .enumerate()
            .map(|(i, &out)| {
                let host = values(out * k, 10 + i as u64);
                let host = HostMatrix::from_f32(out, k, &host).unwrap();
                Linear {
                    weight: CpuWeight::load(host, case.storage).unwrap(),
                    bias: case.bias.then(|| tensor(1, out, 30 + i as u64)),
                    out_features: out,
                }
            })
            .collect();
        let weights = parts
            .iter()
            .map(|part| {
                let mut values = Vec::new();
                part.weight.read_rows(0..part.out_features, &mut values).unwrap();
                values
            })
            .collect();
        let outs = case.outs.iter().sum();
        Self {
            projection: Projection { in_features: k, index: 5, parts },
            weights,
            params: tensor(1, next + 2, 50),
            slots,
            dropout: (case.p > 0.0).then_some(Dropout { p: case.p, seed: SEED, micro_batch: 9 }),
            // One row more than the batch has: it must not be touched.
            x: tensor(case.tokens + 1, k, 60),
            dy: tensor(case.tokens + 1, outs, 61),
            case: case.clone(),
        }
    }

    fn adapter(&self) -> Option<Adapter<'_, CpuBackend>> {
        let any = self.slots.iter().any(Option::is_some);
        any.then_some(Adapter { params: &self.params, slots: &self.slots, dropout: self.dropout })
    }

    fn start(&self) -> (CpuTensor, CpuTensor, CpuTensor, CpuTensor) {
        let case = &self.case;
        let rank = case.ranks.iter().sum();
        (
            tensor(case.tokens + 1, case.outs.iter().sum(), 70),
            tensor(case.tokens + 1, rank, 71),
            tensor(1, self.params.data.len(), 72),
            tensor(case.tokens + 1, case.in_features, 73),
        )
    }

    fn run<K: Kernel>(&self) -> Results {
        let (scratch, tokens, write) = (Scratch::default(), self.case.tokens, self.case.write);
        let (mut y, mut hidden, mut grads, mut dx) = self.start();
        // Buffers that come back hold what was there before.
        scratch.take::<f32>(1 << 16).fill(f32::NAN);
        let (projection, adapter) = (&self.projection, self.adapter());
        let kept = adapter.map(|_| &mut hidden);
        project_with::<K>(&scratch, tokens, projection, adapter, &self.x, &mut y, kept, write).unwrap();
        let with_grads = adapter.map(|adapter| (adapter, &mut grads));
        let hidden_in = adapter.map(|_| &hidden);
        let dx_out = Some((&mut dx, write));
        project_backward_with::<K>(
            &scratch, tokens, projection, with_grads, &self.x, hidden_in, &self.dy, dx_out,
        )
        .unwrap();
        Results { y: y.data, hidden: hidden.data, grads: grads.data, dx: dx.data }
    }

    fn keep(&self, token: usize, col: usize) -> f64 {
        let Some(dropout) = self.dropout else { return 1.0 };
        let bits =
            dropout_bits(dropout.seed, dropout.micro_batch, 5, token as u32, (col / 8) as u32)[col % 8];
        let dropped = u32::from(bits) < dropout_threshold(dropout.p);
        if dropped { 0.0 } else { 1.0 / (1.0 - f64::from(dropout.p)) }
    }

    /// The definition, in `f64`.
    fn reference(&self) -> Results {
        let case = &self.case;
        let (k, tokens, total) = (case.in_features, case.tokens, case.outs.iter().sum::<usize>());
        let rank: usize = case.ranks.iter().sum();
        let (y0, hidden0, grads0, dx0) = self.start();
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let (mut y, mut hidden, mut grads, mut dx) =
            (wide(&y0.data), wide(&hidden0.data), wide(&grads0.data), wide(&dx0.data));
        if case.write == Write::Set {
            y[..tokens * total].fill(0.0);
            dx[..tokens * k].fill(0.0);
        }
        let (x, dy, params) = (wide(&self.x.data), wide(&self.dy.data), wide(&self.params.data));
        let (mut col, mut first) = (0, 0);
        for (i, &out) in case.outs.iter().enumerate() {
            let weight = wide(&self.weights[i]);
            for t in 0..tokens {
                let x = &x[t * k..][..k];
                let dropped: Vec<f64> = (0..k).map(|c| x[c] * self.keep(t, c)).collect();
                let mut h = Vec::new();
                if let Some(slot) = self.slots[i] {
                    for j in 0..slot.r {
                        h.push((0..k).map(|c| dropped[c] * params[slot.a + j * k + c]).sum::<f64>());
                        hidden[t * rank + first + j] = h[j];
                    }
                }
                let mut dh = vec![0.0; h.len()];
                for n in 0..out {
                    let at = t * total + col + n;
                    y[at] += (0..k).map(|c| x[c] * weight[n * k + c]).sum::<f64>();
                    if let Some(bias) = &self.projection.parts[i].bias {
                        y[at] += f64::from(bias.data[n]);
                    }
                    for c in 0..k {
                        dx[t * k + c] += dy[at] * weight[n * k + c];
                    }
                    if let Some(slot) = self.slots[i] {
                        let scaling = f64::from(slot.scaling);
                        for j in 0..slot.r {
                            let b = slot.b + n * slot.r + j;
                            y[at] += scaling * h[j] * params[b];
                            dh[j] += scaling * dy[at] * params[b];
                            grads[b] += scaling * dy[at] * h[j];
                        }
                    }
                }
                if let Some(slot) = self.slots[i] {
                    for j in 0..slot.r {
                        for c in 0..k {
                            let a = slot.a + j * k + c;
                            grads[a] += dh[j] * dropped[c];
                            dx[t * k + c] += dh[j] * params[a] * self.keep(t, c);
                        }
                    }
                }
            }
            col += out;
            first += case.ranks[i];
        }
        let narrow = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect();
        Results { y: narrow(y), hidden: narrow(hidden), grads: narrow(grads), dx: narrow(dx) }
    }
}

fn close(name: &str, case: &Case, got: &[f32], expected: &[f32], tolerance: f32) {
    let scale = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() <= tolerance * scale,
            "{name}[{i}] is {got}, not {expected} (scale {scale}): {case:?}"
        );
    }
}

fn check<K: Kernel>(case: &Case, tolerance: f32) {
    let setup = Setup::new(case);
    let (got, expected) = (setup.run::<K>(), setup.reference());
    close("y", case, &got.y, &expected.y, tolerance);
    if setup.adapter().is_some() {
        close("hidden", case, &got.hidden, &expected.hidden, tolerance);
        close("grads", case, &got.grads, &expected.grads, tolerance);
    }
    close("dx", case, &got.dx, &expected.dx, tolerance);
}

/// The kernel that products in `f32` run on here.
macro_rules! with_f32 {
    ($function:ident($($arg:expr),*)) => {{
        #[cfg(target_arch = "x86_64")]
        if Level::Avx2 <= Level::detect() {
            $function::<crate::cpu::tile::Avx2F32>($($arg),*);
        }
        #[cfg(target_arch = "x86_64")]
        if Level::Avx512 <= Level::detect() {
            $function::<crate::cpu::tile::Avx512F32>($($arg),*);
        }
        $function::<PortableF32>($($arg),*);
    }};
}

fn awkward() -> Vec<Case> {
    let mut cases = Vec::new();
    for tokens in [1, 2, 7, 8, 9, 33] {
        cases.push(Case::new(tokens, 64, &[48], &[0]));
        cases.push(Case { p: 0.3, bias: true, ..Case::new(tokens, 71, &[5, 33, 1], &[3, 0, 8]) });
        cases.push(Case { write: Write::Add, ..Case::new(tokens, 192, &[64, 32, 32], &[32, 32, 32]) });
    }
    cases.push(Case { p: 0.05, write: Write::Add, ..Case::new(100, 576, &[100, 7], &[16, 4]) });
    cases.push(Case { p: 0.05, bias: true, ..Case::new(49, 1000, &[130], &[32]) });
    cases.push(Case { p: 0.5, write: Write::Add, bias: true, ..Case::new(3, 1000, &[40, 70], &[0, 5]) });
    cases
}

#[test]
fn awkward_sizes_match_the_reference() {
    for case in awkward() {
        with_f32!(check(&case, 2e-5));
    }
}

#[test]
fn falcon_widths_match_the_reference() {
    for tokens in [2, 20] {
        let case = Case { p: 0.05, ..Case::new(tokens, 71 * 64, &[100], &[8]) };
        with_f32!(check(&case, 2e-5));
    }
}

#[test]
fn every_storage_matches_the_reference() {
    let mut storages: Vec<_> = [Dtype::F32, Dtype::Bf16, Dtype::F16].map(Storage::Dense).to_vec();
    for quant_type in [QuantType::Nf4, QuantType::Fp4] {
        for (block_size, double_quant) in [
            (32, true),
            (64, false),
            (128, true),
            (256, false),
            (512, true),
            (1024, false),
            (2048, true),
            (4096, true),
        ] {
            storages.push(Storage::Quantised(QuantConfig { quant_type, block_size, double_quant }));
        }
    }
    for storage in storages {
        for (tokens, k) in [(1, 96), (1, 320), (3, 320), (3, 75), (2, 576), (17, 320), (17, 75)] {
            let case = Case { storage, ..Case::new(tokens, k, &[37, 20], &[0, 4]) };
            with_f32!(check(&case, 2e-5));
        }
    }
}

#[test]
fn narrow_arithmetic_matches_the_reference_within_its_rounding() {
    for case in awkward() {
        check::<PortableI16<16>>(&case, 2e-3);
        check::<PortableI16<32>>(&case, 2e-3);
        check::<PortableBf16>(&case, 2e-2);
        check::<crate::cpu::amx::EmulatedAmx>(&case, 2e-2);
    }
}

/// A kernel gives what its emulation gives, but for the order of sums.
#[cfg(target_arch = "x86_64")]
fn check_emulated<K: Kernel, E: Kernel>() {
    for case in awkward() {
        let setup = Setup::new(&case);
        let (got, expected) = (setup.run::<K>(), setup.run::<E>());
        close("y", &case, &got.y, &expected.y, 1e-3);
        close("grads", &case, &got.grads, &expected.grads, 1e-3);
        close("dx", &case, &got.dx, &expected.dx, 1e-3);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn kernels_match_their_emulations() {
    use crate::cpu::amx::{AmxBf16, EmulatedAmx};
    for kernel in [MatmulKernel::I16, MatmulKernel::Bf16, MatmulKernel::AmxBf16] {
        match kernel {
            _ if !kernel.is_supported() => eprintln!("skipped: this processor has not the {kernel} kernel"),
            MatmulKernel::AmxBf16 => check_emulated::<AmxBf16, EmulatedAmx>(),
            MatmulKernel::I16 => {
                check_emulated::<crate::cpu::tile::Avx2I16, PortableI16<16>>();
                if Isa::Avx512Vnni.is_usable() {
                    check_emulated::<crate::cpu::tile::Avx512I16, PortableI16<32>>();
                }
            }
            _ => check_emulated::<crate::cpu::tile::Avx512Bf16, PortableBf16>(),
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    let case = Case { p: 0.2, bias: true, ..Case::new(10, 40, &[12, 9], &[3, 2]) };
    let mut setup = Setup::new(&case);
    let scratch = Scratch::default();
    let adapter = Adapter { params: &setup.params, slots: &setup.slots, dropout: setup.dropout };
    let mut hidden = tensor(11, 5, 0);
    let mut y = tensor(11, 21, 0);
    let mut grads =
        CpuTensor { data: vec![0.0; setup.params.data.len()], rows: 1, cols: setup.params.data.len() };
    let mut dx = tensor(11, 40, 0);
    let (projection, x, dy) = (&setup.projection, &setup.x, &setup.dy);
    project_with::<PortableF32>(
        &scratch,
        10,
        projection,
        Some(adapter),
        x,
        &mut y,
        Some(&mut hidden),
        Write::Set,
    )
    .unwrap();
    project_backward_with::<PortableF32>(
        &scratch,
        10,
        projection,
        Some((adapter, &mut grads)),
        x,
        Some(&hidden),
        dy,
        Some((&mut dx, Write::Set)),
    )
    .unwrap();
    // The loss `sum(y dy)` is linear in `x` and in each of `A` and `B`, so that large steps are exact.
    let loss = |setup: &Setup| -> f64 {
        let mut y = tensor(11, 21, 0);
        let adapter = setup.adapter();
        project_with::<PortableF32>(
            &scratch,
            10,
            &setup.projection,
            adapter,
            &setup.x,
            &mut y,
            None,
            Write::Set,
        )
        .unwrap();
        y.data[..10 * 21].iter().zip(&setup.dy.data).map(|(&y, &dy)| f64::from(y) * f64::from(dy)).sum()
    };
    let mut check = |name: &str, values: fn(&mut Setup) -> &mut [f32], gradient: &[f32], every: usize| {
        const STEP: f32 = 0.5;
        for (i, &got) in gradient.iter().enumerate().step_by(every) {
            let old = values(&mut setup)[i];
            let [up, down] = [old + STEP, old - STEP].map(|value| {
                values(&mut setup)[i] = value;
                loss(&setup)
            });
            values(&mut setup)[i] = old;
            let slope = (up - down) / f64::from(2.0 * STEP);
            assert!(
                (slope - f64::from(got)).abs() < 1e-4 * (1.0 + slope.abs()),
                "{name}[{i}]: {slope} {got}"
            );
        }
    };
    check("x", |setup| &mut setup.x.data, &dx.data[..10 * 40], 7);
    check("params", |setup| &mut setup.params.data, &grads.data, 3);
}

#[test]
fn without_dx_the_gradients_are_the_same() {
    let setup = Setup::new(&Case { p: 0.1, ..Case::new(40, 96, &[50, 20], &[4, 0]) });
    let scratch = Scratch::default();
    let expected = setup.run::<PortableF32>();
    let (_, _, mut grads, _) = setup.start();
    let hidden = CpuTensor { data: expected.hidden.clone(), rows: 41, cols: 4 };
    let with_grads = setup.adapter().map(|adapter| (adapter, &mut grads));
    project_backward_with::<PortableF32>(
        &scratch,
        40,
        &setup.projection,
        with_grads,
        &setup.x,
        Some(&hidden),
        &setup.dy,
        None,
    )
    .unwrap();
    assert_eq!(grads.data, expected.grads);
}

#[test]
fn results_do_not_depend_on_threads_or_scratch() {
    for tokens in [3, 600] {
        let case = Case { p: 0.05, ..Case::new(tokens, 192, &[192, 64], &[8, 8]) };
        let setup = Setup::new(&case);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut results = Vec::new();
                with_f32!(collect(&setup, &mut results));
                #[cfg(target_arch = "x86_64")]
                if MatmulKernel::I16.is_supported() {
                    collect::<crate::cpu::tile::Avx2I16>(&setup, &mut results);
                }
                results
            })
        };
        let one = run(1);
        for threads in [1, 2, 5] {
            assert_eq!(run(threads), one, "{tokens} tokens on {threads} threads");
        }
    }
}

fn collect<K: Kernel>(setup: &Setup, results: &mut Vec<Results>) {
    results.push(setup.run::<K>());
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let setup = Setup::new(&Case::new(4, 32, &[16], &[2]));
    let backend = CpuBackend::new(CpuOptions { matmul: Some(MatmulKernel::F32) }).unwrap();
    let (mut y, mut hidden, mut grads, _) = setup.start();
    let projection = &setup.projection;
    let call = |x: &CpuTensor, y: &mut CpuTensor, hidden: &mut CpuTensor, tokens| {
        project(&backend, tokens, projection, setup.adapter(), x, y, Some(hidden), Write::Set)
    };
    call(&setup.x, &mut y, &mut hidden, 4).unwrap();
    assert!(call(&tensor(5, 33, 0), &mut y, &mut hidden, 4).is_err());
    assert!(call(&setup.x, &mut tensor(5, 17, 0), &mut hidden, 4).is_err());
    assert!(call(&setup.x, &mut y, &mut tensor(5, 3, 0), 4).is_err());
    assert!(call(&setup.x, &mut y, &mut hidden, 6).is_err());
    let slots = [Some(LoraSlot { a: usize::MAX - 4, b: 0, r: 2, scaling: 1.0 })];
    let adapter = Adapter { params: &setup.params, slots: &slots, dropout: None };
    assert!(project(&backend, 4, projection, Some(adapter), &setup.x, &mut y, None, Write::Set).is_err());
    let with_grads = setup.adapter().map(|adapter| (adapter, &mut grads));
    assert!(
        project_backward(&backend, 4, projection, with_grads, &setup.x, None, &setup.dy, None).is_err(),
        "an adapter's backward without hidden"
    );
}
