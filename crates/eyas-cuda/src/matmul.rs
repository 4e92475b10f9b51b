//! Large products through cuBLASLt, with plans of our own: descriptors are made once a shape, the algorithm is chosen
//! once by timing the heuristic's candidates, and the choice is kept on disk so that a later run computes the same bits.

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtMatmulDescAttributes_t as DescAttribute,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cudaDataType_t as DataType,
};
use eyas_backend::{Dtype, Error, Result};
use sha2::{Digest, Sha256};

use crate::compile::{cache_folder, hex, read_entry, write_entry};
use crate::device::{Buffer, Device, Ptr};
use crate::library::Lib;

/// What NVIDIA recommends for Hopper is 32 MiB.
pub(crate) const WORKSPACE: usize = 64 << 20;
/// Algorithms that are timed.
const CANDIDATES: usize = 8;
/// Runs of each that are timed.
const TIMED_RUNS: usize = 3;

/// A product with a weight `[out, in]` of leading size `ldw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    /// `y [tokens, out] = x [tokens, in] w^T`
    Forward,
    /// `dx [tokens, in] = dy [tokens, out] w`
    InputGradient,
}

/// One product, row-major.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub(crate) direction: Direction,
    pub(crate) tokens: usize,
    pub(crate) out_features: usize,
    pub(crate) in_features: usize,
    pub(crate) weight: Ptr,
    pub(crate) ldw: usize,
    pub(crate) input: Ptr,
    pub(crate) ld_input: usize,
    pub(crate) output: Ptr,
    pub(crate) ld_output: usize,
    /// Add to the output.
    pub(crate) add: bool,
    /// Added to each row, in the activations' type.
    pub(crate) bias: Option<Ptr>,
}

/// What decides a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    direction: Direction,
    tokens: usize,
    features: [usize; 2],
    leading: [usize; 3],
    alignments: [u32; 3],
    add: bool,
    bias: bool,
}

#[derive(Debug)]
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `Matmul::describe`, destroyed once.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.desc);
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}

#[derive(Debug)]
struct State {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    plans: HashMap<Key, Plan>,
}

/// The algorithms chosen in this process, by the kind of card and a key whose tokens are rounded up. Cards of a kind share
/// them, and choose one after the other: replicas that work side by side compute with the same algorithms, in the run that
/// chooses as in those that read the choice.
type Chosen = HashMap<(Arc<str>, Key), sys::cublasLtMatmulAlgo_t>;

fn chosen() -> MutexGuard<'static, Chosen> {
    static CHOSEN: LazyLock<Mutex<Chosen>> = LazyLock::new(Mutex::default);
    CHOSEN.lock().unwrap_or_else(PoisonError::into_inner)
}

// SAFETY: cuBLASLt's handle and descriptors are plain host objects; the mutex around the state serialises their use.
unsafe impl Send for State {}

/// cuBLASLt on one device, for one type of activations.
#[derive(Debug)]
pub(crate) struct Matmul {
    device: Arc<Device>,
    dtype: Dtype,
    /// All that decides an algorithm besides the key: the card, the library's version and the type.
    kind: Arc<str>,
    cache: Option<PathBuf>,
    state: Mutex<State>,
}

impl Drop for Matmul {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.plans.clear();
        // SAFETY: the handle is destroyed once, after what was made with it.
        let _ = unsafe { lt::destroy_handle(state.handle) };
    }
}

fn data_type(dtype: Dtype) -> DataType {
    match dtype {
        Dtype::F32 => DataType::CUDA_R_32F,
        Dtype::Bf16 => DataType::CUDA_R_16BF,
        Dtype::F16 => DataType::CUDA_R_16F,
    }
}

/// Token counts share an algorithm within an eighth of an octave.
fn bucket(tokens: usize) -> usize {
    let step = 1 << tokens.max(1).ilog2().saturating_sub(3);
    tokens.next_multiple_of(step)
}

/// The largest power of two, at most 256, that an address and its rows are multiples of.
fn alignment(ptr: Ptr, row_bytes: usize) -> u32 {
    1 << (ptr.0 | row_bytes as u64 | 256).trailing_zeros()
}

