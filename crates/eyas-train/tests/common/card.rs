//! The CPU backend as a card of so many bytes, of which somebody else may take some, and whose operations fail when
//! they are told to.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use eyas_backend::backend::DeviceTensor;
use eyas_backend::cpu::{CpuBatch, CpuTensor, CpuWeight};
use eyas_backend::spec::{
    Activation, AdamW, Adapter, AttentionSpec, HostMatrix, Linear, NormSpec, Projection, QkvLayout, Rope,
    Storage, Write,
};
use eyas_backend::{
    Backend, CpuBackend, Dtype, Error, FlatBatch, HostMoments, MomentStorage, Result, StepShape,
};
use eyas_quant::Quantized;

/// Bytes of scratch memory, which a backend keeps until it is told to release it.
pub const SCRATCH: u64 = 1000;

/// What the device knows of itself.
#[derive(Debug)]
struct State {
    size: u64,
    /// By this process.
    used: u64,
    /// By somebody else.
    taken: u64,
    scratch: u64,
    calls: BTreeMap<&'static str, usize>,
    faults: Vec<Fault>,
    /// Operations in which the program panics, once, and calls that still go well.
    panics: BTreeMap<&'static str, usize>,
}

/// What is to go wrong, once.
#[derive(Debug)]
pub struct Fault {
    /// The operation.
    pub op: &'static str,
    /// Calls of it that still go well.
    pub after: usize,
    /// Bytes that somebody else takes at that moment; `None` for a device that breaks.
    pub taken: Option<u64>,
}

/// The device.
#[derive(Debug)]
pub struct Card {
    dtype: Dtype,
    cpu: CpuBackend,
    state: Arc<Mutex<State>>,
}

/// Something in the device's memory, until it is dropped.
#[derive(Debug)]
pub struct Held<T> {
    inner: T,
    bytes: u64,
    state: Arc<Mutex<State>>,
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        self.state.lock().unwrap().used -= self.bytes;
    }
}

impl Card {
    /// A card of so many bytes.
    pub fn new(size: u64) -> Self {
        let state = State {
            size,
            used: 0,
            taken: 0,
            scratch: 0,
            calls: BTreeMap::new(),
            faults: Vec::new(),
            panics: BTreeMap::new(),
        };
        Self { dtype: Dtype::F32, cpu: super::backend(), state: Arc::new(Mutex::new(state)) }
    }

