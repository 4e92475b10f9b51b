//! Times every operation at the shapes of Falcon-7B and Llama-3-8B beside its floor: the larger of its bytes over the
//! memory's measured speed and its products over the product speed of one large plain product.
//!
//!     cargo run --release -p eyas-cuda --example ops -- [falcon|llama|all] [tokens] [once]
//!
//! With `once` the projections run once each after a first time, for a profiler to look at.

use eyas_backend::{
    Activation, AdamW, Adapter, AttentionSpec, Backend, Dropout, Dtype, FlatBatch, HostMatrix, Linear,
    LoraSlot, MomentFormat, MomentStorage, NormKind, NormSpec, Projection, QkvLayout, Result, Rope, Storage,
    Write,
};
use eyas_cuda::{CudaBackend, CudaOptions, CudaTensor, LoraPath};
use eyas_quant::QuantConfig;

struct Shape {
    name: &'static str,
    hidden: usize,
    layout: QkvLayout,
    ffn: usize,
    activation: Activation,
    norm: NormKind,
    vocab: usize,
    /// Linear layers of a block: in, outs.
    projections: Vec<(&'static str, usize, Vec<usize>)>,
}

fn falcon() -> Shape {
    Shape {
        name: "Falcon-7B",
        hidden: 4544,
        layout: QkvLayout::contiguous(71, 1, 64),
        ffn: 18176,
        activation: Activation::Gelu,
        norm: NormKind::LayerNorm,
        vocab: 65024,
        projections: vec![
            ("query_key_value", 4544, vec![4672]),
            ("dense", 4544, vec![4544]),
            ("dense_h_to_4h", 4544, vec![18176]),
            ("dense_4h_to_h", 18176, vec![4544]),
        ],
    }
}

fn llama() -> Shape {
    Shape {
        name: "Llama-3-8B",
        hidden: 4096,
        layout: QkvLayout::contiguous(32, 8, 128),
        ffn: 14336,
        activation: Activation::SwiGlu,
        norm: NormKind::RmsNorm,
        vocab: 128_256,
        projections: vec![
            ("q, k, v", 4096, vec![4096, 1024, 1024]),
            ("o", 4096, vec![4096]),
            ("gate, up", 4096, vec![14336, 14336]),
            ("down", 14336, vec![4096]),
        ],
    }
}

/// Measured ceilings: bytes and operations a millisecond.
#[derive(Clone, Copy)]
struct Ceilings {
    bytes: f64,
    flops: f64,
}

struct Bench<'a> {
    backend: &'a CudaBackend,
    ceilings: Ceilings,
    /// Run everything twice and time nothing.
    once: bool,
}

impl Bench<'_> {
    /// Milliseconds of one run: the best of three means.
    fn measure(&self, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
        work()?;
        self.backend.synchronize()?;
        if self.once {
            return Ok(f64::from(self.backend.time(work)?));
        }
        let once = self.backend.time(&mut work)?.max(0.005);
        let runs = (20.0 / once).clamp(1.0, 50.0) as usize;
        let mut best = f64::INFINITY;
        for _ in 0..if once > 100.0 { 1 } else { 3 } {
            let time = self.backend.time(|| (0..runs).try_for_each(|_| work()))?;
            best = best.min(f64::from(time) / runs as f64);
        }
        Ok(best)
    }

    fn row(&self, name: &str, bytes: f64, flops: f64, work: impl FnMut() -> Result<()>) -> Result<f64> {
        let time = self.measure(work)?;
        let floor = (bytes / self.ceilings.bytes).max(flops / self.ceilings.flops);
        println!(
            "{name:44} {time:9.3} ms  {:8.1} MB {:8.0} GB/s {:9.2} GFLOP {:7.1} TFLOP/s  floor {floor:8.3} ms {:4.0} %",
            bytes / 1e6,
            bytes / time / 1e6,
            flops / 1e9,
            flops / time / 1e9,
            100.0 * floor / time
        );
        Ok(time)
    }
}

/// Deterministic noise of about unit deviation.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 3.4
        })
        .collect()
}

