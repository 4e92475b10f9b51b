//! The table of kernels, and how one is launched.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, OnceLock};

use cudarc::driver::{result, sys};
use eyas_backend::{Dtype, Error, Result};

use crate::compile::Compiler;
use crate::device::{Device, Ptr};

const MANIFEST: &str = include_str!("kernels/manifest.txt");
const PRELUDE: &str = include_str!("kernels/prelude.cuh");

const FLASH: &str = include_str!("kernels/flash.cuh");

/// A file of flash attention for heads of one size.
macro_rules! sized {
    ($head:literal, $file:literal) => {
        concat!("#define HEAD ", $head, "\n", include_str!(concat!("kernels/", $file)))
    };
}

/// The kernel files. A new one needs a line here and a line in the manifest.
const SOURCES: [(&str, &str); 25] = [
    ("activation", include_str!("kernels/activation.cu")),
    ("attention", include_str!("kernels/attention.cu")),
    ("cache", include_str!("kernels/cache.cu")),
    ("elementwise", include_str!("kernels/elementwise.cu")),
    ("few_mma", include_str!("kernels/few_mma.cu")),
    ("few_rows", include_str!("kernels/few_rows.cu")),
    ("flash_backward_128", sized!(128, "flash_backward.cu")),
    ("flash_backward_256", sized!(256, "flash_backward.cu")),
    ("flash_backward_64", sized!(64, "flash_backward.cu")),
    ("flash_backward_96", sized!(96, "flash_backward.cu")),
    ("flash_decode_128", sized!(128, "flash_decode.cu")),
    ("flash_decode_256", sized!(256, "flash_decode.cu")),
    ("flash_decode_64", sized!(64, "flash_decode.cu")),
    ("flash_decode_96", sized!(96, "flash_decode.cu")),
    ("flash_forward_128", sized!(128, "flash_forward.cu")),
    ("flash_forward_256", sized!(256, "flash_forward.cu")),
    ("flash_forward_64", sized!(64, "flash_forward.cu")),
    ("flash_forward_96", sized!(96, "flash_forward.cu")),
    ("loss", include_str!("kernels/loss.cu")),
    ("norm", include_str!("kernels/norm.cu")),
    ("optimizer", include_str!("kernels/optimizer.cu")),
    ("quantize", include_str!("kernels/quantize.cu")),
    ("rope", include_str!("kernels/rope.cu")),
    ("thin", include_str!("kernels/thin.cu")),
    ("weight", include_str!("kernels/weight.cu")),
];

/// Kernels that may start before the one in front has ended: they call `await_previous` before they read what another has
/// written. On cards that cannot they follow as any other.
const OVERLAPPING: [&str; 29] = [
    "activation",
    "add_rows",
    "attention_cached",
    "cache_write",
    "copy_rows",
    "embed_dense",
    "embed_quantized",
    "few_mma",
    "few_rows_dense",
    "few_rows_hidden",
    "few_rows_quantized",
    "flash_decode_128",
    "flash_decode_256",
    "flash_decode_64",
    "flash_decode_96",
    "flash_decode_combine_128",
    "flash_decode_combine_256",
    "flash_decode_combine_64",
    "flash_decode_combine_96",
    "gather_rows",
    "head_norm",
    "norm_forward",
    "rope",
    "rope_cached",
    "some_mma_2",
    "some_mma_4",
    "some_mma_8",
    "some_mma_finish",
    "some_rows_hidden",
];

/// A line of the manifest.
#[derive(Debug, PartialEq)]
struct Entry {
    file: &'static str,
    elements: Vec<&'static str>,
    kernels: Vec<&'static str>,
}

fn manifest() -> impl Iterator<Item = Entry> {
    MANIFEST.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).filter_map(|line| {
        let mut words = line.split_whitespace();
        let (file, elements) = (words.next()?, words.next()?);
        Some(Entry { file, elements: elements.split(',').collect(), kernels: words.collect() })
    })
}

pub(crate) fn element_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
        Dtype::F16 => "f16",
    }
}

/// A file compiled for an element type.
#[derive(Debug)]
struct Module {
    file: &'static str,
    source: &'static str,
    element: &'static str,
    functions: Vec<&'static str>,
    loaded: OnceLock<HashMap<&'static str, Function>>,
}

#[derive(Clone, Copy, Debug)]
struct Function {
    handle: sys::CUfunction,
    overlaps: bool,
}

// SAFETY: function handles may be used from any thread with the context current.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// How many threads run a kernel, and the shared memory of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

impl Grid {
    pub(crate) fn new(blocks: usize, threads: u32) -> Self {
        Self { blocks: [blocks as u32, 1, 1], threads, shared: 0 }
    }