    /// The same with activations in half precision by name and size; it computes as before.
    pub fn half(self) -> Self {
        Self { dtype: Dtype::F16, ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// From now on this goes wrong.
    pub fn break_at(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// After so many calls an operation panics.
    pub fn panic_at(&self, op: &'static str, after: usize) {
        self.state().panics.insert(op, after);
    }

    /// Somebody else holds so many bytes.
    pub fn take(&self, bytes: u64) {
        self.state().taken = bytes;
    }

    /// Bytes that this process holds.
    pub fn used(&self) -> u64 {
        self.state().used
    }

    /// Times that an operation was called.
    pub fn calls(&self, op: &str) -> usize {
        self.state().calls.get(op).copied().unwrap_or(0)
    }

    /// Counts an operation; an error when it is its turn to fail.
    fn at(&self, op: &'static str) -> Result<()> {
        let mut state = self.state();
        *state.calls.entry(op).or_default() += 1;
        if let Some(after) = state.panics.get_mut(op) {
            if *after == 0 {
                state.panics.remove(op);
                // Not poisoned: the run's memory is still to be given back.
                drop(state);
                panic!("{op} is at fault");
            }
            *after -= 1;
        }
        let mut broken = None;
        state.faults.retain_mut(|fault| {
            let now = fault.op == op && broken.is_none() && {
                fault.after = fault.after.wrapping_sub(1);
                fault.after == usize::MAX
            };
            if now {
                broken = Some(fault.taken);
            }
            !now
        });
        match broken {
            None => Ok(()),
            Some(None) => Err(Error::Device { device: "card".into(), reason: format!("{op} broke") }),
            Some(Some(taken)) => {
                state.taken = taken;
                Err(out_of_memory(&state, 4096))
            }
        }
    }

    /// Takes so many bytes, if they are free.
    fn allocate(&self, bytes: u64) -> Result<()> {
        let mut state = self.state();
        if bytes > state.free() {
            return Err(out_of_memory(&state, bytes));
        }
        state.used += bytes;
        Ok(())
    }

    fn hold<T>(&self, op: &'static str, bytes: u64, make: impl FnOnce() -> Result<T>) -> Result<Held<T>> {
        self.at(op)?;
        self.allocate(bytes)?;
        Ok(Held { inner: make()?, bytes, state: Arc::clone(&self.state) })
    }
}

impl State {
    fn free(&self) -> u64 {
        self.size.saturating_sub(self.taken).saturating_sub(self.used)
    }
}

fn out_of_memory(state: &State, requested: u64) -> Error {
    Error::OutOfMemory { device: "card".into(), requested, available: state.free() }
}

type T = Held<CpuTensor>;
type M = Held<HostMoments>;

impl DeviceTensor for T {
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }

    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
}

/// An operand as the CPU backend takes it.
trait Plain {
    type Out;
    fn plain(self) -> Self::Out;
}

macro_rules! plain {
    ($($type:ty)+) => { $(impl Plain for $type { type Out = Self; fn plain(self) -> Self { self } })+ };
}

plain! { usize f32 bool NormSpec &QkvLayout Write Activation AdamW Range<usize> Option<f32> &[f32] &mut [f32] }
plain! { &CpuBatch &mut CpuBatch &CpuWeight &FlatBatch &CpuTensor &mut CpuTensor &HostMoments }
plain! { &mut Vec<f32> }

impl<'a, I> Plain for &'a Held<I> {
    type Out = &'a I;
    fn plain(self) -> &'a I {
        &self.inner
    }
}

impl<'a, I> Plain for &'a mut Held<I> {
    type Out = &'a mut I;
    fn plain(self) -> &'a mut I {
        &mut self.inner
    }
}

impl<'a> Plain for Option<&'a T> {
    type Out = Option<&'a CpuTensor>;
    fn plain(self) -> Self::Out {
        self.map(Plain::plain)
    }
}

impl<'a> Plain for Option<&'a mut T> {
    type Out = Option<&'a mut CpuTensor>;
    fn plain(self) -> Self::Out {
        self.map(Plain::plain)
    }
}

fn projection(of: &Projection<Card>) -> Projection<CpuBackend> {
    let part = |part: &Linear<Card>| Linear {
        weight: part.weight.clone(),
        bias: part.bias.as_ref().map(|bias| bias.inner.clone()),
        out_features: part.out_features,
    };
    Projection { in_features: of.in_features, index: of.index, parts: of.parts.iter().map(part).collect() }
}

fn adapter<'a>(of: Adapter<'a, Card>) -> Adapter<'a, CpuBackend> {
    Adapter { params: &of.params.inner, slots: of.slots, dropout: of.dropout }
}

fn attention(of: &AttentionSpec<Card>) -> AttentionSpec<CpuBackend> {
    AttentionSpec {
        layout: of.layout,
        scale: of.scale,
        window: of.window,
        alibi: of.alibi.as_ref().map(|table| table.inner.clone()),
    }
}

fn rope(of: &Rope<Card>) -> Rope<CpuBackend> {
    Rope { dim: of.dim, cos: of.cos.inner.clone(), sin: of.sin.inner.clone() }
}

/// Operations that the CPU backend does, after they were counted.
macro_rules! operations {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)+) => {
        $(fn $name(&self, $($argument: $type),*) -> Result<operations!(@result $($result)?)> {
            self.at(stringify!($name))?;
            self.cpu.$name($($argument.plain()),*)
        })+
    };
    (@result) => { () };
    (@result $result:ty) => { $result };
}

impl Backend for Card {
    type Tensor = T;
    type Weight = CpuWeight;
    type Batch = CpuBatch;
    type Moments = M;
    type HostBuffer = CpuTensor;
    type Recording = ();

    const OFFLOADS: bool = true;
    const LOGIT_ROWS: usize = CpuBackend::LOGIT_ROWS;
    const PROMPT_TOKENS: usize = 256;

