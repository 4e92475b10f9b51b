// Products with one thin side, the rank: bound by memory, so each reads its large operand once. Dropout's mask is drawn
// where the large operand passes through shared memory (thin_down, thin_grad) or where the result leaves (thin_up).
//
//   thin_down   h [T, R]  = mask(x) [T, K] a^T          a [R, K]
//   thin_up     y [T, N] (+)= mask(h [T, R] p)          p [R, N]
//   thin_grad   g [R, C] += h^T [R, T] mask(x) [T, C]
//
// Packed operands: `a` is [rank_pad, width_pad] with rank_pad a multiple of 16 and width_pad one of 128, zero where
// padded. Partial sums over pieces of the long axis are added up in a fixed order by the *_finish kernels.

// --- Packing the adapter's f32 matrices ---

// A [r, k] to `rows` rows of ld columns, zero where padded.
KERNEL void pack_a(const float *a, int r, int k, elem *out, int rows, u32 ld) {
    const u64 n = (u64)rows * ld;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        const u64 row = i / ld, col = i - row * ld;
        out[i] = from_f32<elem>(row < r && col < k ? a[row * k + col] : 0.0f);
    }
}
// scaling * B [n, r] transposed to [rows, ld], zero where padded. Blocks of 32 x 32, 256 threads.
KERNEL void pack_b(const float *b, int n, int r, float scaling, elem *out, int rows, u32 ld) {
    __shared__ float tile[32][33];
    const int row0 = blockIdx.x * 32, col0 = blockIdx.y * 32, lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < 32; i += 8)
        tile[i][lane] = row0 + i < n && col0 + lane < r ? b[(u64)(row0 + i) * r + col0 + lane] : 0.0f;
    __syncthreads();
    for (int i = threadIdx.x / 32; i < 32; i += 8)
        if (col0 + i < rows && row0 + lane < ld) out[(u64)(col0 + i) * ld + row0 + lane] = from_f32<elem>(scaling * tile[lane][i]);
}
// A bias in the activations' type; zeros without one.
KERNEL void pack_bias(const float *bias, int n, elem *out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_f32<elem>(bias ? bias[i] : 0.0f);
}

#define DOWN_ROWS 128
#define GRAD_COLS 128
#define STEP 64
#if __CUDA_ARCH__ >= 800
#define STAGES 3
#else
#define STAGES 2
#endif

#if ELEM_IS_F32

__device__ __forceinline__ float masked(const Dropout &d, float v, u32 token, int col) {
    if (d.threshold == 0) return v;
    const uint4 words = dropout_words(d, token, col / 8);
    const u32 w[4] = {words.x, words.y, words.z, words.w};
    const u32 word = w[col % 8 / 2];
    return (col % 2 ? word : word << 16) < d.threshold ? 0.0f : v;
}

// Plain f32 versions with the same blocks, for tests of exactness and small models.
template <int R>
__device__ void down(const elem *x, u64 ldx, int vec, int tokens, int k, const elem *a, u64 lda, int rank_pad, elem *wide,
                     u64 ld_wide, float *partial, int k_step, Dropout drop) {
    const int row0 = blockIdx.x * DOWN_ROWS, k0 = blockIdx.y * k_step, k1 = k0 + k_step < k ? k0 + k_step : k;
    const int rank0 = blockIdx.z * R, ranks = rank_pad - rank0 < R ? rank_pad - rank0 : R;
    if (wide && blockIdx.z == 0)
        for (int row = row0; row < row0 + DOWN_ROWS && row < tokens; row++)
            for (int col = k0 + threadIdx.x; col < k1; col += blockDim.x) wide[row * ld_wide + col] = x[row * ldx + col];
    for (int i = threadIdx.x; i < DOWN_ROWS * ranks; i += blockDim.x) {
        const int row = row0 + i / ranks, rank = rank0 + i % ranks;
        if (row >= tokens) break;
        float sum = 0.0f;
        for (int col = k0; col < k1; col++) sum += masked(drop, x[row * ldx + col], row, col) * a[rank * lda + col];
        partial[((u64)blockIdx.y * tokens + row) * rank_pad + rank] = sum;
    }
}