    /// Blocks in two directions.
    pub(crate) fn plane(x: usize, y: usize, threads: u32) -> Self {
        Self { blocks: [x as u32, y as u32, 1], threads, shared: 0 }
    }

    /// Blocks of 256 threads for `items` in a loop over the grid: enough to fill any card.
    pub(crate) fn over(items: usize) -> Self {
        Self::new(items.div_ceil(256).clamp(1, 132 * 64), 256)
    }
}

/// A value that a kernel takes, of the same size and layout there.
///
/// # Safety
/// Implemented for types whose bytes are what the kernel expects.
pub(crate) unsafe trait KernelArg: Copy {}
// SAFETY: plain numbers of the same size in CUDA C++.
unsafe impl KernelArg for i32 {}
// SAFETY: as above.
unsafe impl KernelArg for u32 {}
// SAFETY: as above.
unsafe impl KernelArg for u64 {}
// SAFETY: as above.
unsafe impl KernelArg for f32 {}
// SAFETY: a pointer of 64 bits.
unsafe impl KernelArg for Ptr {}

pub(crate) fn kernel_arg<T: KernelArg>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

/// The arguments of a launch, in the kernel's order.
macro_rules! args {
    ($($value:expr),* $(,)?) => { &mut [$($crate::kernels::kernel_arg(&$value)),*] };
}
pub(crate) use args;

/// All kernels of the manifest for one card, compiled at first use.
#[derive(Debug)]
pub(crate) struct Kernels {
    device: Arc<Device>,
    compiler: Compiler,
    modules: Vec<Module>,
    /// Kernel name and element type to module.
    index: HashMap<(&'static str, &'static str), usize>,
}

impl Kernels {
    /// Opens NVRTC and compiles what `element` needs, on several threads, unless the cache has it.
    pub(crate) fn new(device: &Arc<Device>, element: Dtype) -> Result<Self> {
        let compiler = Compiler::new(device.limits.sm)?;
        let (mut modules, mut index) = (Vec::new(), HashMap::new());
        for entry in manifest() {
            let source = SOURCES.iter().find(|(file, _)| *file == entry.file).map(|(_, source)| *source);
            let source = source.ok_or_else(|| unknown(entry.file))?;
            for element in entry.elements {
                index.extend(entry.kernels.iter().map(|kernel| ((*kernel, element), modules.len())));
                let (file, functions) = (entry.file, entry.kernels.clone());
                modules.push(Module { file, source, element, functions, loaded: OnceLock::new() });
            }
        }
        let kernels = Self { device: Arc::clone(device), compiler, modules, index };
        kernels.prepare(element_name(element))?;
        Ok(kernels)
    }

    fn prepare(&self, element: &str) -> Result<()> {
        let wanted: Vec<&Module> = self
            .modules
            .iter()
            // Which sizes of heads there are, the first call of attention tells.
            .filter(|m| !m.file.starts_with("flash_"))
            .filter(|m| m.element == element || m.functions.contains(&"adamw") || m.file == "quantize")
            .collect();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(wanted.len());
        let cubins: Vec<OnceLock<Result<Vec<u8>>>> = wanted.iter().map(|_| OnceLock::new()).collect();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let Some(module) = wanted.get(i) else { break };
                        let _ = cubins[i].set(self.cubin(module));
                    }
                });
            }
        });
        for (module, cubin) in wanted.into_iter().zip(cubins) {
            let cubin = cubin.into_inner().unwrap_or_else(|| self.cubin(module))?;
            let functions = self.load(module, &cubin)?;
            let _ = module.loaded.set(functions);
        }
        Ok(())
    }

    fn cubin(&self, module: &Module) -> Result<Vec<u8>> {
        let source = format!("{PRELUDE}\n#line 1 \"{}.cu\"\n{}", module.file, module.source);
        let source = source.replace("#include \"flash.cuh\"\n", FLASH);
        self.compiler.cubin(module.file, &source, module.element)
    }

    fn load(&self, module: &Module, cubin: &[u8]) -> Result<HashMap<&'static str, Function>> {
        self.device.bind()?;
        let fail = |e| self.device.error(&format!("loading {}.cu", module.file), e);
        // SAFETY: NVRTC's machine code carries its own length; it stays alive during the call. Modules live as long as
        // the context.
        let handle = unsafe { result::module::load_data(cubin.as_ptr().cast()) }.map_err(fail)?;
        let mut functions = HashMap::new();
        for &name in &module.functions {
            let text = CString::new(name).map_err(|_| unknown(name))?;
            // SAFETY: the module is loaded.
            let function = unsafe { result::module::get_function(handle, text) }.map_err(fail)?;
            let overlaps = self.device.limits.sm >= (9, 0) && OVERLAPPING.contains(&name);
            functions.insert(name, Function { handle: function, overlaps });
        }
        Ok(functions)
    }

    fn function(&self, kernel: &'static str, element: Dtype) -> Result<Function> {
        let index = self
            .index
            .get(&(kernel, element_name(element)))
            .or_else(|| self.index.get(&(kernel, "f32")))
            .ok_or_else(|| unknown(kernel))?;
        let module = &self.modules[*index];
        let functions = match module.loaded.get() {
            Some(functions) => functions,
            None => {
                let functions = self.load(module, &self.cubin(module)?)?;
                module.loaded.get_or_init(|| functions)
            }
        };
        functions.get(kernel).copied().ok_or_else(|| unknown(kernel))
    }

    /// Queues a kernel. `args` are the kernel's parameters in its order, made by [`args!`]; buffers behind their
    /// pointers live until the kernel has run, which holds for all memory of a [`Device`]: freeing waits.
    ///
    /// Empty grids launch nothing.
    pub(crate) fn launch(
        &self,
        kernel: &'static str,
        element: Dtype,
        grid: Grid,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        self.device.bind()?;
        let function = self.function(kernel, element)?;
        let fail = |e| self.device.error(&format!("launching {kernel}"), e);
        if grid.shared > 48 << 10 {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a loaded module.
            unsafe {
                result::function::set_function_attribute(function.handle, attribute, grid.shared as i32)
            }
            .map_err(fail)?;
        }
        let [x, y, z] = grid.blocks;
        let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
        value.programmaticStreamSerializationAllowed = 1;
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value,
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.device.stream(),
            attrs: &mut overlap,
            numAttrs: u32::from(function.overlaps),
        };
        // SAFETY: the arguments match the kernel's parameters, which the parity tests of every operation exercise; a
        // kernel that overlaps waits before it touches what others write.
        unsafe {
            sys::cuLaunchKernelEx(&config, function.handle, args.as_mut_ptr(), std::ptr::null_mut()).result()
        }
        .map_err(fail)
    }
}

