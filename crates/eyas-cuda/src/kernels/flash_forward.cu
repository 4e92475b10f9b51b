// Flash attention forward (Dao 2023): causal, on the flat token axis or over the key/value cache.
//
// A block takes a tile of one sequence's queries of one head and walks over the tiles of keys that they see. Heads are
// the fastest of the grid, so that those of a group find their keys and values in the L2 cache; the longest tiles come first.

#include "flash.cuh"

// Where keys and values lie: in qkv (no slots), or in the cache, a sequence's rows from slots[sequence] * capacity on.
struct Keys {
    const elem *keys, *values;  // of the first head
    int row_stride, head_stride;
    int capacity;
    const u32 *slots, *positions;
};

template <class S>
__device__ __forceinline__ void forward(const Attention &f, const Keys &kv, const elem *qkv, const u32 *cu_seqlens,
                                        elem *out, float *lse) {
    constexpr int D = S::D, N = S::TILE, ROWS = S::ROWS, KEY = Tile<N, D>::BYTES;
    char *queries = shared_tiles(), *tiles = queries + Tile<ROWS, D>::BYTES;
    const int head = blockIdx.x % f.l.heads, sequence = blockIdx.x / f.l.heads, dim = f.l.head_dim;
    const int start = cu_seqlens[sequence], length = cu_seqlens[sequence + 1] - start;
    const int q0 = (gridDim.y - 1 - blockIdx.y) * ROWS;
    if (q0 >= length) return;
    const int warp = warp_index(), lane = threadIdx.x % 32, row = 16 * warp;
    const int position = kv.slots ? kv.positions[start] : 0;
    const u64 base = kv.slots ? (u64)kv.slots[sequence] * kv.capacity : start;
    const int kv_head = head / (f.l.heads / f.l.kv_heads), total = position + length;
    const elem *keys = kv.keys + base * kv.row_stride + kv_head * kv.head_stride;
    const elem *values = kv.values + base * kv.row_stride + kv_head * kv.head_stride;
    const float *bias = f.alibi ? f.alibi + (u64)head * f.alibi_positions : 0;
    const float scale_log2 = f.scale * LOG2E;
    // Scores become logarithms to base 2 at once where they need more than a positive factor.
    const bool convert = bias || f.scale <= 0.0f;
    const float factor = convert ? 1.0f : scale_log2;

    // What this warp (all of a warp group with wgmma) sees, and what the block does.
    const int u0 = q0 + row / UNIT * UNIT;
    const int first = first_tile(position + q0, f.window, N);
    const int last = (min(position + q0 + ROWS, total) - 1) / N;
    const int own_first = first_tile(position + u0, f.window, N);
    const int own_last = u0 < length ? (min(position + u0 + UNIT, total) - 1) / N : -1;

    const Copier<N, D, S::THREADS> copier(kv.row_stride, dim);
    const auto load = [&](int tile, int stage) {
        char *to = tiles + stage * 2 * KEY;
        const u64 at = (u64)(tile * N) * kv.row_stride;
        if (tile <= last) {
            copier.run(to, keys + at, total - tile * N);
            copier.run(to + KEY, values + at, total - tile * N);
        }
        copy_commit();
    };
    Copier<ROWS, D, S::THREADS>(f.l.width, dim)
        .run(queries, qkv + (u64)(start + q0) * f.l.width + query_column(f.l, head), length - q0);
    copy_commit();
    first_stages<S>([&](int stage) { load(first + stage, stage); });
    // mma.sync would read the queries from shared memory for every tile.
    constexpr bool REGISTERS = !WGMMA && D <= 128;
    u32 left[REGISTERS ? D / 16 : 1][4];
    if constexpr (REGISTERS) {
        copy_wait<S::STAGES - 1>();
        __syncthreads();
        load_left<ROWS, D>(left, queries, row);
    }

    float acc[D / 8][4], top[2] = {-INF, -INF}, sum[2] = {};
    set_zero(acc);
    int stage = 0;
    for (int tile = first; tile <= last; tile++) {
        next_stage<S>(stage, [&](int free) { load(tile + S::STAGES - 1, free); });
        const char *key_tile = tiles + stage * 2 * KEY;
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
        if (tile < own_first || tile > own_last) continue;

        float s[N / 8][4];
        pin(s);
        products_start();
        if constexpr (REGISTERS)
            product_registers<N, D>(s, left, key_tile);
        else
            product_shared<N, D, ROWS>(s, queries, row, key_tile);
        products_finish();
        products_wait<0>();
        pin(s);

        const int key = tile * N + 2 * (lane % 4), query = position + q0 + row + lane / 4;
        if (convert) {
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    s[j][i] = s[j][i] * scale_log2 + (bias ? bias_log2(f, bias, key + 8 * j + i % 2) : 0.0f);
        }
        if (tile * N + N - 1 > position + u0 || (f.window && tile * N <= position + u0 + UNIT - 1 - f.window)) {
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (!sees(query + i / 2 * 8, key + 8 * j + i % 2, f.window)) s[j][i] = -INF;
        }
        float shrink[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float high = top[r];
#pragma unroll
            for (int j = 0; j < N / 8; j++) high = fmaxf(high, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
            // A row that has seen no key yet: nothing to shrink, and no infinity less infinity.
            const float shift = high == -INF ? 0.0f : high * factor;
            shrink[r] = exp2_fast(top[r] * factor - shift);
            top[r] = high;
            float part = 0.0f;
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                s[j][2 * r] = exp2_fast(s[j][2 * r] * factor - shift);
                s[j][2 * r + 1] = exp2_fast(s[j][2 * r + 1] * factor - shift);
                part += s[j][2 * r] + s[j][2 * r + 1];
            }
            sum[r] = sum[r] * shrink[r] + part;
        }
        u32 p[N / 16][4];
        as_left(p, s);
        if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                acc[j][0] *= shrink[0], acc[j][1] *= shrink[0];
                acc[j][2] *= shrink[1], acc[j][3] *= shrink[1];
            }
        }
        pin(acc);
        products_start();
        product_add<N, D>(acc, p, key_tile + KEY, 0);
        products_finish();
        products_wait<0>();
        pin(acc);
    }
    copy_wait<0>();
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        const int at = q0 + row + lane / 4 + 8 * r;
        if (lse && lane % 4 == 0 && at < length)
            lse[(u64)(start + at) * f.l.heads + head] = (top[r] * factor + log2f(sum[r])) * LN2;
    }
    store_rows<ROWS, D>(queries, row, acc, 1.0f / sum[0], 1.0f / sum[1],
                        out + ((u64)(start + q0) * f.l.heads + head) * dim, (u64)f.l.heads * dim, length - q0, dim);
}