template <int R>
__device__ void grad(const elem *h, u64 ldh, int hvec, int r, const elem *x, u64 ldx, int vec, int cols, int tokens,
                     float *partial, int rank_pad, u64 cols_pad, int t_step, Dropout drop) {
    const int col0 = blockIdx.x * GRAD_COLS, t0 = blockIdx.y * t_step, t1 = t0 + t_step < tokens ? t0 + t_step : tokens;
    const int rank0 = blockIdx.z * R, ranks = rank_pad - rank0 < R ? rank_pad - rank0 : R;
    for (int i = threadIdx.x; i < GRAD_COLS * ranks; i += blockDim.x) {
        const int col = col0 + i % GRAD_COLS, rank = rank0 + i / GRAD_COLS;
        float sum = 0.0f;
        if (col < cols && rank < r)
            for (int t = t0; t < t1; t++) sum += h[t * ldh + rank] * masked(drop, x[t * ldx + col], t, col);
        partial[((u64)blockIdx.y * rank_pad + rank) * cols_pad + col] = sum;
    }
}

KERNEL void thin_up(const elem *h, u64 ldh, int hvec, int r, const elem *p, u64 ldp, elem *y, u64 ldy, int vec, int tokens,
                    int n, int add, Dropout drop) {
    for (int i = threadIdx.x; i < 64 * 128; i += blockDim.x) {
        const int row = blockIdx.y * 64 + i / 128, col = blockIdx.x * 128 + i % 128;
        if (row >= tokens || col >= n) continue;
        float sum = 0.0f;
        for (int j = 0; j < r; j++) sum += h[row * ldh + j] * p[j * ldp + col];
        sum = masked(drop, sum, row, col) * drop.keep_scale;
        y[row * ldy + col] = add ? y[row * ldy + col] + sum : sum;
    }
}

#else

// Eight elements to shared memory, asynchronously where the row allows it; zeros outside.
__device__ __forceinline__ void stage8(elem *to, const elem *row, int col, int n, bool inside, int vec) {
    if (vec) {
        copy16(to, inside && col < n ? row + col : row, inside && col < n);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        elem zero;
        zero.bits = 0;
        to[i] = inside && col + i < n ? row[col + i] : zero;
    }
}

// Masks eight elements in shared memory. Their scale is that of the whole sum: the *_finish kernels apply it.
__device__ __forceinline__ void mask8(elem *p, const Dropout &drop, u32 token, u32 block) {
    const uint4 words = dropout_words(drop, token, block);
    uint4 v = *(const uint4 *)p;
    v.x = drop_pair(drop, v.x, words.x);
    v.y = drop_pair(drop, v.y, words.y);
    v.z = drop_pair(drop, v.z, words.z);
    v.w = drop_pair(drop, v.w, words.w);
    *(uint4 *)p = v;
}

// `load(step)` starts the copy of a step's operands; STAGES - 1 steps are on their way before the loop and in each round.
template <class Load> __device__ __forceinline__ void first_stages(int steps, const Load &load) {
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load(s);
        copy_commit();
    }
}
template <class Load> __device__ __forceinline__ void next_stage(int step, int steps, const Load &load) {
    copy_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) load(step + STAGES - 1);
    copy_commit();
}

template <int N> __device__ __forceinline__ void set_zero(float (&acc)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; i++) acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.0f;
}

// Adds the products of a warp's rows and 16 ranks at a time; `right(b, n)` reads those of the ranks from n on.
template <int N, class Right>
__device__ __forceinline__ void add_ranks(float (&acc)[N][4], const u32 (&left)[4], int ranks, const Right &right) {
#pragma unroll
    for (int n = 0; n < 8 * N; n += 16) {
        if (n < ranks) {
            u32 b[4];
            right(b, n);
            Mma<elem>::run(acc[n / 8], left, b[0], b[1]);
            Mma<elem>::run(acc[n / 8 + 1], left, b[2], b[3]);
        }
    }
}

#define DOWN_LD (STEP + 8)
#define GRAD_LD (GRAD_COLS + 8)

