// Attention of few queries over the key/value cache.
//
// Queries of one sequence that share keys (the heads of a group, times the sequence's new tokens) are rows of one product,
// so that the cache is read once for all of them. A warp walks over tiles of 16 keys by itself; the warps of a block and
// the blocks of a split share out the tiles, and their pieces are put together in a fixed order.

#define NO_WGMMA
#include "flash.cuh"

// Keys a tile, and rows of a block.
#define STEP 16

struct Cache {
    const elem *keys, *values;
    int capacity;
    const u32 *slots, *positions;
};

template <class S> struct DecodeTiles {
    static constexpr int KEY = Tile<STEP, S::D>::BYTES, WARP = 2 * KEY * S::STAGES, QUERY = Tile<STEP, S::D>::BYTES;
};

// Grid: sequences * kv heads, tiles of rows, splits. With more than one split, pieces [T, heads, splits, D] with their
// maxima and sums [T, heads, splits, 2] wait for flash_decode_combine_*.
template <class S>
__device__ __forceinline__ void decode(const Attention &f, const Cache &cache, const elem *qkv, const u32 *cu_seqlens,
                                       float *pieces, float2 *piece_stats, elem *out) {
    constexpr int D = S::D, KEY = DecodeTiles<S>::KEY;
    __shared__ float2 warp_stats[S::WARPS][STEP];
    await_previous();
    char *queries = shared_tiles();
    const int sequence = blockIdx.x / f.l.kv_heads, kv_head = blockIdx.x % f.l.kv_heads, dim = f.l.head_dim;
    const int group = f.l.heads / f.l.kv_heads, start = cu_seqlens[sequence];
    const int length = cu_seqlens[sequence + 1] - start, total = length * group, r0 = blockIdx.y * STEP;
    if (r0 >= total) return;
    const int warp = warp_index(), lane = threadIdx.x % 32, split = blockIdx.z, splits = gridDim.z;
    const int position = cache.positions[start], row_stride = f.l.kv_heads * dim;
    const u64 base = ((u64)cache.slots[sequence] * cache.capacity) * row_stride + kv_head * dim;
    char *tiles = queries + DecodeTiles<S>::QUERY + warp * DecodeTiles<S>::WARP;

    const int end_row = min(r0 + STEP, total), keys_end = position + (end_row - 1) / group + 1;
    const int first = first_tile(position + r0 / group, f.window, STEP) + split * S::WARPS + warp;
    const int last = (keys_end - 1) / STEP, step = splits * S::WARPS;
    const Copier<STEP, D, 32> copier(row_stride, dim, lane);
    const auto load = [&](int tile, int stage) {
        char *to = tiles + stage * 2 * KEY;
        const u64 at = base + (u64)tile * STEP * row_stride;
        copier.run(to, cache.keys + at, keys_end - tile * STEP);
        copier.run(to + KEY, cache.values + at, keys_end - tile * STEP);
    };
#pragma unroll
    for (int i = 0; i < S::STAGES - 1; i++) {
        if (first + i * step <= last) load(first + i * step, i);
        copy_commit();
    }
    for (int i = threadIdx.x; i < STEP * (D / 8); i += S::THREADS) {
        const int r = r0 + i / (D / 8), chunk = i % (D / 8);
        uint4 v = make_uint4(0, 0, 0, 0);
        if (r < total && chunk * 8 < dim)
            v = *(const uint4 *)(qkv + (u64)(start + r / group) * f.l.width +
                                 query_column(f.l, kv_head * group + r % group) + chunk * 8);
        *(uint4 *)(queries + tile_at<STEP>(i / (D / 8), chunk)) = v;
    }
    __syncthreads();
    u32 left[D / 16][4];
    load_left<STEP, D>(left, queries, 0);

    const float scale_log2 = f.scale * LOG2E;
    const float *bias[2] = {};
    int query[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int at = r0 + lane / 4 + 8 * r;
        query[r] = position + at / group;
        if (f.alibi) bias[r] = f.alibi + (u64)(kv_head * group + at % group) * f.alibi_positions;
    }
    float acc[D / 8][4], top[2] = {-INF, -INF}, sum[2] = {};
    set_zero(acc);
    int stage = 0;
    for (int tile = first; tile <= last; tile += step) {
        if constexpr (S::STAGES == 1) {
            __syncwarp();
            load(tile, 0);
            copy_commit();
        }
        copy_wait<S::STAGES == 1 ? 0 : S::STAGES - 2>();
        __syncwarp();
        if constexpr (S::STAGES > 1) {
            const int ahead = tile + (S::STAGES - 1) * step;
            if (ahead <= last) load(ahead, stage == 0 ? S::STAGES - 1 : stage - 1);
            copy_commit();
        }
        const char *key_tile = tiles + stage * 2 * KEY;
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
        float s[2][4];
        product_registers<STEP, D>(s, left, key_tile);
        const int key = tile * STEP + 2 * (lane % 4);
        float shrink[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float high = top[r];
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++) {
                    const int k = key + 8 * j + i % 2;
                    const float v = s[j][i] * scale_log2 + (f.alibi ? bias_log2(f, bias[r], k) : 0.0f);
                    s[j][i] = sees(query[r], k, f.window) ? v : -INF;
                    high = fmaxf(high, s[j][i]);
                }
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
            const float shift = high == -INF ? 0.0f : high;
            shrink[r] = exp2_fast(top[r] - shift);
            top[r] = high;
            float part = 0.0f;
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++) part += s[j][i] = exp2_fast(s[j][i] - shift);
            sum[r] = sum[r] * shrink[r] + part;
        }
        u32 p[1][4];
        as_left(p, s);
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            acc[j][0] *= shrink[0], acc[j][1] *= shrink[0];
            acc[j][2] *= shrink[1], acc[j][3] *= shrink[1];
        }
        product_add<STEP, D>(acc, p, key_tile + KEY, 0);
    }
    copy_wait<0>();
    __syncthreads();

    // The warps' pieces over the tiles' memory: [warp][row][D].
    float *shared_pieces = (float *)(queries + DecodeTiles<S>::QUERY);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        const int row = lane / 4 + 8 * r;
        if (lane % 4 == 0) warp_stats[warp][row] = make_float2(top[r], sum[r]);
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            *(float2 *)(shared_pieces + (warp * STEP + row) * D + 8 * j + 2 * (lane % 4)) =
                make_float2(acc[j][2 * r], acc[j][2 * r + 1]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < STEP * D; i += S::THREADS) {
        const int row = i / D, column = i % D, r = r0 + row;
        if (r >= total || column >= dim) continue;
        float all_top = -INF, all_sum = 0.0f, v = 0.0f;
#pragma unroll
        for (int w = 0; w < S::WARPS; w++) all_top = fmaxf(all_top, warp_stats[w][row].x);
        const float shift = all_top == -INF ? 0.0f : all_top;
#pragma unroll
        for (int w = 0; w < S::WARPS; w++) {
            const float weight = exp2_fast(warp_stats[w][row].x - shift);
            all_sum += weight * warp_stats[w][row].y;
            v += weight * shared_pieces[(w * STEP + row) * D + column];
        }
        const u64 item = (u64)(start + r / group) * f.l.heads + kv_head * group + r % group;
        if (splits == 1) {
            out[item * dim + column] = from_f32<elem>(v / all_sum);
        } else {
            pieces[(item * splits + split) * dim + column] = v;
            if (column == 0) piece_stats[item * splits + split] = make_float2(all_top, all_sum);
        }
    }
}

