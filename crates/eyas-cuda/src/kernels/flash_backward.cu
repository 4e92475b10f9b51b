// Flash attention backward (Dao 2023), in two kernels instead of one with atomic additions: the same inputs give the
// same bits. flash_backward_query_* keep a tile of queries and walk over keys for dq; flash_backward_key_* keep a tile of
// keys and walk over the queries of their group's heads for dk and dv, working with the transposed scores so that
// probabilities go from one product to the next in registers. That is seven products instead of five.
//
// Where few key tiles meet many query heads, the heads of a group are split into chunks whose sums
// flash_backward_sum_* adds up in order.

#include "flash.cuh"

// What the query kernel leaves for the key kernel, [heads, tokens]: log-sum-exp to base 2, and dout . out.
struct Row {
    float lse, delta;
};

__device__ __forceinline__ void copy8(void *to, const void *from, bool valid) {
#if AMPERE
    const int bytes = valid ? 8 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
#else
    *(uint2 *)to = valid ? *(const uint2 *)from : make_uint2(0, 0);
#endif
}

template <class S>
__device__ __forceinline__ void backward_query(const Attention &f, const elem *qkv, const u32 *cu_seqlens, int tokens,
                                               const elem *out, const float *lse, const elem *dout, Row *rows,
                                               elem *dqkv) {
    constexpr int D = S::D, N = S::TILE, ROWS = S::ROWS, KEY = Tile<N, D>::BYTES;
    char *queries = shared_tiles(), *douts = queries + Tile<ROWS, D>::BYTES, *tiles = douts + Tile<ROWS, D>::BYTES;
    const int head = blockIdx.x % f.l.heads, sequence = blockIdx.x / f.l.heads, dim = f.l.head_dim;
    const int start = cu_seqlens[sequence], length = cu_seqlens[sequence + 1] - start;
    const int q0 = (gridDim.y - 1 - blockIdx.y) * ROWS;
    if (q0 >= length) return;
    const int warp = warp_index(), lane = threadIdx.x % 32, row = 16 * warp;
    const elem *keys = qkv + (u64)start * f.l.width + head / (f.l.heads / f.l.kv_heads) * f.l.kv_stride;
    const float *bias = f.alibi ? f.alibi + (u64)head * f.alibi_positions : 0;
    const float scale_log2 = f.scale * LOG2E;
    const int u0 = q0 + row / UNIT * UNIT;
    const int first = first_tile(q0, f.window, N), last = (min(q0 + ROWS, length) - 1) / N;
    const int own_first = first_tile(u0, f.window, N);
    const int own_last = u0 < length ? (min(u0 + UNIT, length) - 1) / N : -1;
    const u64 out_stride = (u64)f.l.heads * dim, out_at = (u64)(start + q0) * out_stride + head * dim;

    const Copier<N, D, S::THREADS> copier(f.l.width, dim);
    const auto load = [&](int tile, int stage) {
        char *to = tiles + stage * 2 * KEY;
        const elem *from = keys + (u64)(tile * N) * f.l.width;
        if (tile <= last) {
            copier.run(to, from + f.l.key_offset, length - tile * N);
            copier.run(to + KEY, from + f.l.value_offset, length - tile * N);
        }
        copy_commit();
    };
    Copier<ROWS, D, S::THREADS>(f.l.width, dim)
        .run(queries, qkv + (u64)(start + q0) * f.l.width + query_column(f.l, head), length - q0);
    Copier<ROWS, D, S::THREADS>(out_stride, dim).run(douts, dout + out_at, length - q0);
    first_stages<S>([&](int stage) { load(first + stage, stage); });

    // dout . out of the warp's rows: two lanes a row, meanwhile.
    float lse2[2], delta[2];
    {
        const int mine = q0 + row + lane / 2;
        const u64 at = (u64)(start + mine) * out_stride + head * dim;
        float part = 0.0f;
        if (mine < length)
            for (int c = 8 * (lane % 2); c < dim; c += 16) {
                float a[8], b[8];
                Eight<elem>::load(out + at + c, a);
                Eight<elem>::load(dout + at + c, b);
#pragma unroll
                for (int i = 0; i < 8; i++) part += a[i] * b[i];
            }
        part += __shfl_xor_sync(0xffffffffu, part, 1);
        // Rows past the end: probabilities of zero.
        const float log_sum = mine < length ? lse[(u64)(start + mine) * f.l.heads + head] * LOG2E : INF;
        if (mine < length && lane % 2 == 0) rows[(u64)head * tokens + start + mine] = Row{log_sum, part};
#pragma unroll
        for (int r = 0; r < 2; r++) {
            delta[r] = __shfl_sync(0xffffffffu, part, lane / 4 * 2 + 16 * r);
            lse2[r] = __shfl_sync(0xffffffffu, log_sum, lane / 4 * 2 + 16 * r);
        }
    }

    float acc[D / 8][4];
    set_zero(acc);
    int stage = 0;
    for (int tile = first; tile <= last; tile++) {
        next_stage<S>(stage, [&](int free) { load(tile + S::STAGES - 1, free); });
        const char *key_tile = tiles + stage * 2 * KEY;
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
        if (tile < own_first || tile > own_last) continue;

        float s[N / 8][4], dp[N / 8][4];
        pin(s);
        pin(dp);
        products_start();
        product_shared<N, D, ROWS>(s, queries, row, key_tile);
        products_finish();
        product_shared<N, D, ROWS>(dp, douts, row, key_tile + KEY);
        products_finish();
        products_wait<1>();
        pin(s);

        const int key = tile * N + 2 * (lane % 4), query = q0 + row + lane / 4;
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float v = s[j][i] * scale_log2 - lse2[i / 2];
                if (bias) v += bias_log2(f, bias, key + 8 * j + i % 2);
                s[j][i] = exp2_fast(v);
            }
        if (tile * N + N - 1 > u0 || (f.window && tile * N <= u0 + UNIT - 1 - f.window)) {
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (!sees(query + i / 2 * 8, key + 8 * j + i % 2, f.window)) s[j][i] = 0.0f;
        }
        products_wait<0>();
        pin(dp);
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[j][i] *= dp[j][i] - delta[i / 2];
        u32 ds[N / 16][4];
        as_left(ds, s);
        pin(acc);
        products_start();
        product_add<N, D>(acc, ds, key_tile, 0);
        products_finish();
        products_wait<0>();
        pin(acc);
    }
    copy_wait<0>();
    __syncthreads();
    store_rows<ROWS, D>(queries, row, acc, f.scale, f.scale,
                        dqkv + (u64)(start + q0) * f.l.width + query_column(f.l, head), f.l.width, length - q0, dim);
}