impl Matmul {
    pub(crate) fn new(device: &Arc<Device>, dtype: Dtype) -> Result<Self> {
        Lib::CublasLt.require()?;
        device.bind()?;
        let handle = lt::create_handle().map_err(|e| Error::Device {
            device: device.name.clone(),
            reason: format!("cuBLASLt does not start: {e}"),
        })?;
        // SAFETY: the library is open and the symbol was checked.
        let version = unsafe { sys::cublasLtGetVersion() };
        let workspace = device.alloc(WORKSPACE)?;
        let state = State { handle, workspace, plans: HashMap::new() };
        Ok(Self {
            device: Arc::clone(device),
            dtype,
            kind: format!("{} {:?} {version} {dtype:?}", device.name, device.limits.sm).into(),
            cache: cache_folder().map(|folder| folder.join("plans")),
            state: Mutex::new(state),
        })
    }

    fn error(&self, product: &Product, e: lt::CublasError) -> Error {
        if e.0 == sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED {
            return self.device.no_reserve();
        }
        Error::Device {
            device: self.device.name.clone(),
            reason: format!(
                "cuBLASLt, {:?} of {} tokens, {} x {}: {e}",
                product.direction, product.tokens, product.out_features, product.in_features
            ),
        }
    }

    /// Queues a product. `spare` is memory that nobody uses now, and its bytes: a product that adds to its output is
    /// timed there.
    pub(crate) fn run(&self, product: &Product, spare: (Ptr, usize)) -> Result<()> {
        if product.tokens == 0 || product.out_features == 0 {
            return Ok(());
        }
        self.device.bind()?;
        let size = self.dtype.size();
        let key = Key {
            direction: product.direction,
            tokens: product.tokens,
            features: [product.out_features, product.in_features],
            leading: [product.ldw, product.ld_input, product.ld_output],
            alignments: [
                alignment(product.weight, product.ldw * size),
                alignment(product.input, product.ld_input * size),
                alignment(product.output, product.ld_output * size),
            ],
            add: product.add,
            bias: product.bias.is_some(),
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.plans.contains_key(&key) {
            let plan = self.plan(&state, key, product, spare)?;
            state.plans.insert(key, plan);
        }
        let plan = &state.plans[&key];
        self.set_bias(plan, product)?;
        self.queue(&state, plan, &plan.algorithm, product)
    }

    fn set_bias(&self, plan: &Plan, product: &Product) -> Result<()> {
        let Some(bias) = product.bias else { return Ok(()) };
        self.set(plan.desc, DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.0, product)
    }

    fn set<T>(
        &self,
        desc: sys::cublasLtMatmulDesc_t,
        attribute: DescAttribute,
        value: &T,
        product: &Product,
    ) -> Result<()> {
        // SAFETY: the descriptor is alive, the value is as long as said.
        unsafe {
            lt::set_matmul_desc_attribute(desc, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
        .map_err(|e| self.error(product, e))
    }

    fn queue(
        &self,
        state: &State,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        product: &Product,
    ) -> Result<()> {
        let output = product.output;
        let (alpha, beta) = (1.0f32, if product.add { 1.0f32 } else { 0.0 });
        let [a, b, d] = plan.layouts;
        // SAFETY: the layouts describe live buffers that the caller passes; scalars are read during the call.
        unsafe {
            lt::matmul(
                state.handle,
                plan.desc,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                product.weight.0 as *const c_void,
                a,
                product.input.0 as *const c_void,
                b,
                output.0 as *const c_void,
                d,
                output.0 as *mut c_void,
                d,
                algorithm,
                state.workspace.ptr().0 as *mut c_void,
                WORKSPACE,
                self.device.stream().cast(),
            )
        }
        .map_err(|e| self.error(product, e))
    }

    /// Descriptors: cuBLASLt is column-major, so a row-major matrix is its own transpose there.
    fn describe(&self, product: &Product) -> Result<Plan> {
        let fail = |e| self.error(product, e);
        let kind = data_type(self.dtype);
        let desc = lt::create_matmul_desc(Compute::CUBLAS_COMPUTE_32F, DataType::CUDA_R_32F).map_err(fail)?;
        let mut plan = Plan {
            desc,
            layouts: [std::ptr::null_mut(); 3],
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        let (out, inn, tokens) =
            (product.out_features as u64, product.in_features as u64, product.tokens as u64);
        let (input_rows, output_rows) = match product.direction {
            Direction::Forward => (inn, out),
            Direction::InputGradient => (out, inn),
        };
        // Set one by one, so that those already made are destroyed when the next fails.
        plan.layouts[0] = lt::create_matrix_layout(kind, inn, out, product.ldw as i64).map_err(fail)?;
        plan.layouts[1] =
            lt::create_matrix_layout(kind, input_rows, tokens, product.ld_input as i64).map_err(fail)?;
        plan.layouts[2] =
            lt::create_matrix_layout(kind, output_rows, tokens, product.ld_output as i64).map_err(fail)?;
        let transpose = i32::from(product.direction == Direction::Forward);
        self.set(plan.desc, DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, &transpose, product)?;
        if product.bias.is_some() {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            self.set(plan.desc, DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, product)?;
            self.set_bias(&plan, product)?;
        }
        Ok(plan)
    }

    fn plan(&self, state: &State, key: Key, product: &Product, spare: (Ptr, usize)) -> Result<Plan> {
        let mut plan = self.describe(product)?;
        let tuned_key = Key { tokens: bucket(key.tokens), ..key };
        let mut chosen = chosen();
        let known = chosen.get(&(Arc::clone(&self.kind), tuned_key)).copied();
        let known = known.or_else(|| self.read_choice(&tuned_key));
        if let Some(algorithm) = known
            && self.is_valid(state, &plan, &algorithm)
        {
            chosen.insert((Arc::clone(&self.kind), tuned_key), algorithm);
            plan.algorithm = algorithm;
            return Ok(plan);
        }
        let candidates = self.candidates(state, &plan, &key, product)?;
        plan.algorithm = candidates[0];
        // A known algorithm that does not fit these tokens is no reason to change it for the others.
        if candidates.len() > 1 && known.is_none() {
            let row = product.ld_output * self.dtype.size();
            // A product that only sets its output may be run as often as one likes; one that adds needs another.
            let trial = match product.add {
                false => Product { ..*product },
                true => Product { output: spare.0, tokens: product.tokens.min(spare.1 / row), ..*product },
            };
            if trial.tokens == 0 {
                tracing::debug!("no room to time products of {} tokens", product.tokens);
                return Ok(plan);
            }
            let trial_plan = self.describe(&trial)?;
            if let Some(algorithm) = self.fastest(state, &trial_plan, &candidates, &trial)?
                && self.is_valid(state, &plan, &algorithm)
            {
                plan.algorithm = algorithm;
            }
            self.write_choice(&tuned_key, &plan.algorithm);
        }
        if known.is_none() {
            chosen.insert((Arc::clone(&self.kind), tuned_key), plan.algorithm);
        }
        Ok(plan)
    }

    fn is_valid(&self, state: &State, plan: &Plan, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let [a, b, d] = plan.layouts;
        let mut result = std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        // SAFETY: all descriptors are alive, the out-pointer is valid.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(state.handle, plan.desc, a, b, d, d, algorithm, result.as_mut_ptr())
        };
        if status != sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
            return false;
        }
        // SAFETY: zero bytes are a valid value, and the call has filled it.
        let result = unsafe { result.assume_init() };
        result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && result.workspaceSize <= WORKSPACE
    }

    /// The heuristic's algorithms, best guess first; at least one.
    fn candidates(
        &self,
        state: &State,
        plan: &Plan,
        key: &Key,
        product: &Product,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let fail = |e| self.error(product, e);
        let preference = lt::create_matmul_pref().map_err(fail)?;
        let set = |attribute: PreferenceAttribute, value: *const c_void, size: usize| {
            // SAFETY: the preference is alive, the value as long as said.
            unsafe { lt::set_matmul_pref_attribute(preference, attribute, value, size) }
        };
        use PreferenceAttribute as P;
        // Sums over pieces of the long axis only where the pieces are added up in the accumulator's type.
        let reductions = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let [a, b, d] = plan.layouts;
        let [align_a, align_b, align_d] = &key.alignments;
        let workspace = WORKSPACE;
        let found = (|| {
            set(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::ptr::from_ref(&workspace).cast(), 8)?;
            set(P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::ptr::from_ref(&reductions).cast(), 4)?;
            set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::ptr::from_ref(align_a).cast(), 4)?;
            set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, std::ptr::from_ref(align_b).cast(), 4)?;
            set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, std::ptr::from_ref(align_d).cast(), 4)?;
            set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, std::ptr::from_ref(align_d).cast(), 4)?;
            let empty = std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
            let mut results = [empty; CANDIDATES];
            let mut count = 0;
            // SAFETY: all descriptors are alive; there is room for as many results as asked for.
            unsafe {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    state.handle,
                    plan.desc,
                    a,
                    b,
                    d,
                    d,
                    preference,
                    CANDIDATES as i32,
                    results.as_mut_ptr().cast(),
                    &mut count,
                )
            }
            .result()?;
            // SAFETY: zero bytes are a valid value, and the call has filled the first `count`.
            let results =
                results[..count.max(0) as usize].iter().map(|result| unsafe { result.assume_init() });
            Ok(results
                .filter(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS)
                .map(|result| result.algo)
                .collect::<Vec<_>>())
        })();
        // SAFETY: made above, destroyed once.
        let _ = unsafe { lt::destroy_matmul_pref(preference) };
        match found {
            Ok(found) if !found.is_empty() => Ok(found),
            Ok(_) => Err(fail(lt::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED))),
            Err(e) => Err(fail(e)),
        }
    }

    fn fastest(
        &self,
        state: &State,
        plan: &Plan,
        candidates: &[sys::cublasLtMatmulAlgo_t],
        product: &Product,
    ) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
        let (start, end) = (self.device.event()?, self.device.event()?);
        let mut best = (f32::INFINITY, None);
        for algorithm in candidates {
            // Made for more tokens than are tried, perhaps.
            if !self.is_valid(state, plan, algorithm) {
                continue;
            }
            self.queue(state, plan, algorithm, product)?;
            start.record()?;
            for _ in 0..TIMED_RUNS {
                self.queue(state, plan, algorithm, product)?;
            }
            end.record()?;
            end.wait()?;
            let time = start.milliseconds_to(&end)?;
            if time < best.0 {
                best = (time, Some(*algorithm));
            }
        }
        Ok(best.1)
    }

    fn choice_file(&self, key: &Key) -> Option<PathBuf> {
        let text = format!("{} {key:?}", self.kind);
        Some(self.cache.as_ref()?.join(hex(&Sha256::digest(text)[..16])))
    }

    fn read_choice(&self, key: &Key) -> Option<sys::cublasLtMatmulAlgo_t> {
        let bytes = read_entry(&self.choice_file(key)?)?;
        let mut data = [0; 8];
        if bytes.len() != 64 {
            return None;
        }
        for (word, bytes) in data.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(sys::cublasLtMatmulAlgo_t { data })
    }

    fn write_choice(&self, key: &Key, algorithm: &sys::cublasLtMatmulAlgo_t) {
        let Some(path) = self.choice_file(key) else { return };
        let bytes: Vec<u8> = algorithm.data.iter().flat_map(|word| word.to_le_bytes()).collect();
        if let Err(e) = write_entry(&path, &bytes) {
            tracing::debug!("the choice of an algorithm cannot be kept: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_at_most_an_eighth_wider() {
        for tokens in 1..5000 {
            let wide = bucket(tokens);
            assert!(wide >= tokens && (wide - tokens) * 8 <= tokens, "{tokens} -> {wide}");
        }
        assert_eq!(bucket(16_384), 16_384);
        assert_eq!(bucket(3), 3);
    }

    #[test]
    fn alignment_is_the_common_power_of_two() {
        assert_eq!(alignment(Ptr(512), 4544 * 2), 128);
        assert_eq!(alignment(Ptr(0x10008), 64), 8);
        assert_eq!(alignment(Ptr(1024), 2 * 37), 2);
    }
}