// A block a token and head.
__device__ __forceinline__ void combine(int dim, int splits, const float *pieces, const float2 *piece_stats, elem *out) {
    await_previous();
    const u64 item = blockIdx.x;
    float top = -INF, sum = 0.0f;
    for (int i = 0; i < splits; i++) top = fmaxf(top, piece_stats[item * splits + i].x);
    for (int i = 0; i < splits; i++) sum += exp2_fast(piece_stats[item * splits + i].x - top) * piece_stats[item * splits + i].y;
    for (int column = threadIdx.x; column < dim; column += blockDim.x) {
        float v = 0.0f;
        for (int i = 0; i < splits; i++)
            v += exp2_fast(piece_stats[item * splits + i].x - top) * pieces[(item * splits + i) * dim + column];
        out[item * dim + column] = from_f32<elem>(v / sum);
    }
}

// The Rust table of shapes, attention_shapes.rs, repeats these.
#if AMPERE
typedef Shape<64, STEP, 4, 4, 1> Decode64;
typedef Shape<96, STEP, 4, 2, 1> Decode96;
typedef Shape<128, STEP, 4, 2, 1> Decode128;
typedef Shape<256, STEP, 2, 2, 1> Decode256;
#else
typedef Shape<64, STEP, 4, 1, 1> Decode64;
typedef Shape<96, STEP, 4, 1, 1> Decode96;
typedef Shape<128, STEP, 4, 1, 1> Decode128;
typedef Shape<256, STEP, 2, 1, 1> Decode256;
#endif

#define PARAMETERS \
    Attention f, Cache cache, const elem *qkv, const u32 *cu_seqlens, float *pieces, float2 *piece_stats, elem *out
#define COMBINE_PARAMETERS int dim, int splits, const float *pieces, const float2 *piece_stats, elem *out
#define ARGUMENTS f, cache, qkv, cu_seqlens, pieces, piece_stats, out

#if HAS(64)
KERNEL BOUNDS(Decode64) void flash_decode_64(PARAMETERS) { decode<Decode64>(ARGUMENTS); }
KERNEL __launch_bounds__(64) void flash_decode_combine_64(COMBINE_PARAMETERS) { combine(dim, splits, pieces, piece_stats, out); }
#endif
#if HAS(96)
KERNEL BOUNDS(Decode96) void flash_decode_96(PARAMETERS) { decode<Decode96>(ARGUMENTS); }
KERNEL __launch_bounds__(64) void flash_decode_combine_96(COMBINE_PARAMETERS) { combine(dim, splits, pieces, piece_stats, out); }
#endif
#if HAS(128)
KERNEL BOUNDS(Decode128) void flash_decode_128(PARAMETERS) { decode<Decode128>(ARGUMENTS); }
KERNEL __launch_bounds__(64) void flash_decode_combine_128(COMBINE_PARAMETERS) { combine(dim, splits, pieces, piece_stats, out); }
#endif
#if HAS(256)
KERNEL BOUNDS(Decode256) void flash_decode_256(PARAMETERS) { decode<Decode256>(ARGUMENTS); }
KERNEL __launch_bounds__(64) void flash_decode_combine_256(COMBINE_PARAMETERS) { combine(dim, splits, pieces, piece_stats, out); }
#endif
