// Layer and RMS norms: a block a row, the row in registers. Head norms: a warp a head.

// Chunks of eight columns that a thread holds; blocks are sized so that two are enough (norm.rs).
#define CHUNKS 2

KERNEL __launch_bounds__(1024) void norm_forward(const elem *x, const float *weight, const float *bias, elem *y, float *stats,
                                                 int n, float eps, int rms, int vec) {
    await_previous();
    const u64 row = blockIdx.x;
    float v[CHUNKS][8], sum = 0.0f;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int col = (c * blockDim.x + threadIdx.x) * 8;
        if (col < n) load8(x + row * n, col, n, vec, v[c]);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (col + j >= n) v[c][j] = 0.0f;
            sum += v[c][j];
        }
    }
    const float mean = rms ? 0.0f : block_sum(sum) / n;
    float squares = 0.0f;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int col = (c * blockDim.x + threadIdx.x) * 8;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float d = v[c][j] - mean;
            if (col + j < n) squares += d * d;
        }
    }
    const float rstd = 1.0f / sqrtf(block_sum(squares) / n + eps);
    if (threadIdx.x == 0) {
        stats[2 * row] = mean;
        stats[2 * row + 1] = rstd;
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int col = (c * blockDim.x + threadIdx.x) * 8;
        if (col >= n) break;
        float w[8], b[8];
        load8(weight, col, n, vec, w);
        if (bias) load8(bias, col, n, vec, b);
#pragma unroll
        for (int j = 0; j < 8; j++) v[c][j] = (v[c][j] - mean) * rstd * w[j] + (bias ? b[j] : 0.0f);
        store8(y + row * n, col, n, vec, v[c]);
    }
}

// dx (+)= rstd (g - mean(g) - xhat mean(g xhat)), g = dy weight; RMS norms have no mean(g).
KERNEL __launch_bounds__(1024) void norm_backward(const elem *x, const float *weight, const float *stats, const elem *dy,
                                                  elem *dx, int n, int rms, int add, int vec) {
    const u64 row = blockIdx.x;
    const float mean = rms ? 0.0f : stats[2 * row], rstd = stats[2 * row + 1];
    float xhat[CHUNKS][8], g[CHUNKS][8], sum = 0.0f, dot = 0.0f;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int col = (c * blockDim.x + threadIdx.x) * 8;
        float w[8];
        if (col < n) {
            load8(x + row * n, col, n, vec, xhat[c]);
            load8(dy + row * n, col, n, vec, g[c]);
            load8(weight, col, n, vec, w);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const bool inside = col + j < n;
            g[c][j] = inside ? g[c][j] * w[j] : 0.0f;
            xhat[c][j] = inside ? (xhat[c][j] - mean) * rstd : 0.0f;
            sum += g[c][j];
            dot += g[c][j] * xhat[c][j];
        }
    }
    const float mean_g = rms ? 0.0f : block_sum(sum) / n;
    const float mean_dot = block_sum(dot) / n;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int col = (c * blockDim.x + threadIdx.x) * 8;
        if (col >= n) break;
        float out[8];
        if (add) load8(dx + row * n, col, n, vec, out);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float d = rstd * (g[c][j] - mean_g - xhat[c][j] * mean_dot);
            out[j] = add ? out[j] + d : d;
        }
        store8(dx + row * n, col, n, vec, out);
    }
}

// First column of head `head`: queries, then keys, then values.
__device__ __forceinline__ int head_column(const QkvLayout &l, int head) {
    const int group = l.heads / l.kv_heads;
    if (head < l.heads) return head / group * l.query_group_stride + head % group * l.head_dim;
    head -= l.heads;
    if (head < l.kv_heads) return l.key_offset + head * l.kv_stride;
    return l.value_offset + (head - l.kv_heads) * l.kv_stride;
}

KERNEL void head_norm(const elem *raw, const float *q_weight, const float *k_weight, elem *qkv, QkvLayout l, int tokens,
                      float eps) {
    await_previous();
    const int heads = l.heads + 2 * l.kv_heads, lane = threadIdx.x % 32;
    const u64 item = (blockIdx.x * (u64)blockDim.x + threadIdx.x) / 32;
    if (item >= (u64)tokens * heads) return;
    const int head = (int)(item % heads);
    const u64 start = item / heads * l.width + head_column(l, head);
    const float *weight = head < l.heads ? q_weight : k_weight;
    const bool value = head >= l.heads + l.kv_heads;
    float squares = 0.0f;
    for (int i = lane; i < l.head_dim; i += 32) {
        const float v = to_f32(raw[start + i]);
        squares += v * v;
    }
    const float rstd = 1.0f / sqrtf(warp_sum(squares) / l.head_dim + eps);
    for (int i = lane; i < l.head_dim; i += 32) {
        const elem v = raw[start + i];
        qkv[start + i] = value ? v : from_f32<elem>(to_f32(v) * rstd * weight[i]);
    }
}

KERNEL void head_norm_backward(const elem *raw, const float *q_weight, const float *k_weight, elem *dqkv, QkvLayout l,
                               int tokens, float eps) {
    const int heads = l.heads + l.kv_heads, lane = threadIdx.x % 32;
    const u64 item = (blockIdx.x * (u64)blockDim.x + threadIdx.x) / 32;
    if (item >= (u64)tokens * heads) return;
    const int head = (int)(item % heads);
    const u64 start = item / heads * l.width + head_column(l, head);
    const float *weight = head < l.heads ? q_weight : k_weight;
    float squares = 0.0f, dot = 0.0f;
    for (int i = lane; i < l.head_dim; i += 32) {
        const float v = to_f32(raw[start + i]);
        squares += v * v;
        dot += to_f32(dqkv[start + i]) * weight[i] * v;
    }
    const float rstd = 1.0f / sqrtf(warp_sum(squares) / l.head_dim + eps);
    const float mean_dot = warp_sum(dot) * rstd * rstd / l.head_dim;
    for (int i = lane; i < l.head_dim; i += 32) {
        const float v = to_f32(raw[start + i]);
        const float g = to_f32(dqkv[start + i]) * weight[i];
        dqkv[start + i] = from_f32<elem>(rstd * (g - v * mean_dot));
    }
}