    fn name(&self) -> String {
        "card".into()
    }

    fn compute_dtype(&self) -> Dtype {
        self.dtype
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(Some(self.state().free()))
    }

    fn used_memory(&self) -> Option<(u64, u64)> {
        None
    }

    fn stored_bytes(dtype: Dtype, rows: usize, cols: usize, storage: Storage) -> u64 {
        CpuBackend::stored_bytes(dtype, rows, cols, storage)
    }

    fn scratch_bytes(_: &StepShape) -> u64 {
        SCRATCH
    }

    fn reserve(&self, _: &StepShape) -> Result<()> {
        self.at("reserve")?;
        if self.state().scratch == 0 {
            self.allocate(SCRATCH)?;
            self.state().scratch = SCRATCH;
        }
        Ok(())
    }

    fn release(&self) -> Result<()> {
        let mut state = self.state();
        state.used -= state.scratch;
        state.scratch = 0;
        Ok(())
    }

    fn zeros(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<T> {
        self.hold("zeros", (rows * cols * dtype.size()) as u64, || self.cpu.zeros(dtype, rows, cols))
    }

    fn load_weight(&self, matrix: HostMatrix<'_>, storage: Storage) -> Result<CpuWeight> {
        let weight = self.cpu.load_weight(matrix, storage)?;
        self.allocate(weight.bytes())?;
        Ok(weight)
    }

    fn load_quantized(&self, weight: Quantized) -> Result<CpuWeight> {
        let weight = self.cpu.load_quantized(weight)?;
        self.allocate(weight.bytes())?;
        Ok(weight)
    }

    fn weight_bytes(&self, weight: &CpuWeight) -> u64 {
        weight.bytes()
    }

    fn new_host_buffer(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<CpuTensor> {
        self.cpu.zeros(dtype, rows, cols)
    }

    fn host_values<'b>(&self, buffer: &'b CpuTensor) -> Result<&'b [f32]> {
        self.at("host_values")?;
        self.cpu.host_values(buffer)
    }