/// A tensor of noise, repeated after a while: drawing it all would take longer than what is measured.
fn filled(backend: &CudaBackend, dtype: Dtype, rows: usize, cols: usize, seed: u64) -> Result<CudaTensor> {
    let mut tensor = backend.zeros(dtype, rows, cols)?;
    let piece = noise((1 << 22) + 12_345, seed);
    let values: Vec<f32> = piece.iter().copied().cycle().take(rows * cols).collect();
    backend.upload(&values, &mut tensor)?;
    Ok(tensor)
}

fn weight_bytes(rows: usize, cols: usize) -> Vec<u8> {
    let piece: Vec<u8> = noise((1 << 22) + 4_321, (rows * 31 + cols) as u64)
        .into_iter()
        .flat_map(|v| half::bf16::from_f32(v * 0.02).to_le_bytes())
        .collect();
    piece.iter().copied().cycle().take(rows * cols * 2).collect()
}

fn projections(backend: &CudaBackend, shape: &Shape) -> Result<Vec<Projection<CudaBackend>>> {
    shape
        .projections
        .iter()
        .zip(0..)
        .map(|((_, k, outs), index)| {
            let parts = outs
                .iter()
                .map(|&out| {
                    let bytes = weight_bytes(out, *k);
                    let matrix = HostMatrix { rows: out, cols: *k, dtype: Dtype::Bf16, bytes: &bytes };
                    let weight = backend.load_weight(matrix, Storage::Quantised(QuantConfig::default()))?;
                    Ok(Linear { weight, bias: None, out_features: out })
                })
                .collect::<Result<_>>()?;
            Ok(Projection { in_features: *k, index, parts })
        })
        .collect()
}

fn slots(projection: &Projection<CudaBackend>, r: usize) -> (Vec<Option<LoraSlot>>, usize) {
    let mut end = 0;
    let slots = projection
        .parts
        .iter()
        .map(|part| {
            let a = end;
            let b = a + r * projection.in_features;
            end = b + r * part.out_features;
            Some(LoraSlot { a, b, r, scaling: 1.0 })
        })
        .collect();
    (slots, end)
}

/// Times the projections of a block with a low-rank update of rank 32 at `tokens`.
fn time_projections(
    bench: &Bench<'_>,
    shape: &Shape,
    projections: &[Projection<CudaBackend>],
    tokens: usize,
    backward: bool,
) -> Result<()> {
    let backend = bench.backend;
    let dtype = backend.compute_dtype();
    let size = dtype.size() as f64;
    let t = tokens as f64;
    let mut total = [0.0; 5];
    for ((name, ..), projection) in shape.projections.iter().zip(projections) {
        let (k, n) = (projection.in_features, projection.out_features());
        let x = filled(backend, dtype, tokens, k, 1)?;
        let dy = filled(backend, dtype, tokens, n, 2)?;
        let mut y = backend.zeros(dtype, tokens, n)?;
        let mut dx = backend.zeros(dtype, tokens, k)?;
        let (slots, parameters) = slots(projection, 32);
        let rank: usize = slots.iter().flatten().map(|s| s.r).sum();
        let params = filled(backend, Dtype::F32, 1, parameters, 3)?;
        let mut grads = backend.zeros(Dtype::F32, 1, parameters)?;
        let mut hidden = backend.zeros(dtype, tokens, rank)?;
        let (kf, nf, rf) = (k as f64, n as f64, rank as f64);
        let product = 2.0 * t * kf * nf;
        let weight = kf * nf * 0.516;
        let bytes = weight + t * (kf + nf) * size;
        let adapter = |dropout| Adapter { params: &params, slots: &slots, dropout };
        let drop = Some(Dropout { p: 0.05, seed: 42, micro_batch: 1 });
        let label = |what: &str| format!("{name} {what}");
        total[0] += bench.row(&label("base"), bytes, product, || {
            backend.project(tokens, projection, None, &x, &mut y, None, Write::Set)
        })?;
        let lora = 2.0 * t * rf * (kf + nf);
        let keep = tokens > 8;
        for (dropout, at) in [(None, 1), (drop, 2)] {
            if dropout.is_some() && !keep {
                continue;
            }
            let what = if dropout.is_some() { "lora, dropout" } else { "lora" };
            total[at] += bench.row(&label(what), bytes, product + lora, || {
                let hidden = keep.then_some(&mut hidden);
                backend.project(tokens, projection, Some(adapter(dropout)), &x, &mut y, hidden, Write::Set)
            })?;
        }
        if !backward {
            continue;
        }
        total[3] += bench.row(&label("base, backward"), bytes, product, || {
            backend.project_backward(tokens, projection, None, &x, None, &dy, Some((&mut dx, Write::Set)))
        })?;
        total[4] += bench.row(
            &label("lora, dropout, backward"),
            bytes + t * kf * size,
            product + 2.0 * lora,
            || {
                let adapter = Some((adapter(drop), &mut grads));
                backend.project_backward(
                    tokens,
                    projection,
                    adapter,
                    &x,
                    Some(&hidden),
                    &dy,
                    Some((&mut dx, Write::Set)),
                )
            },
        )?;
    }
    let names = ["base", "lora", "lora, dropout", "base, backward", "lora, dropout, backward"];
    let sums: Vec<String> = names
        .iter()
        .zip(total)
        .filter(|(_, ms)| *ms > 0.0)
        .map(|(name, ms)| format!("{name} {ms:.3}"))
        .collect();
    println!("{} block at {tokens} tokens, ms: {}", shape.name, sums.join("; "));
    Ok(())
}

