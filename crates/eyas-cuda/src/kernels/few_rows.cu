// Projections of at most eight tokens (generation) whose weights are dense, or of a shape that few_mma.cu does not take: a
// weight is read once, in the form it is kept in, by a warp for each pair of its rows. y [tokens, ldy] (+)= x [tokens, k] w^T + bias + scaling * h B^T.

// The A of each part's update: [r, k], where its activations start in h, and the end of the last.
struct Down {
    const float *a[4];
    int start[5];
    int count;
};

// h[t, j] = x[t] . a[j] in f32, for RANKS ranks and eight tokens a block of so many warps.
template <int RANKS, int WARPS>
__device__ __forceinline__ void hidden(const Down &down, const elem *x, int tokens, int k, float *h, int ldh, elem *saved,
                                       int lds, int vec) {
    __shared__ float sums[WARPS][RANKS * 8];
    const int rank0 = blockIdx.x * RANKS, token0 = blockIdx.y * 8, total = down.start[down.count];
    const float *a[RANKS];
#pragma unroll
    for (int i = 0; i < RANKS; i++) {
        const int rank = rank0 + i < total ? rank0 + i : total - 1;
        int part = 0;
        while (part + 1 < down.count && rank >= down.start[part + 1]) part++;
        a[i] = down.a[part] + (u64)(rank - down.start[part]) * k;
    }
    await_previous();
    float acc[RANKS][8] = {};
    for (int col = threadIdx.x * 8; col < k; col += 32 * WARPS * 8) {
        float w[RANKS][8];
#pragma unroll
        for (int i = 0; i < RANKS; i++) load8(a[i], col, k, vec, w[i]);
#pragma unroll
        for (int t = 0; t < 8; t++) {
            if (token0 + t >= tokens) continue;
            float v[8];
            load8(x + (u64)(token0 + t) * k, col, k, vec, v);
#pragma unroll
            for (int i = 0; i < RANKS; i++)
#pragma unroll
                for (int e = 0; e < 8; e++) acc[i][t] += v[e] * w[i][e];
        }
    }
#pragma unroll
    for (int i = 0; i < RANKS; i++)
#pragma unroll
        for (int t = 0; t < 8; t++) {
            if (token0 + t >= tokens) continue;
            const float sum = warp_sum(acc[i][t]);
            if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32][i * 8 + t] = sum;
        }
    __syncthreads();
    const int rank = rank0 + threadIdx.x / 8, token = token0 + threadIdx.x % 8;
    if (threadIdx.x >= RANKS * 8 || rank >= total || token >= tokens) return;
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += sums[warp][threadIdx.x];
    h[(u64)token * ldh + rank] = sum;
    if (saved) saved[(u64)token * lds + rank] = from_f32<elem>(sum);
}

#define HIDDEN_PARAMETERS \
    const __grid_constant__ Down down, const elem *x, int tokens, int k, float *h, int ldh, elem *saved, int lds, int vec
KERNEL __launch_bounds__(512) void few_rows_hidden(HIDDEN_PARAMETERS) { hidden<1, 16>(down, x, tokens, k, h, ldh, saved, lds, vec); }
KERNEL __launch_bounds__(256) void some_rows_hidden(HIDDEN_PARAMETERS) { hidden<4, 8>(down, x, tokens, k, h, ldh, saved, lds, vec); }

struct LowRank {
    const float *h;  // [tokens, ldh]; none without an update
    const float *b;  // [n, r]
    int ldh, r;
    float scaling;
};

// Ends a row: the update's share, the sum over the warp, bias, residual.
template <int T>
__device__ __forceinline__ void finish_row(float (&acc)[T], int row, int tokens, const LowRank &low, const float *bias,
                                           elem *y, u64 ldy, int add, int lane) {
    if (low.h)
        for (int j = lane; j < low.r; j += 32) {
            const float b = low.scaling * low.b[(u64)row * low.r + j];
#pragma unroll
            for (int t = 0; t < T; t++)
                if (t < tokens) acc[t] += low.h[t * low.ldh + j] * b;
        }
#pragma unroll
    for (int t = 0; t < T; t++) {
        float sum = warp_sum(acc[t]);
        if (lane == 0 && t < tokens) {
            if (bias) sum += bias[row];
            elem *to = y + t * ldy + row;
            *to = from_f32<elem>(add ? to_f32(*to) + sum : sum);
        }
    }
}

#define ROWS 2