// OUT columns of dk and dv from column blockIdx.y * OUT on: a head too wide for the registers is done in parts.
// Without partial, dk and dv go to dqkv; with it, to partial[chunk][token][kv head][k, v][dim].
template <class S, int OUT>
__device__ __forceinline__ void backward_key(const Attention &f, const elem *qkv, const u32 *cu_seqlens, int tokens,
                                             int sequences, int chunks, const elem *dout, const Row *rows,
                                             float *partial, elem *dqkv) {
    constexpr int D = S::D, N = S::TILE, ROWS = S::ROWS, QUERY = Tile<N, D>::BYTES;
    constexpr int STAGE = (2 * QUERY + N * 8 + 1023) / 1024 * 1024;
    char *keys = shared_tiles(), *values = keys + Tile<ROWS, D>::BYTES, *tiles = values + Tile<ROWS, D>::BYTES;
    const int group = f.l.heads / f.l.kv_heads, dim = f.l.head_dim, column = blockIdx.y * OUT;
    int block = blockIdx.x;
    const int chunk = block % chunks;
    block /= chunks;
    const int kv_head = block % f.l.kv_heads;
    block /= f.l.kv_heads;
    const int sequence = block % sequences, k0 = block / sequences * ROWS;
    const int start = cu_seqlens[sequence], length = cu_seqlens[sequence + 1] - start;
    if (k0 >= length) return;
    const int warp = warp_index(), lane = threadIdx.x % 32, row = 16 * warp;
    const int first_head = kv_head * group + (int)((u64)chunk * group / chunks);
    const int end_head = kv_head * group + (int)((u64)(chunk + 1) * group / chunks);
    const float scale_log2 = f.scale * LOG2E;
    const u64 out_stride = (u64)f.l.heads * dim;
    const int u0 = k0 + row / UNIT * UNIT;
    // Tiles of queries that see some key of the block.
    const int first = k0 / N;
    const int last = ((f.window ? min((u64)length, (u64)k0 + ROWS - 1 + f.window) : length) - 1) / N;

    const Copier<N, D, S::THREADS> query_copier(f.l.width, dim), dout_copier(out_stride, dim);
    const auto load = [&](int head, int tile, int stage) {
        char *to = tiles + stage * STAGE;
        const int valid = length - tile * N;
        const u64 token = start + tile * N;
        query_copier.run(to, qkv + token * f.l.width + query_column(f.l, head), valid);
        dout_copier.run(to + QUERY, dout + token * out_stride + head * dim, valid);
        for (int i = threadIdx.x; i < N; i += S::THREADS)
            copy8(to + 2 * QUERY + 8 * i, rows + (u64)head * tokens + token + i, i < valid);
    };
    const elem *kv = qkv + (u64)(start + k0) * f.l.width + kv_head * f.l.kv_stride;
    const Copier<ROWS, D, S::THREADS> copier(f.l.width, dim);
    copier.run(keys, kv + f.l.key_offset, length - k0);
    copier.run(values, kv + f.l.value_offset, length - k0);
    // The pair that is loaded next.
    int next_head = first_head, next_tile = first;
    const auto load_next = [&](int stage) {
        if (next_head < end_head) load(next_head, next_tile, stage);
        copy_commit();
        if (next_tile++ == last) next_tile = first, next_head++;
    };
    first_stages<S>(load_next);

    float dk[OUT / 8][4], dv[OUT / 8][4];
    set_zero(dk);
    set_zero(dv);
    int stage = 0;
    for (int head = first_head; head < end_head; head++) {
        float bias[2] = {};
        if (f.alibi) {
            const float *table = f.alibi + (u64)head * f.alibi_positions;
            bias[0] = bias_log2(f, table, k0 + row + lane / 4);
            bias[1] = bias_log2(f, table, k0 + row + lane / 4 + 8);
        }
        for (int tile = first; tile <= last; tile++) {
            next_stage<S>(stage, load_next);
            const char *query_tile = tiles + stage * STAGE, *dout_tile = query_tile + QUERY;
            const float4 *stats = (const float4 *)(dout_tile + QUERY);
            stage = stage + 1 == S::STAGES ? 0 : stage + 1;
            if (tile * N + N <= u0 || u0 >= length || (f.window && tile * N - u0 >= UNIT - 1 + f.window)) continue;

            float s[N / 8][4], dp[N / 8][4];
            pin(s);
            pin(dp);
            products_start();
            product_shared<N, D, ROWS>(s, keys, row, query_tile);
            products_finish();
            product_shared<N, D, ROWS>(dp, values, row, dout_tile);
            products_finish();
            products_wait<1>();
            pin(s);

            const int query = tile * N + 2 * (lane % 4), key = k0 + row + lane / 4;
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                const float4 stat = stats[4 * j + lane % 4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    s[j][i] = exp2_fast(s[j][i] * scale_log2 + (bias[i / 2] - (i % 2 ? stat.z : stat.x)));
            }
            if (tile * N < u0 + UNIT - 1 || tile * N + N > length || (f.window && tile * N + N - 1 - u0 >= f.window)) {
#pragma unroll
                for (int j = 0; j < N / 8; j++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int q = query + 8 * j + i % 2;
                        if (q >= length || !sees(q, key + i / 2 * 8, f.window)) s[j][i] = 0.0f;
                    }
            }
            u32 left[N / 16][4], ds[N / 16][4];
            as_left(left, s);
            products_wait<0>();
            pin(dp);
            pin(dv);
            products_start();
            product_add<N, OUT>(dv, left, dout_tile, column / 64);
            products_finish();
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                const float4 stat = stats[4 * j + lane % 4];
#pragma unroll
                for (int i = 0; i < 4; i++) s[j][i] *= dp[j][i] - (i % 2 ? stat.w : stat.y);
            }
            as_left(ds, s);
            pin(dk);
            products_start();
            product_add<N, OUT>(dk, ds, query_tile, column / 64);
            products_finish();
            products_wait<0>();
            pin(dv);
            pin(dk);
        }
    }
    copy_wait<0>();
    __syncthreads();
    if (partial) {
        const u64 pitch = (u64)f.l.kv_heads * 2 * dim;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int at = k0 + row + lane / 4 + 8 * r;
            if (at >= length) continue;
            float *to = partial + ((u64)chunk * tokens + start + at) * pitch + kv_head * 2 * dim;
#pragma unroll
            for (int j = 0; j < OUT / 8; j++) {
                const int c = column + 8 * j + 2 * (lane % 4);
                if (c >= dim) continue;
                *(float2 *)(to + c) = make_float2(dk[j][2 * r] * f.scale, dk[j][2 * r + 1] * f.scale);
                *(float2 *)(to + dim + c) = make_float2(dv[j][2 * r], dv[j][2 * r + 1]);
            }
        }
    } else {
        elem *to = dqkv + (u64)(start + k0) * f.l.width + kv_head * f.l.kv_stride + column;
        store_rows<ROWS, OUT>(keys, row, dk, f.scale, f.scale, to + f.l.key_offset, f.l.width, length - k0, dim - column);
        store_rows<ROWS, OUT>(values, row, dv, 1.0f, 1.0f, to + f.l.value_offset, f.l.width, length - k0, dim - column);
    }
}

