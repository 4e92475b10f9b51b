//! The NVIDIA implementation of the `Backend` trait: kernels compiled at first use, cuBLASLt, no toolkit to build.