fn time_rest(bench: &Bench<'_>, shape: &Shape, length: usize, sequences: usize) -> Result<()> {
    let backend = bench.backend;
    let dtype = backend.compute_dtype();
    let tokens = length * sequences;
    let (t, size, h) = (tokens as f64, dtype.size() as f64, shape.hidden);
    let row = t * h as f64 * size;
    let mut flat = FlatBatch::new();
    for i in 0..sequences {
        let ids: Vec<u32> = (0..length).map(|j| ((i * 7919 + j * 104_729) % shape.vocab) as u32).collect();
        flat.push(&ids, &ids.iter().map(|id| *id as i32).collect::<Vec<_>>())?;
    }
    let mut batch = backend.new_batch(tokens, sequences)?;
    backend.load_batch(&flat, &mut batch)?;
    let x = filled(backend, dtype, tokens, h, 4)?;
    let dy = filled(backend, dtype, tokens, h, 5)?;
    let mut y = backend.zeros(dtype, tokens, h)?;
    bench.row("copy", 2.0 * row, 0.0, || backend.copy(tokens, &x, &mut y))?;
    bench.row("add", 3.0 * row, 0.0, || backend.add(tokens, &x, &mut y))?;
    let ones = filled(backend, Dtype::F32, 1, h, 6)?;
    let mut stats = backend.zeros(Dtype::F32, tokens, 2)?;
    let spec = NormSpec { kind: shape.norm, eps: 1e-5 };
    let bias = (shape.norm == NormKind::LayerNorm).then_some(&ones);
    bench.row("norm", 2.0 * row, 0.0, || backend.norm(tokens, spec, &x, &ones, bias, &mut y, &mut stats))?;
    bench.row("norm, backward, added", 4.0 * row, 0.0, || {
        backend.norm_backward(tokens, spec, &x, &ones, &stats, &dy, &mut y, Write::Add)
    })?;
    let table_bytes = weight_bytes(shape.vocab, h);
    let matrix = HostMatrix { rows: shape.vocab, cols: h, dtype: Dtype::Bf16, bytes: &table_bytes };
    let table = backend.load_weight(matrix, Storage::Dense(dtype))?;
    bench.row("embed", 2.0 * row, 0.0, || backend.embed(&batch, &table, &mut y))?;
    {
        let fan_in = shape.activation.fan_in();
        let f = t * shape.ffn as f64 * size;
        let mut x = filled(backend, dtype, tokens, shape.ffn * fan_in, 7)?;
        let dy = filled(backend, dtype, tokens, shape.ffn, 8)?;
        let mut y = backend.zeros(dtype, tokens, shape.ffn)?;
        let fan = fan_in as f64;
        bench.row("activation", (1.0 + fan) * f, 0.0, || {
            backend.activation(tokens, shape.activation, &x, &mut y)
        })?;
        bench.row("activation, backward", (1.0 + 2.0 * fan) * f, 0.0, || {
            backend.activation_backward(tokens, shape.activation, &dy, &mut x)
        })?;
    }
    {
        let l = shape.layout;
        let width = l.width();
        let mut qkv = filled(backend, dtype, tokens, width, 9)?;
        let half = l.head_dim / 2;
        let rope = Rope::<CudaBackend> {
            dim: l.head_dim,
            cos: filled(backend, Dtype::F32, length, half, 1)?,
            sin: filled(backend, Dtype::F32, length, half, 2)?,
        };
        let rotated = t * ((l.heads + l.kv_heads) * l.head_dim) as f64 * size;
        bench.row("rope", 2.0 * rotated, 0.0, || backend.rope(&batch, &l, &rope, &mut qkv, false))?;
        let mut qkv = filled(backend, dtype, tokens, width, 9)?;
        let spec =
            AttentionSpec { layout: l, scale: (l.head_dim as f32).powf(-0.5), window: None, alibi: None };
        let mut out = backend.zeros(dtype, tokens, l.heads * l.head_dim)?;
        let dout = filled(backend, dtype, tokens, l.heads * l.head_dim, 10)?;
        let mut lse = backend.zeros(Dtype::F32, tokens, l.heads)?;
        let flops = 4.0 * t * length as f64 / 2.0 * (l.heads * l.head_dim) as f64;
        let bytes = t * (width + l.heads * l.head_dim) as f64 * size;
        bench
            .row("attention", bytes, flops, || backend.attention(&batch, &spec, &qkv, &mut out, &mut lse))?;
        let mut dqkv = backend.zeros(dtype, tokens, width)?;
        bench.row("attention, backward", 2.0 * bytes, 2.5 * flops, || {
            backend.attention_backward(&batch, &spec, &qkv, &out, &lse, &dout, &mut dqkv)
        })?;
        backend.clear(&mut qkv)?;
    }
    {
        let rows = 2048.min(tokens);
        let (r, v) = (rows as f64, shape.vocab as f64);
        let head = Projection {
            in_features: h,
            index: 9,
            parts: vec![Linear { weight: table, bias: None, out_features: shape.vocab }],
        };
        let mut logits = backend.zeros(dtype, rows, shape.vocab)?;
        let mut dx = backend.zeros(dtype, rows, h)?;
        let mut loss = backend.zeros(Dtype::F32, 1, 1)?;
        let product = 2.0 * r * v * h as f64;
        let bytes = size * (r * (v + h as f64) + v * h as f64);
        bench.row("head, 2048 rows", bytes, product, || {
            backend.project(rows, &head, None, &x, &mut logits, None, Write::Set)
        })?;
        bench.row("cross_entropy, 2048 rows", 2.0 * r * v * size, 0.0, || {
            backend.cross_entropy(&batch, 0..rows, &mut logits, &mut loss, Some(1e-4))
        })?;
        bench.row("head, backward, 2048 rows", bytes, product, || {
            backend.project_backward(rows, &head, None, &x, None, &logits, Some((&mut dx, Write::Set)))
        })?;
        bench.row("gather_targets, 2048 rows", 2.0 * r * h as f64 * size, 0.0, || {
            backend.gather_targets(&batch, 0..rows, &x, &mut dx)
        })?;
    }
    let n = 65_273_856;
    let grads = filled(backend, Dtype::F32, 1, n, 11)?;
    let mut params = backend.zeros(Dtype::F32, 1, n)?;
    let mut norm = backend.zeros(Dtype::F32, 1, 1)?;
    bench.row("grad_norm, 65 M", 4.0 * n as f64, 0.0, || backend.grad_norm(&grads, &mut norm))?;
    let spec = AdamW {
        lr: 2e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        step: 10,
        max_grad_norm: Some(0.3),
        loss_scale: 1.0,
    };
    for (name, format, paged) in [
        ("adamw, 65 M", MomentFormat::F32, false),
        ("adamw, 65 M, paged", MomentFormat::F32, true),
        ("adamw, 65 M, 8 bits", MomentFormat::Blockwise8, false),
        ("adamw, 65 M, 8 bits, paged", MomentFormat::Blockwise8, true),
    ] {
        let storage = MomentStorage { format, paged };
        let mut moments = backend.new_moments(n, storage)?;
        bench.row(name, 12.0 * n as f64 + 2.0 * storage.bytes(n) as f64, 0.0, || {
            backend.adamw(spec, &grads, &norm, &mut params, &mut moments)
        })?;
    }
    Ok(())
}

