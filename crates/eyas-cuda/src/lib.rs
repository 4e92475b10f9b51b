//! The NVIDIA implementation of the [`Backend`](eyas_backend::Backend) trait.
//!
//! Nothing of NVIDIA's is needed to build this crate or to run a program that holds it. The driver, NVRTC and cuBLASLt
//! are opened when [`CudaBackend::new`] is called; kernels are CUDA C++ sources inside the binary, compiled for the
//! card at first use and kept on disk (`compile.rs`). Without a card or a library the error says what to install, and
//! [`probe`] reports what is there.
//!
//! A kernel file is registered by a line of `kernels/manifest.txt` and of the source table in `kernels.rs`; it is
//! launched by its name (`Kernels::launch`).

mod activation;
mod attention;
mod attention_flash;
mod attention_shapes;
mod backend;
mod batch;
mod cache;
mod compile;
mod device;
mod elementwise;
mod few_mma;
mod few_rows;
mod kernels;
mod library;
mod loss;
mod matmul;
mod moments;
mod norm;
mod offload;
mod operations;
mod optimizer;
mod probe;
mod profile;
mod project;
mod recording;
mod reserve;
mod rope;
mod scratch;
mod staging;
mod tensor;
mod thin;
mod weight;

pub use backend::{CudaBackend, CudaOptions, MemoryUse};
pub use batch::CudaBatch;
pub use library::LibraryInfo;
pub use moments::CudaMoments;
pub use offload::CudaHostBuffer;
pub use probe::{CudaReport, DeviceInfo, probe};
pub use project::LoraPath;
pub use recording::CudaRecording;
pub use tensor::CudaTensor;
pub use weight::CudaWeight;