// 256 threads: eight warps of 16 tokens each, R ranks. Grid: token tiles, pieces of K, rank tiles.
template <int R>
__device__ void down(const elem *x, u64 ldx, int vec, int tokens, int k, const elem *a, u64 lda, int rank_pad, elem *wide,
                     u64 ld_wide, float *partial, int k_step, Dropout drop) {
    extern __shared__ __align__(16) unsigned char shared[];
    typedef elem Row[DOWN_LD];
    Row *xs = (Row *)shared;                          // [STAGES][DOWN_ROWS]
    Row *as = xs + STAGES * DOWN_ROWS;                // [STAGES][R]
    const int row0 = blockIdx.x * DOWN_ROWS, k0 = blockIdx.y * k_step, k1 = k0 + k_step < k ? k0 + k_step : k;
    const int rank0 = blockIdx.z * R, ranks = rank_pad - rank0 < R ? rank_pad - rank0 : R;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool copy = wide && blockIdx.z == 0;
    const int steps = k1 > k0 ? (k1 - k0 + STEP - 1) / STEP : 0;

    float acc[R / 8][4];
    set_zero(acc);

    // A thread has the same eight columns of every 32nd row in each stage.
    const int first_row = threadIdx.x / (STEP / 8), local = threadIdx.x % (STEP / 8) * 8;
    const elem *from = x + (u64)(row0 + first_row) * ldx + k0 + local;
    const u64 from_next = 32 * ldx;
    auto load = [&](int step) {
        const int slot = step % STAGES, col0 = k0 + step * STEP;
        elem *to = &xs[slot * DOWN_ROWS + first_row][local];
        const elem *start = from + step * STEP;
#pragma unroll
        for (int j = 0; j < DOWN_ROWS / 32; j++) {
            const bool inside = row0 + first_row + j * 32 < tokens;
            if (vec) {
                copy16(to + j * 32 * DOWN_LD, start + j * from_next, inside && col0 + local < k1);
            } else {
                const elem *row = x + (u64)(inside ? row0 + first_row + j * 32 : 0) * ldx;
                stage8(to + j * 32 * DOWN_LD, row, col0 + local, k1, inside, 0);
            }
        }
        for (int i = threadIdx.x; i < ranks * (STEP / 8); i += 256) {
            const int row = i / (STEP / 8), col = i % (STEP / 8) * 8;
            copy16(&as[slot * R + row][col], a + (u64)(rank0 + row) * lda + col0 + col, true);
        }
    };
    first_stages(steps, load);
    for (int step = 0; step < steps; step++) {
        next_stage(step, steps, load);
        Row *xt = xs + step % STAGES * DOWN_ROWS, *at = as + step % STAGES * R;
        if (copy || drop.threshold) {
            const int col = k0 + step * STEP + local;
            // Unrolled: the rounds of several counters overlap.
#pragma unroll
            for (int j = 0; j < DOWN_ROWS / 32; j++) {
                const int row = first_row + j * 32;
                if (row0 + row >= tokens || col >= k1) continue;
                if (copy) {
                    elem *to = wide + (u64)(row0 + row) * ld_wide + col;
                    if (vec) {
                        *(uint4 *)to = *(const uint4 *)&xt[row][local];
                    } else {
                        for (int e = 0; e < 8 && col + e < k1; e++) to[e] = xt[row][local + e];
                    }
                }
                if (drop.threshold) mask8(&xt[row][local], drop, row0 + row, col / 8);
            }
            __syncthreads();
        }
#pragma unroll
        for (int kk = 0; kk < STEP; kk += 16) {
            u32 fa[4];
            ldmatrix4(fa, &xt[warp * 16 + lane % 16][kk + lane / 16 * 8]);
            // Rows n .. n + 8 and n + 8 .. n + 16 of a, each in two halves of eight columns.
            add_ranks(acc, fa, ranks, [&](u32 (&fb)[4], int n) {
                ldmatrix4(fb, &at[n + lane / 16 * 8 + lane % 8][kk + lane / 8 % 2 * 8]);
            });
        }
    }
    const int row = row0 + warp * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < R; n += 8) {
        if (n >= ranks) continue;
        const int rank = rank0 + n + lane % 4 * 2;
        float *to = partial + ((u64)blockIdx.y * tokens + row) * rank_pad + rank;
        if (row < tokens) *(float2 *)to = make_float2(acc[n / 8][0], acc[n / 8][1]);
        if (row + 8 < tokens) *(float2 *)(to + 8 * (u64)rank_pad) = make_float2(acc[n / 8][2], acc[n / 8][3]);
    }
}

