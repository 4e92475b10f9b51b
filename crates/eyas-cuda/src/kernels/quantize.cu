// 4-bit quantisation as bitsandbytes stores it, and conversions between element types.

// The element types of a source, by number: 0 f32, 1 bf16, 2 f16.
__device__ __forceinline__ float read_element(const void *src, int type, u64 i) {
    if (type == 0) return ((const float *)src)[i];
    if (type == 1) return to_f32(((const bf16 *)src)[i]);
    return to_f32(((const f16 *)src)[i]);
}

struct Decision {
    float thresholds[15];
    u8 codes[16];
};

// A warp a block of block_size values; `first` is the flat index of the source's first value, a multiple of the block
// size. The weight has `total` values; its short last block has a scale of at least 1e-38 and is divided by it.
KERNEL void quantize_blocks(const void *src, int type, u64 first, u64 count, u64 total, int block_size, Decision decision,
                            u8 *packed, float *absmax, u64 *bad_index) {
    __shared__ float thresholds[15];
    __shared__ u8 codes[16];
    if (threadIdx.x < 15) thresholds[threadIdx.x] = decision.thresholds[threadIdx.x];
    if (threadIdx.x < 16) codes[threadIdx.x] = decision.codes[threadIdx.x];
    __syncthreads();
    const int lane = threadIdx.x % 32;
    const u64 block = (blockIdx.x * (u64)blockDim.x + threadIdx.x) / 32;
    const u64 start = block * block_size;
    if (start >= count) return;
    const u64 left = total - first - start;
    const int size = left < block_size ? (int)left : block_size;
    float top = 0.0f;
    for (int i = lane; i < size; i += 32) {
        const float v = fabsf(read_element(src, type, start + i));
        if (!(v < INF)) atomicMin(bad_index, first + start + i);
        top = fmaxf(top, v);
    }
    top = warp_max(top);
    const bool tail = size < block_size;
    if (tail) top = fmaxf(top, 1e-38f);
    const float inverse = __fdiv_rn(1.0f, fmaxf(top, 1e-38f));
    if (lane == 0) absmax[(first + start) / block_size] = top;
    for (int pair = lane; pair * 2 < size; pair += 32) {
        u32 byte = 0;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int i = pair * 2 + j;
            // An odd last value is filled up with zero.
            const float raw = i < size ? read_element(src, type, start + i) : 0.0f;
            const float v = tail ? __fdiv_rn(raw, top) : __fmul_rn(raw, inverse);
            int below = 0;
#pragma unroll
            for (int k = 0; k < 15; k++) below += v > thresholds[k];
            byte = byte << 4 | codes[below];
        }
        packed[(first + start) / 2 + pair] = (u8)byte;
    }
}

// tables[16] = the mean of n scales. One block; the f64 sum makes the order immaterial.
KERNEL __launch_bounds__(1024) void mean_absmax(const float *absmax, u64 n, float *tables) {
    __shared__ double sums[1024];
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < n; i += 1024) sum += absmax[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int i = 512; i > 0; i >>= 1) {
        if (threadIdx.x < i) sums[threadIdx.x] += sums[threadIdx.x + i];
        __syncthreads();
    }
    if (threadIdx.x == 0) tables[16] = n ? (float)(sums[0] / (double)n) : 0.0f;
}

// Scales less their mean, in blocks of 256 on the signed 8-bit map (tables[17 ..]). 256 threads, one a scale.
KERNEL __launch_bounds__(256) void quantize_absmax(const float *absmax, u64 n, const float *tables, u8 *codes,
                                                   float *nested_absmax) {
    __shared__ float midpoints[256];
    const int t = threadIdx.x;
    midpoints[t] = t < 255 ? (tables[17 + t] + tables[18 + t]) * 0.5f : INF;
    const u64 i = blockIdx.x * (u64)256 + t;
    const float v = i < n ? __fsub_rn(absmax[i], tables[16]) : 0.0f;
    const float top = block_max(fabsf(v));
    __syncthreads();
    const float scaled = __fmul_rn(v, __fdiv_rn(1.0f, fmaxf(top, 1e-38f)));
    int code = 0;
    for (int step = 128; step > 0; step >>= 1) code += scaled > midpoints[code + step - 1] ? step : 0;
    if (i < n) codes[i] = (u8)code;
    if (t == 0) nested_absmax[blockIdx.x] = top;
}

// n elements from one type to another.
KERNEL void convert(const void *src, int type, void *dst, int to, u64 n) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        const float v = read_element(src, type, i);
        if (to == 0) ((float *)dst)[i] = v;
        if (to == 1) ((bf16 *)dst)[i] = from_f32<bf16>(v);
        if (to == 2) ((f16 *)dst)[i] = from_f32<f16>(v);
    }
}