fn unknown(name: &str) -> Error {
    Error::Device { device: "CUDA".into(), reason: format!("{name} is not in the table of kernels") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names after `KERNEL`, its launch bounds aside; macros that make kernels name them by pasting. Of a source for heads
    /// of one size, the kernels for that size.
    fn kernels_of(source: &str) -> Vec<String> {
        let mut names = Vec::new();
        for rest in source.split("KERNEL ").skip(1) {
            let Some(start) = rest.find("void ") else { continue };
            let name: String = rest[start + 5..]
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '#')
                .collect();
            match name.strip_suffix("##R") {
                Some(stem) => names.extend(["32", "64", "96"].map(|r| format!("{stem}{r}"))),
                None => names.push(name),
            }
        }
        names.sort();
        if let Some(head) = source.strip_prefix("#define HEAD ").and_then(|rest| rest.lines().next()) {
            names.retain(|name| name.ends_with(&format!("_{head}")));
        }
        // A kernel may have a plain version beside the fast one.
        names.dedup();
        names
    }

    #[test]
    fn the_manifest_lists_every_kernel_of_every_file() {
        let entries: Vec<Entry> = manifest().collect();
        assert_eq!(entries.iter().map(|e| e.file).collect::<Vec<_>>(), SOURCES.map(|(file, _)| file));
        for (entry, (_, source)) in entries.iter().zip(SOURCES) {
            let mut listed: Vec<String> = entry.kernels.iter().map(|k| k.to_string()).collect();
            listed.sort();
            assert_eq!(listed, kernels_of(source), "{}.cu", entry.file);
        }
    }

    /// What follows the name of a kernel, up to the next one.
    fn body_of(name: &str) -> &'static str {
        let start = format!("void {name}(");
        let rest = SOURCES.iter().find_map(|(_, source)| source.split_once(&start)).unwrap().1;
        rest.split("\n}\n").next().unwrap_or(rest)
    }

    #[test]
    fn kernels_that_overlap_wait_first() {
        for name in OVERLAPPING {
            // Some only call a template of their file, which then waits.
            let body = body_of(name);
            let called =
                ["hidden<", "some_rows<", "decode<", "combine("].into_iter().find(|call| body.contains(call));
            let waits = match called {
                Some(call) => {
                    let definition = format!("void {}(", call.trim_end_matches(['<', '(']));
                    SOURCES.iter().any(|(_, source)| {
                        source.split_once(&definition).is_some_and(|(_, rest)| {
                            rest.split("\n}\n").next().is_some_and(|body| body.contains("await_previous();"))
                        })
                    })
                }
                None => body.contains("await_previous();"),
            };
            assert!(waits, "{name}");
        }
    }

    #[test]
    fn kernel_names_are_unique() {
        let mut names: Vec<&str> = manifest().flat_map(|entry| entry.kernels).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