// 256 threads: eight warps of 16 columns each, R ranks. Grid: column tiles, pieces of T, rank tiles.
template <int R>
__device__ void grad(const elem *h, u64 ldh, int hvec, int r, const elem *x, u64 ldx, int vec, int cols, int tokens,
                     float *partial, int rank_pad, u64 cols_pad, int t_step, Dropout drop) {
    extern __shared__ __align__(16) unsigned char shared[];
    typedef elem XRow[GRAD_LD];
    typedef elem HRow[R + 8];
    XRow *xs = (XRow *)shared;                        // [STAGES][STEP]
    HRow *hs = (HRow *)(xs + STAGES * STEP);          // [STAGES][STEP]
    const int col0 = blockIdx.x * GRAD_COLS, t0 = blockIdx.y * t_step, t1 = t0 + t_step < tokens ? t0 + t_step : tokens;
    const int rank0 = blockIdx.z * R, ranks = rank_pad - rank0 < R ? rank_pad - rank0 : R;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int steps = t1 > t0 ? (t1 - t0 + STEP - 1) / STEP : 0;

    float acc[R / 8][4];
    set_zero(acc);

    // A thread has the same eight columns of every 16th row in each stage.
    const int first_row = threadIdx.x / (GRAD_COLS / 8), local = threadIdx.x % (GRAD_COLS / 8) * 8;
    const elem *from = x + (u64)(t0 + first_row) * ldx + col0 + local;
    const u64 from_next = 16 * ldx;
    auto load = [&](int step) {
        const int slot = step % STAGES;
        elem *to = &xs[slot * STEP + first_row][local];
        const elem *start = from + (u64)(step * STEP) * ldx;
#pragma unroll
        for (int j = 0; j < STEP / 16; j++) {
            const int t = t0 + step * STEP + first_row + j * 16;
            if (vec) {
                copy16(to + j * 16 * GRAD_LD, start + j * from_next, t < t1 && col0 + local < cols);
            } else {
                stage8(to + j * 16 * GRAD_LD, x + (u64)(t < t1 ? t : 0) * ldx, col0 + local, cols, t < t1, 0);
            }
        }
#pragma unroll
        for (int j = 0; j < R / 32; j++) {
            const int i = threadIdx.x + j * 256;
            const int row = i / (R / 8), col = i % (R / 8) * 8, t = t0 + step * STEP + row;
            stage8(&hs[slot * STEP + row][col], h + (u64)(t < t1 ? t : 0) * ldh, rank0 + col, r, t < t1, hvec);
        }
    };
    first_stages(steps, load);
    for (int step = 0; step < steps; step++) {
        next_stage(step, steps, load);
        XRow *xt = xs + step % STAGES * STEP;
        HRow *ht = hs + step % STAGES * STEP;
        if (drop.threshold) {
#pragma unroll
            for (int j = 0; j < STEP / 16; j++) {
                const int row = first_row + j * 16, t = t0 + step * STEP + row;
                if (t < t1 && col0 + local < cols) mask8(&xt[row][local], drop, t, (col0 + local) / 8);
            }
            __syncthreads();
        }
#pragma unroll
        for (int kk = 0; kk < STEP; kk += 16) {
            // x is [t, col]; the transposing load makes columns the rows of the first operand.
            u32 fa[4];
            ldmatrix4_trans(fa, &xt[kk + lane / 16 * 8 + lane % 8][warp * 16 + lane / 8 % 2 * 8]);
            add_ranks(acc, fa, ranks, [&](u32 (&fb)[4], int n) {
                ldmatrix4_trans(fb, &ht[kk + lane % 16][n + lane / 16 * 8]);
            });
        }
    }
    const int col = col0 + warp * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < R; n += 8) {
        if (n >= ranks) continue;
        const int rank = rank0 + n + lane % 4 * 2;
        float *to = partial + ((u64)blockIdx.y * rank_pad + rank) * cols_pad + col;
        to[0] = acc[n / 8][0];
        to[cols_pad] = acc[n / 8][1];
        to[8] = acc[n / 8][2];
        to[cols_pad + 8] = acc[n / 8][3];
    }
}