/// What the card reaches in a plain copy and in a large product.
fn ceilings(backend: &CudaBackend) -> Result<Ceilings> {
    let bench = Bench { backend, ceilings: Ceilings { bytes: 1.0, flops: 1.0 }, once: false };
    let dtype = backend.compute_dtype();
    let n = 8192;
    let x = filled(backend, dtype, n, n, 1)?;
    let mut y = backend.zeros(dtype, n, n)?;
    let bytes_a_ms = {
        let big = filled(backend, dtype, 4 * n, n, 1)?;
        let mut to = backend.zeros(dtype, 4 * n, n)?;
        let time = bench.measure(|| backend.copy(4 * n, &big, &mut to))?;
        8.0 * (n * n * dtype.size()) as f64 / time
    };
    let weights = weight_bytes(n, n);
    let matrix = HostMatrix { rows: n, cols: n, dtype: Dtype::Bf16, bytes: &weights };
    let weight = backend.load_weight(matrix, Storage::Dense(dtype))?;
    let parts = vec![Linear { weight, bias: None, out_features: n }];
    let projection = Projection { in_features: n, index: 0, parts };
    let time = bench.measure(|| backend.project(n, &projection, None, &x, &mut y, None, Write::Set))?;
    let flops_a_ms = 2.0 * (n as f64).powi(3) / time;
    println!("copy {:.0} GB/s, product {:.0} TFLOP/s", bytes_a_ms / 1e6, flops_a_ms / 1e9);
    Ok(Ceilings { bytes: bytes_a_ms, flops: flops_a_ms })
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let which = args.next().unwrap_or_else(|| "all".into());
    let tokens: usize = args.next().and_then(|t| t.parse().ok()).unwrap_or(16_384);
    for library in eyas_cuda::probe().libraries {
        println!("{library:?}");
    }
    let start = std::time::Instant::now();
    let backend = CudaBackend::new(CudaOptions::default())?;
    println!("{}: opened in {:.2} s", backend.name(), start.elapsed().as_secs_f64());
    let once = args.next().is_some_and(|word| word == "once");
    let ceilings = if once { Ceilings { bytes: 2.9e9, flops: 8e11 } } else { ceilings(&backend)? };
    let bench = Bench { backend: &backend, ceilings, once };
    for shape in [falcon(), llama()] {
        if which != "all" && !shape.name.to_lowercase().starts_with(&which) {
            continue;
        }
        println!("--- {} ---", shape.name);
        let start = std::time::Instant::now();
        let projections = projections(&backend, &shape)?;
        let weights: usize = projections.iter().map(|p| p.in_features * p.out_features()).sum();
        println!(
            "a block's {weights} weights drawn, loaded and quantised in {:.2} s",
            start.elapsed().as_secs_f64()
        );
        let bytes = weight_bytes(shape.ffn, shape.hidden);
        let matrix = HostMatrix { rows: shape.ffn, cols: shape.hidden, dtype: Dtype::Bf16, bytes: &bytes };
        let start = std::time::Instant::now();
        let weight = backend.load_weight(matrix, Storage::Quantised(QuantConfig::default()))?;
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "load and quantise {} MB in {:.1} ms: {:.1} GB/s",
            bytes.len() >> 20,
            seconds * 1e3,
            bytes.len() as f64 / seconds / 1e9
        );
        let len = (shape.ffn * shape.hidden) as f64;
        bench.row("dequantise", len * 2.516, 0.0, || backend.dequantise(&weight))?;
        time_projections(&bench, &shape, &projections, tokens, true)?;
        if once {
            continue;
        }
        time_projections(&bench, &shape, &projections, 512, true)?;
        for few in [1, 8] {
            time_projections(&bench, &shape, &projections, few, false)?;
        }
        let other = CudaBackend::new(CudaOptions {
            lora_path: Some(LoraPath::Accumulate),
            ..CudaOptions::default()
        })?;
        if shape.name.starts_with("Falcon") && which != "all" {
            println!("with every update written first:");
            let bench = Bench { backend: &other, ceilings: bench.ceilings, once };
            time_projections(&bench, &shape, &projections, tokens, false)?;
        }
        time_rest(&bench, &shape, 1024, tokens.div_ceil(1024))?;
    }
    let memory = backend.memory()?;
    println!("peak {:.2} GB, scratch {:.2} GB", memory.peak as f64 / 1e9, memory.scratch as f64 / 1e9);
    Ok(())
}
