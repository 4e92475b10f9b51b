// Activations, eight columns a thread. Row-major x [tokens, F * fan_in], y [tokens, F].

__device__ __forceinline__ float gelu_erf(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }
__device__ __forceinline__ float gelu_erf_slope(float x) {
    const float phi = 0.39894228040143268f * expf(-0.5f * x * x);
    return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * phi;
}
// 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
__device__ __forceinline__ float gelu_tanh_gate(float x) {
    const float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    return 1.0f / (1.0f + fast_exp(-2.0f * u));
}
__device__ __forceinline__ float gelu_tanh_slope(float x) {
    const float gate = gelu_tanh_gate(x);
    const float slope = 0.79788456080286536f * (1.0f + 3.0f * 0.044715f * x * x);
    return gate + 2.0f * x * gate * (1.0f - gate) * slope;
}
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

enum { GELU, GELU_TANH, SWIGLU };

KERNEL void activation(const elem *x, elem *y, u64 chunks, int f, int kind, int vec) {
    await_previous();
    const int row_chunks = (f + 7) / 8;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < chunks; i += (u64)gridDim.x * blockDim.x) {
        const u64 row = i / row_chunks;
        const int col = (int)(i - row * row_chunks) * 8;
        const elem *in = x + row * f * (kind == SWIGLU ? 2 : 1);
        float v[8], up[8];
        load8(in, col, f, vec, v);
        if (kind == SWIGLU) {
            load8(in + f, col, f, vec, up);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = v[j] * sigmoid(v[j]) * up[j];
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = kind == GELU ? gelu_erf(v[j]) : v[j] * gelu_tanh_gate(v[j]);
        }
        store8(y + row * f, col, f, vec, v);
    }
}

// In place: x becomes its gradient.
KERNEL void activation_backward(const elem *dy, elem *x, u64 chunks, int f, int kind, int vec) {
    const int row_chunks = (f + 7) / 8;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < chunks; i += (u64)gridDim.x * blockDim.x) {
        const u64 row = i / row_chunks;
        const int col = (int)(i - row * row_chunks) * 8;
        const u64 start = row * f * (kind == SWIGLU ? 2 : 1);
        float v[8], g[8], up[8];
        load8(x + start, col, f, vec, v);
        load8(dy + row * f, col, f, vec, g);
        if (kind == SWIGLU) {
            load8(x + start + f, col, f, vec, up);
            float dup[8];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float s = sigmoid(v[j]);
                dup[j] = g[j] * v[j] * s;
                v[j] = g[j] * up[j] * s * (1.0f + v[j] * (1.0f - s));
            }
            store8(x + start + f, col, f, vec, dup);
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = g[j] * (kind == GELU ? gelu_erf_slope(v[j]) : gelu_tanh_slope(v[j]));
        }
        store8(x + start, col, f, vec, v);
    }
}
