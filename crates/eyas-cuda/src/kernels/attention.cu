// Causal attention on the flat token axis, the plain way: a warp a query (or key) and head.

struct Attention {
    QkvLayout l;
    float scale;
    int window;                 // 0: none
    int alibi_positions;
    const float *alibi;  // [heads, alibi_positions], by the key's position, or none
};

// Elements of a head that a lane holds; heads of up to 256.
#define SLICE 8

__device__ __forceinline__ int query_column(const QkvLayout &l, int head) {
    const int group = l.heads / l.kv_heads;
    return head / group * l.query_group_stride + head % group * l.head_dim;
}
__device__ __forceinline__ void load_head(const elem *p, int dim, int lane, float (&v)[SLICE]) {
#pragma unroll
    for (int i = 0; i < SLICE; i++) v[i] = lane + 32 * i < dim ? to_f32(p[lane + 32 * i]) : 0.0f;
}
__device__ __forceinline__ void store_head(elem *p, int dim, int lane, const float (&v)[SLICE]) {
#pragma unroll
    for (int i = 0; i < SLICE; i++)
        if (lane + 32 * i < dim) p[lane + 32 * i] = from_f32<elem>(v[i]);
}
__device__ __forceinline__ float dot_head(const float (&a)[SLICE], const float (&b)[SLICE]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < SLICE; i++) sum += a[i] * b[i];
    return warp_sum(sum);
}
__device__ __forceinline__ int first_key(const Attention &a, int start, int token) {
    return a.window && token - a.window + 1 > start ? token - a.window + 1 : start;
}

KERNEL __launch_bounds__(128) void attention(Attention a, const elem *qkv, const u32 *sequence, const u32 *cu_seqlens,
                                             int tokens, elem *out, float *lse) {
    const int item = (blockIdx.x * (u64)blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    const int token = item / a.l.heads, head = item % a.l.heads, dim = a.l.head_dim;
    if (token >= tokens) return;
    const int kv = head / (a.l.heads / a.l.kv_heads), start = cu_seqlens[sequence[token]];
    const float *bias = a.alibi ? a.alibi + (u64)head * a.alibi_positions : 0;
    float q[SLICE], k[SLICE], acc[SLICE] = {}, top = -INF, sum = 0.0f;
    load_head(qkv + (u64)token * a.l.width + query_column(a.l, head), dim, lane, q);
    for (int key = first_key(a, start, token); key <= token; key++) {
        const elem *row = qkv + (u64)key * a.l.width + kv * a.l.kv_stride;
        load_head(row + a.l.key_offset, dim, lane, k);
        const float score = dot_head(q, k) * a.scale + (bias ? bias[key - start] : 0.0f);
        const float new_top = fmaxf(top, score), shrink = fast_exp(top - new_top), p = fast_exp(score - new_top);
        load_head(row + a.l.value_offset, dim, lane, k);
#pragma unroll
        for (int i = 0; i < SLICE; i++) acc[i] = acc[i] * shrink + p * k[i];
        sum = sum * shrink + p;
        top = new_top;
    }
#pragma unroll
    for (int i = 0; i < SLICE; i++) acc[i] /= sum;
    store_head(out + ((u64)token * a.l.heads + head) * dim, dim, lane, acc);
    if (lane == 0) lse[(u64)token * a.l.heads + head] = top + logf(sum);
}

// delta[token, head] = dout . out
KERNEL __launch_bounds__(128) void attention_backward_delta(Attention a, const elem *out, const elem *dout, int tokens,
                                                            float *delta) {
    const int item = (blockIdx.x * (u64)blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (item >= tokens * a.l.heads) return;
    float o[SLICE], d[SLICE];
    load_head(out + (u64)item * a.l.head_dim, a.l.head_dim, lane, o);
    load_head(dout + (u64)item * a.l.head_dim, a.l.head_dim, lane, d);
    const float sum = dot_head(o, d);
    if (lane == 0) delta[item] = sum;
}

KERNEL __launch_bounds__(128) void attention_backward_query(Attention a, const elem *qkv, const u32 *sequence,
                                                            const u32 *cu_seqlens, int tokens, const float *lse,
                                                            const float *delta, const elem *dout, elem *dqkv) {
    const int item = (blockIdx.x * (u64)blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    const int token = item / a.l.heads, head = item % a.l.heads, dim = a.l.head_dim;
    if (token >= tokens) return;
    const int kv = head / (a.l.heads / a.l.kv_heads), start = cu_seqlens[sequence[token]];
    const float *bias = a.alibi ? a.alibi + (u64)head * a.alibi_positions : 0;
    float q[SLICE], k[SLICE], v[SLICE], g[SLICE], dq[SLICE] = {};
    load_head(qkv + (u64)token * a.l.width + query_column(a.l, head), dim, lane, q);
    load_head(dout + ((u64)token * a.l.heads + head) * dim, dim, lane, g);
    for (int key = first_key(a, start, token); key <= token; key++) {
        const elem *row = qkv + (u64)key * a.l.width + kv * a.l.kv_stride;
        load_head(row + a.l.key_offset, dim, lane, k);
        load_head(row + a.l.value_offset, dim, lane, v);
        const float score = dot_head(q, k) * a.scale + (bias ? bias[key - start] : 0.0f);
        const float p = fast_exp(score - lse[item]);
        const float ds = p * (dot_head(g, v) - delta[item]) * a.scale;
#pragma unroll
        for (int i = 0; i < SLICE; i++) dq[i] += ds * k[i];
    }
    store_head(dqkv + (u64)token * a.l.width + query_column(a.l, head), dim, lane, dq);
}

KERNEL __launch_bounds__(128) void attention_backward_key(Attention a, const elem *qkv, const u32 *sequence,
                                                          const u32 *cu_seqlens, int tokens, const float *lse,
                                                          const float *delta, const elem *dout, elem *dqkv) {
    const int item = (blockIdx.x * (u64)blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    const int key = item / a.l.kv_heads, kv = item % a.l.kv_heads, dim = a.l.head_dim;
    if (key >= tokens) return;
    const int group = a.l.heads / a.l.kv_heads, start = cu_seqlens[sequence[key]];
    int end = cu_seqlens[sequence[key] + 1];
    if (a.window && key + a.window < end) end = key + a.window;
    float q[SLICE], k[SLICE], v[SLICE], g[SLICE], dk[SLICE] = {}, dv[SLICE] = {};
    const u64 column = (u64)key * a.l.width + kv * a.l.kv_stride;
    load_head(qkv + column + a.l.key_offset, dim, lane, k);
    load_head(qkv + column + a.l.value_offset, dim, lane, v);
    for (int head = kv * group; head < (kv + 1) * group; head++) {
        const float *bias = a.alibi ? a.alibi + (u64)head * a.alibi_positions : 0;
        for (int token = key; token < end; token++) {
            const u64 row = (u64)token * a.l.heads + head;
            load_head(qkv + (u64)token * a.l.width + query_column(a.l, head), dim, lane, q);
            load_head(dout + row * dim, dim, lane, g);
            const float score = dot_head(q, k) * a.scale + (bias ? bias[key - start] : 0.0f);
            const float p = fast_exp(score - lse[row]);
            const float ds = p * (dot_head(g, v) - delta[row]) * a.scale;
#pragma unroll
            for (int i = 0; i < SLICE; i++) {
                dk[i] += ds * q[i];
                dv[i] += p * g[i];
            }
        }
    }
    store_head(dqkv + column + a.l.key_offset, dim, lane, dk);
    store_head(dqkv + column + a.l.value_offset, dim, lane, dv);
}