    fn host_values_mut<'b>(&self, buffer: &'b mut CpuTensor) -> Result<&'b mut [f32]> {
        self.at("host_values")?;
        self.cpu.host_values_mut(buffer)
    }

    fn new_batch(&self, max_tokens: usize, max_sequences: usize) -> Result<CpuBatch> {
        self.cpu.new_batch(max_tokens, max_sequences)
    }

    fn project(
        &self,
        tokens: usize,
        of: &Projection<Self>,
        update: Option<Adapter<'_, Self>>,
        x: &T,
        y: &mut T,
        hidden: Option<&mut T>,
        write: Write,
    ) -> Result<()> {
        self.at("project")?;
        let (of, update) = (projection(of), update.map(adapter));
        self.cpu.project(tokens, &of, update, x.plain(), y.plain(), hidden.plain(), write)
    }

    fn project_backward(
        &self,
        tokens: usize,
        of: &Projection<Self>,
        update: Option<(Adapter<'_, Self>, &mut T)>,
        x: &T,
        hidden: Option<&T>,
        dy: &T,
        dx: Option<(&mut T, Write)>,
    ) -> Result<()> {
        self.at("project_backward")?;
        let update = update.map(|(update, grads)| (adapter(update), grads.plain()));
        let dx = dx.map(|(dx, write)| (dx.plain(), write));
        self.cpu.project_backward(tokens, &projection(of), update, x.plain(), hidden.plain(), dy.plain(), dx)
    }

    fn rope(
        &self,
        batch: &CpuBatch,
        layout: &QkvLayout,
        of: &Rope<Self>,
        qkv: &mut T,
        back: bool,
    ) -> Result<()> {
        self.at("rope")?;
        self.cpu.rope(batch, layout, &rope(of), qkv.plain(), back)
    }

    fn attention(
        &self,
        batch: &CpuBatch,
        spec: &AttentionSpec<Self>,
        qkv: &T,
        out: &mut T,
        lse: &mut T,
    ) -> Result<()> {
        self.at("attention")?;
        self.cpu.attention(batch, &attention(spec), qkv.plain(), out.plain(), lse.plain())
    }

    fn attention_backward(
        &self,
        batch: &CpuBatch,
        spec: &AttentionSpec<Self>,
        qkv: &T,
        out: &T,
        lse: &T,
        dout: &T,
        dqkv: &mut T,
    ) -> Result<()> {
        self.at("attention_backward")?;
        let spec = attention(spec);
        self.cpu.attention_backward(
            batch,
            &spec,
            qkv.plain(),
            out.plain(),
            lse.plain(),
            dout.plain(),
            dqkv.plain(),
        )
    }

    fn cache_write(
        &self,
        batch: &CpuBatch,
        layout: &QkvLayout,
        of: Option<&Rope<Self>>,
        positions: usize,
        qkv: &mut T,
        keys: &mut T,
        values: &mut T,
    ) -> Result<()> {
        self.at("cache_write")?;
        let [qkv, keys, values] = [qkv, keys, values].map(Plain::plain);
        self.cpu.cache_write(batch, layout, of.map(rope).as_ref(), positions, qkv, keys, values)
    }

    fn attention_cached(
        &self,
        batch: &CpuBatch,
        spec: &AttentionSpec<Self>,
        positions: usize,
        qkv: &T,
        keys: &T,
        values: &T,
        out: &mut T,
    ) -> Result<()> {
        let spec = attention(spec);
        let [qkv, keys, values] = [qkv, keys, values].map(Plain::plain);
        self.cpu.attention_cached(batch, &spec, positions, qkv, keys, values, out.plain())
    }

    fn moment_bytes(parameters: usize, storage: MomentStorage) -> u64 {
        if storage.paged { 0 } else { storage.bytes(parameters) }
    }

    fn new_moments(&self, parameters: usize, storage: MomentStorage) -> Result<M> {
        let bytes = Self::moment_bytes(parameters, storage);
        self.hold("new_moments", bytes, || self.cpu.new_moments(parameters, storage))
    }

    operations! {
        upload(values: &[f32], tensor: &mut T);
        download(tensor: &T, values: &mut [f32]);
        clear(tensor: &mut T);
        download_weight(weight: &CpuWeight, rows: Range<usize>, values: &mut Vec<f32>);
        offload(tokens: usize, from: &T, to: &mut CpuTensor);
        fetch(tokens: usize, from: &CpuTensor, to: &mut T);
        await_copy(buffer: &CpuTensor);
        load_batch(batch: &FlatBatch, into: &mut CpuBatch);
        embed(batch: &CpuBatch, table: &CpuWeight, x: &mut T);
        norm(tokens: usize, spec: NormSpec, x: &T, weight: &T, bias: Option<&T>, y: &mut T, stats: &mut T);
        norm_backward(
            tokens: usize, spec: NormSpec, x: &T, weight: &T, stats: &T, dy: &T, dx: &mut T, write: Write
        );
        head_norm(tokens: usize, layout: &QkvLayout, eps: f32, raw: &T, q: &T, k: &T, qkv: &mut T);
        head_norm_backward(tokens: usize, layout: &QkvLayout, eps: f32, raw: &T, q: &T, k: &T, dqkv: &mut T);
        add(tokens: usize, x: &T, y: &mut T);
        copy(tokens: usize, x: &T, y: &mut T);
        copy_rows(tensor: &mut T, from: Range<usize>, to: usize);
        activation(tokens: usize, kind: Activation, x: &T, y: &mut T);
        activation_backward(tokens: usize, kind: Activation, dy: &T, x: &mut T);
        gather_targets(batch: &CpuBatch, targets: Range<usize>, x: &T, y: &mut T);
        gather_last(batch: &CpuBatch, x: &T, y: &mut T);
        scatter_targets(batch: &CpuBatch, targets: Range<usize>, x: &T, y: &mut T);
        cross_entropy(
            batch: &CpuBatch, targets: Range<usize>, logits: &mut T, loss: &mut T, gradient: Option<f32>
        );
        grad_norm(grads: &T, norm: &mut T);
        read_moments(moments: &M) -> HostMoments;
        write_moments(from: &HostMoments, moments: &mut M);
        adamw(spec: AdamW, grads: &T, norm: &T, params: &mut T, moments: &mut M);
    }
}