// Adds the chunks' dk and dv up, eight columns a thread.
__device__ __forceinline__ void backward_sum(const QkvLayout &l, int tokens, int chunks, const float *partial, elem *dqkv) {
    const int per_head = l.head_dim / 8, per_row = l.kv_heads * 2 * per_head;
    const u64 item = blockIdx.x * (u64)blockDim.x + threadIdx.x, total = (u64)tokens * per_row;
    if (item >= total) return;
    const u64 token = item / per_row;
    const int i = item % per_row, kv_head = i / (2 * per_head), value = i / per_head % 2, column = i % per_head * 8;
    float sum[8] = {};
    for (int chunk = 0; chunk < chunks; chunk++) {
        float v[8];
        Eight<float>::load(partial + (chunk * total + item) * 8, v);
#pragma unroll
        for (int k = 0; k < 8; k++) sum[k] += v[k];
    }
    Eight<elem>::store(dqkv + token * l.width + kv_head * l.kv_stride + (value ? l.value_offset : l.key_offset) + column, sum);
}

// The Rust table of shapes, attention_shapes.rs, repeats these.
#if WGMMA
typedef Shape<64, 64, 4, 2, 4> Query64;
typedef Shape<96, 64, 4, 2, 2> Query96;
typedef Shape<128, 64, 4, 1, 3> Query128;
typedef Shape<256, 32, 8, 2, 1> Query256;
typedef Shape<64, 64, 4, 3, 3> Key64;
typedef Shape<96, 64, 8, 2, 1> Key96;
typedef Shape<128, 64, 8, 3, 1> Key128;
typedef Shape<256, 32, 8, 2, 1> Key256;
#elif AMPERE
typedef Shape<64, 64, 4, 2, 2> Query64;
typedef Shape<96, 64, 4, 2, 1> Query96;
typedef Shape<128, 64, 4, 2, 1> Query128;
typedef Shape<256, 32, 4, 1, 1> Query256;
typedef Shape<64, 64, 4, 2, 2> Key64;
typedef Shape<96, 32, 4, 2, 1> Key96;
typedef Shape<128, 32, 4, 2, 1> Key128;
typedef Shape<256, 32, 4, 1, 1> Key256;
#else
typedef Shape<64, 64, 4, 1, 1> Query64;
typedef Shape<96, 64, 4, 1, 1> Query96;
typedef Shape<128, 64, 4, 1, 1> Query128;
typedef Shape<256, 32, 2, 1, 1> Query256;
typedef Shape<64, 64, 4, 1, 1> Key64;
typedef Shape<96, 32, 4, 1, 1> Key96;
typedef Shape<128, 32, 4, 1, 1> Key128;
typedef Shape<256, 16, 2, 1, 1> Key256;
#endif

