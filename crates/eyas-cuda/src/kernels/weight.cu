// Frozen weights as the products read them: [rows, ld] in the activations' type, with spare columns for the low-rank part.

// Eight values a thread and turn: four bytes of codes in, sixteen bytes out, both coalesced; four turns in flight.
// cols is a multiple of 8 and the block size one of 32.
KERNEL __launch_bounds__(256) void dequantize(Quantized q, u32 chunks, u32 row_chunks, elem *out, u64 ld) {
    // One copy of the 16 levels for each lane: no bank conflict whatever the codes.
    __shared__ float levels[16][32];
    __shared__ float map[256];
    const int lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < 512; i += 256) levels[i / 32][i % 32] = q.tables[i / 32];
    if (q.nested) map[threadIdx.x] = q.tables[17 + threadIdx.x];
    const float offset = q.tables[16];
    __syncthreads();
    const u32 first = blockIdx.x * 1024 + threadIdx.x;
    u32 codes[4];
    float scale[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 chunk = first + i * 256;
        if (chunk >= chunks) continue;
        codes[i] = ((const u32 *)q.packed)[chunk];
        const u32 block = chunk >> (q.block_shift - 3);
        scale[i] = q.nested ? __fadd_rn(__fmul_rn(map[q.codes[block]], q.absmax[block / (u32)q.nested_block_size]), offset)
                            : q.absmax[block];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 chunk = first + i * 256;
        if (chunk >= chunks) continue;
        float v[8];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u32 byte = codes[i] >> (8 * j);
            v[2 * j] = levels[byte >> 4 & 15][lane] * scale[i];
            v[2 * j + 1] = levels[byte & 15][lane] * scale[i];
        }
        const u32 row = chunk / row_chunks;
        Eight<elem>::store(out + row * ld + (chunk - row * row_chunks) * 8, v);
    }
}

// The same for any shape, a value a thread.
KERNEL void dequantize_any(Quantized q, u64 n, u32 cols, elem *out, u64 ld) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        const u64 row = i / cols;
        out[row * ld + (i - row * cols)] = from_f32<elem>(quantized_value(q, i));
    }
}

__device__ __forceinline__ float read_element(const void *src, int type, u64 i) {
    if (type == 0) return ((const float *)src)[i];
    if (type == 1) return to_f32(((const bf16 *)src)[i]);
    return to_f32(((const f16 *)src)[i]);
}

// A dense weight of type 0 f32, 1 bf16, 2 f16.
KERNEL void dense_to_wide(const void *src, int type, u64 n, u32 cols, elem *out, u64 ld) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        const u64 row = i / cols;
        out[row * ld + (i - row * cols)] = from_f32<elem>(read_element(src, type, i));
    }
}

// The spare columns [spare] of `rows` rows: scaling * b [rows, r] in columns start .. start + r, zero elsewhere.
// Without b all are zero.
KERNEL void widen(elem *out, u64 ld, int rows, int spare, const float *b, int start, int r, float scaling) {
    const u64 n = (u64)rows * spare;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        const u64 row = i / spare;
        const int col = (int)(i - row * spare) - start;
        out[row * ld + col + start] = from_f32<elem>(b && col >= 0 && col < r ? scaling * b[row * r + col] : 0.0f);
    }
}

// Values first .. first + n of a weight as f32: as the products see them where it is quantised, as kept where dense.
KERNEL void read_quantized(Quantized q, u64 first, u64 n, float *out) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)
        out[i] = to_f32(from_f32<elem>(quantized_value(q, first + i)));
}
KERNEL void read_dense(const void *src, int type, u64 first, u64 n, float *out) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)
        out[i] = read_element(src, type, first + i);
}