// The Rust table of shapes, attention_shapes.rs, repeats these.
#if WGMMA
typedef Shape<64, 64, 8, 2, 2> Forward64;
typedef Shape<96, 64, 8, 2, 2> Forward96;
typedef Shape<128, 64, 8, 2, 2> Forward128;
typedef Shape<256, 64, 8, 2, 1> Forward256;
#elif AMPERE
typedef Shape<64, 64, 4, 2, 3> Forward64;
typedef Shape<96, 64, 4, 2, 2> Forward96;
typedef Shape<128, 64, 4, 2, 2> Forward128;
typedef Shape<256, 32, 4, 2, 1> Forward256;
#else
typedef Shape<64, 64, 4, 1, 2> Forward64;
typedef Shape<96, 64, 4, 1, 1> Forward96;
typedef Shape<128, 64, 4, 1, 1> Forward128;
typedef Shape<256, 32, 4, 1, 1> Forward256;
#endif

#define PARAMETERS Attention f, Keys kv, const elem *qkv, const u32 *cu_seqlens, elem *out, float *lse

#if HAS(64)
KERNEL BOUNDS(Forward64) void flash_forward_64(PARAMETERS) { forward<Forward64>(f, kv, qkv, cu_seqlens, out, lse); }
#endif
#if HAS(96)
KERNEL BOUNDS(Forward96) void flash_forward_96(PARAMETERS) { forward<Forward96>(f, kv, qkv, cu_seqlens, out, lse); }
#endif
#if HAS(128)
KERNEL BOUNDS(Forward128) void flash_forward_128(PARAMETERS) { forward<Forward128>(f, kv, qkv, cu_seqlens, out, lse); }
#endif
#if HAS(256)
KERNEL BOUNDS(Forward256) void flash_forward_256(PARAMETERS) { forward<Forward256>(f, kv, qkv, cu_seqlens, out, lse); }
#endif