// A warp's rows: `sum` adds their products with each token to its lane's sums.
template <int T, class Sum>
__device__ __forceinline__ void rows_of_warp(int tokens, int n, const LowRank &low, const float *bias, elem *y, u64 ldy,
                                             int add, const Sum &sum) {
    const int lane = threadIdx.x % 32, row0 = (blockIdx.x * blockDim.x + threadIdx.x) / 32 * ROWS;
    if (row0 >= n) return;
    float acc[ROWS][T];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int t = 0; t < T; t++) acc[i][t] = 0.0f;
    sum(acc, row0, lane);
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        if (row0 + i < n) finish_row<T>(acc[i], row0 + i, tokens, low, bias, y, ldy, add, lane);
}

template <int T>
__device__ void quantized(const Quantized &q, const elem *x, int tokens, int n, int k, const LowRank &low,
                          const float *bias, elem *y, u64 ldy, int add) {
    __shared__ float levels[16][32];
    for (int i = threadIdx.x; i < 512; i += blockDim.x) levels[i / 32][i % 32] = q.tables[i / 32];
    __syncthreads();
    rows_of_warp<T>(tokens, n, low, bias, y, ldy, add, [&](float (&acc)[ROWS][T], int row0, int lane) {
        // A chunk is 32 values, 16 bytes; k is a multiple of 32 and so is a block.
        const int chunks = k / 32;
        for (int chunk = lane; chunk < chunks; chunk += 32) {
            u32 codes[ROWS][4];
            float scale[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const u64 index = (u64)(row0 + i < n ? row0 + i : row0) * chunks + chunk;
                const uint4 raw = __ldcs((const uint4 *)q.packed + index);
                codes[i][0] = raw.x, codes[i][1] = raw.y, codes[i][2] = raw.z, codes[i][3] = raw.w;
                scale[i] = block_scale(q, index >> (q.block_shift - 5));
            }
#pragma unroll
            for (int part = 0; part < 4; part++) {
                float w[ROWS][8];
#pragma unroll
                for (int i = 0; i < ROWS; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        const u32 byte = codes[i][part] >> (8 * j);
                        w[i][2 * j] = levels[byte >> 4 & 15][lane];
                        w[i][2 * j + 1] = levels[byte & 15][lane];
                    }
#pragma unroll
                for (int t = 0; t < T; t++) {
                    if (t >= tokens) continue;
                    float v[8];
                    Eight<elem>::load(x + (u64)t * k + chunk * 32 + part * 8, v);
#pragma unroll
                    for (int i = 0; i < ROWS; i++) {
                        float sum = 0.0f;
#pragma unroll
                        for (int j = 0; j < 8; j++) sum += w[i][j] * v[j];
                        acc[i][t] += scale[i] * sum;
                    }
                }
            }
        }
    });
}

KERNEL __launch_bounds__(128) void few_rows_quantized(Quantized q, const elem *x, int tokens, int n, int k, LowRank low,
                                                      const float *bias, elem *y, u64 ldy, int add) {
    await_previous();
    if (tokens == 1) quantized<1>(q, x, tokens, n, k, low, bias, y, ldy, add);
    else if (tokens <= 4) quantized<4>(q, x, tokens, n, k, low, bias, y, ldy, add);
    else quantized<8>(q, x, tokens, n, k, low, bias, y, ldy, add);
}

template <int T>
__device__ void dense(const elem *w, const elem *x, int tokens, int n, int k, const LowRank &low, const float *bias, elem *y,
                      u64 ldy, int add) {
    rows_of_warp<T>(tokens, n, low, bias, y, ldy, add, [&](float (&acc)[ROWS][T], int row0, int lane) {
        for (int col = lane * 8; col < k; col += 256) {
            float a[ROWS][8];
#pragma unroll
            for (int i = 0; i < ROWS; i++) Eight<elem>::load(w + (u64)(row0 + i < n ? row0 + i : row0) * k + col, a[i]);
#pragma unroll
            for (int t = 0; t < T; t++) {
                if (t >= tokens) continue;
                float v[8];
                Eight<elem>::load(x + (u64)t * k + col, v);
#pragma unroll
                for (int i = 0; i < ROWS; i++)
#pragma unroll
                    for (int j = 0; j < 8; j++) acc[i][t] += a[i][j] * v[j];
            }
        }
    });
}

KERNEL __launch_bounds__(128) void few_rows_dense(const elem *w, const elem *x, int tokens, int n, int k, LowRank low,
                                                  const float *bias, elem *y, u64 ldy, int add) {
    await_previous();
    if (tokens == 1) dense<1>(w, x, tokens, n, k, low, bias, y, ldy, add);
    else if (tokens <= 4) dense<4>(w, x, tokens, n, k, low, bias, y, ldy, add);
    else dense<8>(w, x, tokens, n, k, low, bias, y, ldy, add);
}
