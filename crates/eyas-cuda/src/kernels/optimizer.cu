// The gradient's norm, and AdamW over one flat vector.

// The squares of a block's share, the same share whatever the card.
KERNEL __launch_bounds__(256) void grad_norm_partial(const float *grads, u64 n, double *partial) {
    const u64 share = ((n + gridDim.x - 1) / gridDim.x + 3) / 4 * 4;
    const u64 start = blockIdx.x * share, end = start + share < n ? start + share : n;
    double sum = 0.0;
    // Four lanes of four squares each before the slower sum in f64.
    for (u64 i = start + threadIdx.x * 4; i < end; i += blockDim.x * 4 * 4) {
        float inner = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u64 at = i + j * blockDim.x * 4;
            if (at + 4 <= end) {
                const float4 g = *(const float4 *)(grads + at);
                inner += g.x * g.x + g.y * g.y + g.z * g.z + g.w * g.w;
            } else {
                for (u64 k = at; k < end; k++) inner += grads[k] * grads[k];
            }
        }
        sum += inner;
    }
    __shared__ double sums[256];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int i = 128; i > 0; i >>= 1) {
        if (threadIdx.x < i) sums[threadIdx.x] += sums[threadIdx.x + i];
        __syncthreads();
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = sums[0];
}

KERNEL __launch_bounds__(256) void grad_norm_finish(const double *partial, int n, float *norm) {
    __shared__ double sums[256];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += 256) sum += partial[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int i = 128; i > 0; i >>= 1) {
        if (threadIdx.x < i) sums[threadIdx.x] += sums[threadIdx.x + i];
        __syncthreads();
    }
    if (threadIdx.x == 0) *norm = (float)sqrt(sums[0]);
}

struct AdamW {
    float beta2, eps;
    float take1, take2;     // 1 - beta1, 1 - beta2
    float decay;            // 1 - lr * weight_decay
    float step_size;        // lr / (1 - beta1^step)
    float root_correction;  // 1 / sqrt(1 - beta2^step)
    float max_grad_norm;    // infinite: no clipping
    float loss_scale;
};

// What gradients are multiplied by: out of the loss's scale, then clipped; NaN when their norm is.
__device__ __forceinline__ float gradient_scale(const AdamW &c, float norm) {
    float clip = 1.0f;
    if (c.max_grad_norm < INF) {
        const float ratio = c.max_grad_norm / (norm / c.loss_scale + 1e-6f);
        clip = ratio < 1.0f || ratio != ratio ? ratio : 1.0f;
    }
    return clip / c.loss_scale;
}

__device__ __forceinline__ void adamw_value(const AdamW &c, float grad, float &p, float &m, float &v) {
    m = m + c.take1 * (grad - m);
    v = v * c.beta2 + c.take2 * grad * grad;
    p = p * c.decay - c.step_size * m / (sqrtf(v) * c.root_correction + c.eps);
}

KERNEL void adamw(AdamW c, const float *grads, const float *norm, float *params, float *first, float *second, u64 n) {
    const float scale = gradient_scale(c, *norm);
    const u64 chunks = (n + 3) / 4;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < chunks; i += (u64)gridDim.x * blockDim.x) {
        float g[4], p[4], m[4], v[4];
        const bool whole = i * 4 + 4 <= n;
        if (whole) {
            *(float4 *)g = ((const float4 *)grads)[i];
            *(float4 *)p = ((float4 *)params)[i];
            *(float4 *)m = ((float4 *)first)[i];
            *(float4 *)v = ((float4 *)second)[i];
        } else {
            for (int j = 0; j < 4; j++) {
                const bool inside = i * 4 + j < n;
                g[j] = inside ? grads[i * 4 + j] : 0.0f;
                p[j] = inside ? params[i * 4 + j] : 0.0f;
                m[j] = inside ? first[i * 4 + j] : 0.0f;
                v[j] = inside ? second[i * 4 + j] : 0.0f;
            }
        }
#pragma unroll
        for (int j = 0; j < 4; j++) adamw_value(c, g[j] * scale, p[j], m[j], v[j]);
        if (whole) {
            ((float4 *)params)[i] = *(float4 *)p;
            ((float4 *)first)[i] = *(float4 *)m;
            ((float4 *)second)[i] = *(float4 *)v;
        } else {
            for (int j = 0; j < 4 && i * 4 + j < n; j++) {
                params[i * 4 + j] = p[j];
                first[i * 4 + j] = m[j];
                second[i * 4 + j] = v[j];
            }
        }
    }
}