#define QUERY_PARAMETERS \
    Attention f, const elem *qkv, const u32 *cu_seqlens, int tokens, const elem *out, const float *lse, \
        const elem *dout, Row *rows, elem *dqkv
#define QUERY_ARGUMENTS f, qkv, cu_seqlens, tokens, out, lse, dout, rows, dqkv
#define KEY_PARAMETERS \
    Attention f, const elem *qkv, const u32 *cu_seqlens, int tokens, int sequences, int chunks, const elem *dout, \
        const Row *rows, float *partial, elem *dqkv
#define SUM_PARAMETERS QkvLayout l, int tokens, int chunks, const float *partial, elem *dqkv
#define KEY_ARGUMENTS f, qkv, cu_seqlens, tokens, sequences, chunks, dout, rows, partial, dqkv

#if HAS(64)
KERNEL BOUNDS(Query64) void flash_backward_query_64(QUERY_PARAMETERS) { backward_query<Query64>(QUERY_ARGUMENTS); }
KERNEL BOUNDS(Key64) void flash_backward_key_64(KEY_PARAMETERS) { backward_key<Key64, 64>(KEY_ARGUMENTS); }
KERNEL __launch_bounds__(256) void flash_backward_sum_64(SUM_PARAMETERS) { backward_sum(l, tokens, chunks, partial, dqkv); }
#endif
#if HAS(96)
KERNEL BOUNDS(Query96) void flash_backward_query_96(QUERY_PARAMETERS) { backward_query<Query96>(QUERY_ARGUMENTS); }
KERNEL BOUNDS(Key96) void flash_backward_key_96(KEY_PARAMETERS) { backward_key<Key96, 96>(KEY_ARGUMENTS); }
KERNEL __launch_bounds__(256) void flash_backward_sum_96(SUM_PARAMETERS) { backward_sum(l, tokens, chunks, partial, dqkv); }
#endif
#if HAS(128)
KERNEL BOUNDS(Query128) void flash_backward_query_128(QUERY_PARAMETERS) { backward_query<Query128>(QUERY_ARGUMENTS); }
KERNEL BOUNDS(Key128) void flash_backward_key_128(KEY_PARAMETERS) { backward_key<Key128, 128>(KEY_ARGUMENTS); }
KERNEL __launch_bounds__(256) void flash_backward_sum_128(SUM_PARAMETERS) { backward_sum(l, tokens, chunks, partial, dqkv); }
#endif
#if HAS(256)
KERNEL BOUNDS(Query256) void flash_backward_query_256(QUERY_PARAMETERS) { backward_query<Query256>(QUERY_ARGUMENTS); }
KERNEL BOUNDS(Key256) void flash_backward_key_256(KEY_PARAMETERS) { backward_key<Key256, 128>(KEY_ARGUMENTS); }
KERNEL __launch_bounds__(256) void flash_backward_sum_256(SUM_PARAMETERS) { backward_sum(l, tokens, chunks, partial, dqkv); }
#endif
