// Rotary positions in place, first half of a head paired with its second; eight pairs a thread where the shape allows.

KERNEL void rope(elem *qkv, const u32 *positions, const float *cosines, const float *sines, QkvLayout l, int tokens,
                 int half, float direction, int vec) {
    const int per_head = vec ? half / 8 : (half + 7) / 8;
    const int heads = l.heads + l.kv_heads;
    const u64 total = (u64)tokens * heads * per_head;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < total; i += (u64)gridDim.x * blockDim.x) {
        const int col = (int)(i % per_head) * 8;
        const u64 rest = i / per_head;
        const int head = (int)(rest % heads);
        const u64 token = rest / heads;
        const int group = l.heads / l.kv_heads;
        const int start = head < l.heads ? head / group * l.query_group_stride + head % group * l.head_dim
                                         : l.key_offset + (head - l.heads) * l.kv_stride;
        elem *first = qkv + token * l.width + start, *second = first + half;
        const u64 position = positions[token];
        float a[8], b[8], c[8], s[8];
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
}