// One moment's bytes, with a scale for each 256 of them.
struct Blockwise {
    u8 *codes;
    float *absmax;
};

// Eight bytes of a lane as values.
__device__ __forceinline__ void read_codes(const u8 *codes, float scale, const float *levels, float (&v)[8]) {
    const uint2 raw = *(const uint2 *)codes;
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = levels[((i < 4 ? raw.x : raw.y) >> (i % 4 * 8)) & 255] * scale;
}
// Eight values of each lane of a warp to the nearest levels under their common scale, which is returned. A value midway
// takes the lower level.
__device__ __forceinline__ float write_codes(u8 *codes, const float *midpoints, const float (&v)[8]) {
    float top = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) top = fmaxf(top, fabsf(v[i]));
    top = warp_max(top);
    const float inverse = __fdiv_rn(1.0f, fmaxf(top, 1e-38f));
    u32 words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float scaled = __fmul_rn(v[i], inverse);
        int code = 0;
#pragma unroll
        for (int step = 128; step > 0; step >>= 1) code += scaled > midpoints[code + step - 1] ? step : 0;
        words[i / 4] |= (u32)code << (i % 4 * 8);
    }
    *(uint2 *)codes = make_uint2(words[0], words[1]);
    return top;
}

// AdamW whose moments are bytes: the first on the levels maps[0 .. 256], the second on maps[256 .. 512]. A warp takes a
// block of 256 values, a lane eight neighbours of it. The codes are allocated in whole blocks.
KERNEL __launch_bounds__(256) void adamw_blockwise(AdamW c, const float *grads, const float *norm, float *params,
                                                   Blockwise first, Blockwise second, const float *maps, u64 n) {
    __shared__ float levels[2][256], midpoints[2][256];
    for (int i = threadIdx.x; i < 512; i += blockDim.x) {
        levels[i / 256][i % 256] = maps[i];
        midpoints[i / 256][i % 256] = i % 256 < 255 ? (maps[i] + maps[i + 1]) * 0.5f : INF;
    }
    __syncthreads();
    const float scale = gradient_scale(c, *norm);
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const u64 blocks = (n + 255) / 256;
    for (u64 b = blockIdx.x * (u64)warps + threadIdx.x / 32; b < blocks; b += (u64)gridDim.x * warps) {
        const u64 i = b * 256 + lane * 8;
        const bool whole = i + 8 <= n;
        float g[8], p[8], m[8], v[8];
        if (whole) {
            Eight<float>::load(grads + i, g);
            Eight<float>::load(params + i, p);
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                g[j] = i + j < n ? grads[i + j] : 0.0f;
                p[j] = i + j < n ? params[i + j] : 0.0f;
            }
        }
        read_codes(first.codes + i, first.absmax[b], levels[0], m);
        read_codes(second.codes + i, second.absmax[b], levels[1], v);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            adamw_value(c, g[j] * scale, p[j], m[j], v[j]);
            // Beyond the end nothing may raise the block's scale.
            if (i + j >= n) m[j] = v[j] = 0.0f;
        }
        const float top1 = write_codes(first.codes + i, midpoints[0], m);
        const float top2 = write_codes(second.codes + i, midpoints[1], v);
        __syncwarp();
        if (lane == 0) first.absmax[b] = top1, second.absmax[b] = top2;
        if (whole) {
            Eight<float>::store(params + i, p);
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (i + j < n) params[i + j] = p[j];
        }
    }
}
