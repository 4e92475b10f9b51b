// The key/value cache: rows slot * positions + position, [kv_heads * head_dim] wide.

// A block a token.
KERNEL void cache_write(QkvLayout l, const elem *qkv, const u32 *sequence, const u32 *slots, const u32 *positions,
                        int capacity, elem *keys, elem *values) {
    await_previous();
    const u32 token = blockIdx.x;
    const int n = l.kv_heads * l.head_dim;
    const u64 row = (u64)slots[sequence[token]] * capacity + positions[token];
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const elem *from = qkv + (u64)token * l.width + i / l.head_dim * l.kv_stride + i % l.head_dim;
        keys[row * n + i] = from[l.key_offset];
        values[row * n + i] = from[l.value_offset];
    }
}

#define SLICE 8
#define WARPS 8

// A block a query and head; its warps share out the keys and put their pieces together in a fixed order.
KERNEL __launch_bounds__(32 * WARPS) void attention_cached(QkvLayout l, float scale, int window, const float *alibi, int alibi_positions,
                                                           const elem *qkv, const elem *keys, const elem *values,
                                                           const u32 *sequence, const u32 *slots, const u32 *positions,
                                                           int capacity, elem *out) {
    await_previous();
    __shared__ float tops[WARPS], sums[WARPS], pieces[WARPS][32 * SLICE];
    const int token = blockIdx.x / l.heads, head = blockIdx.x % l.heads, dim = l.head_dim;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = l.heads / l.kv_heads, kv = head / group;
    const int position = positions[token], n = l.kv_heads * dim;
    const u64 base = (u64)slots[sequence[token]] * capacity;
    const float *bias = alibi ? alibi + (u64)head * alibi_positions : 0;
    const elem *query = qkv + (u64)token * l.width + head / group * l.query_group_stride + head % group * dim;
    float q[SLICE], acc[SLICE] = {}, top = -INF, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < SLICE; i++) q[i] = lane + 32 * i < dim ? to_f32(query[lane + 32 * i]) : 0.0f;
    const int first = window && position - window + 1 > 0 ? position - window + 1 : 0;
    for (int key = first + warp; key <= position; key += WARPS) {
        const u64 at = (base + key) * n + kv * dim;
        float score = 0.0f;
#pragma unroll
        for (int i = 0; i < SLICE; i++)
            if (lane + 32 * i < dim) score += q[i] * to_f32(keys[at + lane + 32 * i]);
        score = warp_sum(score) * scale + (bias ? bias[key] : 0.0f);
        const float new_top = fmaxf(top, score), shrink = fast_exp(top - new_top), p = fast_exp(score - new_top);
#pragma unroll
        for (int i = 0; i < SLICE; i++)
            if (lane + 32 * i < dim) acc[i] = acc[i] * shrink + p * to_f32(values[at + lane + 32 * i]);
        sum = sum * shrink + p;
        top = new_top;
    }
#pragma unroll
    for (int i = 0; i < SLICE; i++) pieces[warp][lane + 32 * i] = acc[i];
    if (lane == 0) {
        tops[warp] = top;
        sums[warp] = sum;
    }
    __syncthreads();
    float all_top = tops[0], total = 0.0f;
    for (int w = 1; w < WARPS; w++) all_top = fmaxf(all_top, tops[w]);
    for (int w = 0; w < WARPS; w++) total += sums[w] * fast_exp(tops[w] - all_top);
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        float v = 0.0f;
        for (int w = 0; w < WARPS; w++) v += pieces[w][i] * fast_exp(tops[w] - all_top);
        out[((u64)token * l.heads + head) * dim + i] = from_f32<elem>(v / total);
    }
}
