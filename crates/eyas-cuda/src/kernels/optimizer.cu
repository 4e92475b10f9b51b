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
};

KERNEL void adamw(AdamW c, const float *grads, const float *norm, float *params, float *first, float *second, u64 n) {
    float clip = 1.0f;
    if (c.max_grad_norm < INF) {
        const float ratio = c.max_grad_norm / (*norm + 1e-6f);
        clip = ratio < 1.0f || ratio != ratio ? ratio : 1.0f;
    }
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
        for (int j = 0; j < 4; j++) {
            const float grad = g[j] * clip;
            m[j] = m[j] + c.take1 * (grad - m[j]);
            v[j] = v[j] * c.beta2 + c.take2 * grad * grad;
            p[j] = p[j] * c.decay - c.step_size * m[j] / (sqrtf(v[j]) * c.root_correction + c.eps);
        }
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