// 256 threads, 64 tokens x 128 columns: warps 4 x 2. Grid: column tiles, token tiles.
KERNEL __launch_bounds__(256) void thin_up(const elem *h, u64 ldh, int hvec, int r, const elem *p, u64 ldp, elem *y, u64 ldy,
                                           int vec, int tokens, int n, int add, Dropout drop) {
    __shared__ __align__(16) unsigned char shared[64 * 132 * 4];
    typedef elem HRow[72];
    typedef elem PRow[136];
    HRow *hs = (HRow *)shared;                        // [64]
    PRow *ps = (PRow *)(hs + 64);                     // [64]
    const int row0 = blockIdx.y * 64, col0 = blockIdx.x * 128;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wm = warp % 4 * 16, wn = warp / 4 * 64;
    float acc[8][4];
    set_zero(acc);
    for (int r0 = 0; r0 < r; r0 += 64) {
        const int depth = r - r0 < 64 ? (r - r0 + 15) / 16 * 16 : 64;
        __syncthreads();
        for (int i = threadIdx.x; i < 64 * (depth / 8); i += 256) {
            const int row = i / (depth / 8), col = i % (depth / 8) * 8;
            const bool inside = row0 + row < tokens;
            stage8(&hs[row][col], h + (u64)(inside ? row0 + row : 0) * ldh, r0 + col, r, inside, hvec);
        }
        for (int i = threadIdx.x; i < depth * 16; i += 256) {
            const int row = i / 16, col = i % 16 * 8;
            copy16(&ps[row][col], p + (u64)(r0 + row) * ldp + col0 + col, true);
        }
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        for (int kk = 0; kk < depth; kk += 16) {
            u32 fa[4];
            ldmatrix4(fa, &hs[wm + lane % 16][kk + lane / 16 * 8]);
#pragma unroll
            for (int j = 0; j < 64; j += 16) {
                u32 fb[4];
                ldmatrix4_trans(fb, &ps[kk + lane % 16][wn + j + lane / 16 * 8]);
                Mma<elem>::run(acc[j / 8], fa, fb[0], fb[1]);
                Mma<elem>::run(acc[j / 8 + 1], fa, fb[2], fb[3]);
            }
        }
    }
    __syncthreads();
    float (*out)[132] = (float (*)[132])shared;
#pragma unroll
    for (int j = 0; j < 64; j += 8) {
        const int row = wm + lane / 4, col = wn + j + lane % 4 * 2;
        const float scale = drop.keep_scale;
        *(float2 *)&out[row][col] = make_float2(acc[j / 8][0] * scale, acc[j / 8][1] * scale);
        *(float2 *)&out[row + 8][col] = make_float2(acc[j / 8][2] * scale, acc[j / 8][3] * scale);
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 64 * 16 / 256; j++) {
        const int i = threadIdx.x + j * 256;
        const int row = i / 16, local = i % 16 * 8, col = col0 + local;
        if (row0 + row >= tokens || col >= n) continue;
        float v[8], old[8];
        Eight<float>::load(&out[row][local], v);
        if (drop.threshold) drop8(drop, row0 + row, col / 8, v);
        elem *to = y + (u64)(row0 + row) * ldy;
        if (add) {
            load8(to, col, n, vec, old);
#pragma unroll
            for (int e = 0; e < 8; e++) v[e] += old[e];
        }
        store8(to, col, n, vec, v);
    }
}

#endif

#define DOWN(R)                                                                                                         \
    KERNEL __launch_bounds__(256) void thin_down_##R(const elem *x, u64 ldx, int vec, int tokens, int k, const elem *a,    \
                                                     u64 lda, int rank_pad, elem *wide, u64 ld_wide, float *partial,       \
                                                     int k_step, Dropout drop) {                                           \
        down<R>(x, ldx, vec, tokens, k, a, lda, rank_pad, wide, ld_wide, partial, k_step, drop);                           \
    }
DOWN(32)
DOWN(64)
DOWN(96)

#define GRAD(R)                                                                                                         \
    KERNEL __launch_bounds__(256) void thin_grad_##R(const elem *h, u64 ldh, int hvec, int r, const elem *x, u64 ldx,      \
                                                     int vec, int cols, int tokens, float *partial, int rank_pad,          \
                                                     u64 cols_pad, int t_step, Dropout drop) {                             \
        grad<R>(h, ldh, hvec, r, x, ldx, vec, cols, tokens, partial, rank_pad, cols_pad, t_step, drop);                    \
    }
GRAD(32)
GRAD(64)
GRAD(96)

// Adds up the pieces: h [tokens, rank] of leading size ldh, and the spare columns [spare] of the wide operand if there is one.
KERNEL void thin_down_finish(const float *partial, int pieces, int tokens, int rank_pad, int rank, float scale, elem *h,
                             u64 ldh, elem *wide, u64 ld_wide, int spare) {
    const int width = wide && spare > rank_pad ? spare : rank_pad;
    const u64 n = (u64)tokens * width, piece_size = (u64)tokens * rank_pad;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        const u64 row = i / width;
        const int col = (int)(i - row * width);
        float sum = 0.0f;
        if (col < rank)
            for (int piece = 0; piece < pieces; piece++) sum += partial[piece * piece_size + row * rank_pad + col];
        const elem value = from_f32<elem>(col < rank ? sum * scale : 0.0f);
        if (col < rank) h[row * ldh + col] = value;
        if (wide && col < spare) wide[row * ld_wide + col] = value;
    }
}

// Adds up the pieces into f32 gradients: [rank, cols], or its transpose [cols, rank]. `start` is the first packed rank.
KERNEL void thin_grad_finish(const float *partial, int pieces, int rank_pad, u64 cols_pad, int start, int rank, int cols,
                             float scale, int transposed, float *grads) {
    const u64 n = (u64)rank * cols, piece_size = rank_pad * cols_pad;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        const u64 row = i / cols, col = i - row * cols;
        const float *from = partial + (start + row) * cols_pad + col;
        float sum = 0.0f;
        for (int piece = 0; piece < pieces; piece++) sum += from[piece * piece_size];
        float *to = transposed ? grads + col * rank + row : grads + i;
        *to += scale * sum;
    }
}
