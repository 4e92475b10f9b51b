// Rotary positions in place, first half of a head paired with its second; eight pairs a thread where the shape allows.

__device__ __forceinline__ int head_start(const QkvLayout &l, int head) {
    const int group = l.heads / l.kv_heads;
    if (head < l.heads) return head / group * l.query_group_stride + head % group * l.head_dim;
    head -= l.heads;
    return head < l.kv_heads ? l.key_offset + head * l.kv_stride : l.value_offset + (head - l.kv_heads) * l.kv_stride;
}

// Rotates eight pairs, or as many as there are from column col on, and leaves them in a and b.
__device__ __forceinline__ void rotate(elem *first, const float *cosines, const float *sines, u64 position, int col, int half,
                                       float direction, int vec, float (&a)[8], float (&b)[8]) {
    elem *second = first + half;
    float c[8], s[8];
    load8(first, col, half, vec, a);
    load8(second, col, half, vec, b);
    load8(cosines + position * half, col, half, vec, c);
    load8(sines + position * half, col, half, vec, s);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float sine = s[j] * direction, x = a[j], y = b[j];
        a[j] = x * c[j] - y * sine;
        b[j] = y * c[j] + x * sine;
    }
    store8(first, col, half, vec, a);
    store8(second, col, half, vec, b);
}

KERNEL void rope(elem *qkv, const u32 *positions, const float *cosines, const float *sines, QkvLayout l, int tokens,
                 int half, float direction, int vec) {
    await_previous();
    const int per_head = vec ? half / 8 : (half + 7) / 8;
    const int heads = l.heads + l.kv_heads;
    const u64 total = (u64)tokens * heads * per_head;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < total; i += (u64)gridDim.x * blockDim.x) {
        const int col = (int)(i % per_head) * 8;
        const u64 rest = i / per_head, token = rest / heads;
        float a[8], b[8];
        elem *head = qkv + token * l.width + head_start(l, (int)(rest % heads));
        rotate(head, cosines, sines, positions[token], col, half, direction, vec, a, b);
    }
}

// The same forward, and keys and values to rows slot * capacity + position of a cache, [kv_heads * head_dim] wide.
KERNEL void rope_cached(elem *qkv, const u32 *positions, const float *cosines, const float *sines, QkvLayout l, int tokens,
                        int half, int vec, const u32 *sequence, const u32 *slots, int capacity, elem *keys, elem *values) {
    await_previous();
    const int per_head = vec ? half / 8 : (half + 7) / 8;
    const int heads = l.heads + 2 * l.kv_heads;
    const u64 total = (u64)tokens * heads * per_head;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < total; i += (u64)gridDim.x * blockDim.x) {
        const int col = (int)(i % per_head) * 8;
        const u64 rest = i / per_head, token = rest / heads;
        const int head = (int)(rest % heads);
        const u64 position = positions[token];
        elem *from = qkv + token * l.width + head_start(l, head);
        float a[8], b[8];
        if (head < l.heads + l.kv_heads) {
            rotate(from, cosines, sines, position, col, half, 1.0f, vec, a, b);
        } else {
            load8(from, col, half, vec, a);
            load8(from + half, col, half, vec, b);
        }
        if (head < l.heads) continue;
        const int kv = (head - l.heads) % l.kv_heads;
        const u64 row = (u64)slots[sequence[token]] * capacity + position;
        elem *to = (head < l.heads + l.kv_heads ? keys : values) + (row * l.kv_heads + kv) * l.head_dim;
        store8(to, col, half, vec, a);
        store8(to + half, col, half, vec, b);
        if (col == 0)
            for (int j = 2 * half; j < l.head_dim; j++) to[j] = from[j];
    }
}
