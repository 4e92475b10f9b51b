// What the flash attention kernels share: tiles in shared memory, products on the tensor cores, masks, stores.
//
// A tile is rows of a head, 128 bytes at a time: panels of 64 columns, in each the 16-byte chunk c of row r at place
// c ^ (r % 8). ldmatrix reads it without bank conflicts, and it is what wgmma calls a swizzle of 128 bytes. A warp owns 16
// rows of a product's result in the same registers whether mma.sync or wgmma made it, so each kernel is written once.

// A file whose blocks are too small for warp groups defines NO_WGMMA.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && !defined(NO_WGMMA)
#define WGMMA 1
#else
#define WGMMA 0
#endif
#if __CUDA_ARCH__ >= 800
#define AMPERE 1
#else
#define AMPERE 0
#endif

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

// A module holds the kernels of one size of heads, HEAD, so that the others need not be compiled; all where it is not set.
#ifndef HEAD
#define HEAD 0
#endif
#define HAS(d) (HEAD == 0 || HEAD == d)

struct Attention {
    QkvLayout l;
    float scale;
    int window;           // 0: none
    int alibi_positions;  // columns of the table
    const float *alibi;   // [heads, alibi_positions], by the key's position, or none
};

// Rows that one instruction, and so one decision to skip a tile, covers.
#define UNIT (WGMMA ? 64 : 16)

#define BOUNDS(S) __launch_bounds__(S::THREADS, S::BLOCKS)

// D columns of a head, TILE rows a step of the loop, 16 rows a warp, STAGES tiles in flight, BLOCKS a multiprocessor.
template <int D_, int TILE_, int WARPS_, int STAGES_, int BLOCKS_> struct Shape {
    static constexpr int D = D_, TILE = TILE_, WARPS = WARPS_, STAGES = STAGES_, BLOCKS = BLOCKS_;
    static constexpr int THREADS = 32 * WARPS, ROWS = 16 * WARPS, PANELS = (D + 63) / 64;
};

__device__ __forceinline__ float exp2_fast(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
// The number of the warp, known to the compiler to be one for all of it.
__device__ __forceinline__ int warp_index() { return __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); }
__device__ __forceinline__ int query_column(const QkvLayout &l, int head) {
    const int group = l.heads / l.kv_heads;
    return head / group * l.query_group_stride + head % group * l.head_dim;
}
// The dynamic shared memory, on a boundary that wgmma's swizzle needs.
__device__ __forceinline__ char *shared_tiles() {
    extern __shared__ __align__(1024) char dynamic_shared[];
#if WGMMA
    return dynamic_shared + ((1024 - (shared_address(dynamic_shared) & 1023)) & 1023);
#else
    return dynamic_shared;
#endif
}

// --- Tiles ---

template <int ROWS> __device__ __forceinline__ int tile_at(int row, int chunk) {
    return ((chunk >> 3) * ROWS + row) * 128 + (((chunk & 7) ^ (row & 7)) << 4);
}
template <int ROWS, int D> struct Tile {
    static constexpr int BYTES = ROWS * 128 * ((D + 63) / 64);
};

// A thread's share of copying tiles of a head from rows `stride` elements apart.
template <int ROWS, int D, int THREADS> struct Copier {
    // Chunks of a row, rounded up so that a thread stays in its column.
    static constexpr int CHUNKS = D <= 64 ? 8 : D <= 128 ? 16 : 32, STEP = THREADS / CHUNKS;
    u32 from, step;
    int row, chunk, to;
    bool inside;

    __device__ __forceinline__ Copier(int stride, int head_dim, int thread = threadIdx.x) {
        row = thread / CHUNKS;
        chunk = thread % CHUNKS;
        from = row * stride + chunk * 8;
        step = STEP * stride;
        to = tile_at<ROWS>(row, chunk);
        inside = chunk * 8 < head_dim;
    }
    // Starts the copy; rows from `valid` on and columns past the head become zeros.
    __device__ __forceinline__ void run(char *tile, const elem *first, int valid) const {
        const elem *at = first + from;
#pragma unroll
        for (int i = 0; i < (ROWS + STEP - 1) / STEP; i++, at += step) {
            // Eight rows on, a chunk has the same place in its row.
            const int place = STEP % 8 == 0 ? to + i * STEP * 128 : tile_at<ROWS>(row + i * STEP, chunk);
            if ((ROWS % STEP == 0 || row + i * STEP < ROWS) && (D % 64 == 0 || chunk * 8 < D))
                copy16(tile + place, at, row + i * STEP < valid && inside);
        }
    }
};

// Makes this thread's finished copies visible to wgmma.
__device__ __forceinline__ void publish() {
#if WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// In a loop over tiles of which STAGES are in flight: `load(stage)` starts the copy of the tile that is next, if there is
// one, and commits it. Before the loop, and at the top of each round, whose tile is at `stage` then.
template <class S, class Load> __device__ __forceinline__ void first_stages(const Load &load) {
#pragma unroll
    for (int i = 0; i < S::STAGES - 1; i++) load(i);
}
template <class S, class Load> __device__ __forceinline__ void next_stage(int stage, const Load &load) {
    if constexpr (S::STAGES == 1) {
        __syncthreads();
        load(0);
    }
    copy_wait<S::STAGES == 1 ? 0 : S::STAGES - 2>();
    publish();
    __syncthreads();
    if constexpr (S::STAGES > 1) load(stage == 0 ? S::STAGES - 1 : stage - 1);
}

// Writes 16 rows of results from a warp through its rows of a tile that nobody reads any more.
template <int ROWS, int D>
__device__ __forceinline__ void store_rows(char *tile, int row, const float (*acc)[4], float low, float high, elem *to,
                                           u64 stride, int valid, int head_dim) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        char *at = tile + 4 * (lane % 4);
        *(u32 *)(at + tile_at<ROWS>(row + lane / 4, j)) = pack2<elem>(acc[j][0] * low, acc[j][1] * low);
        *(u32 *)(at + tile_at<ROWS>(row + lane / 4 + 8, j)) = pack2<elem>(acc[j][2] * high, acc[j][3] * high);
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * (D / 8); i += 32) {
        const int r = row + i / (D / 8), chunk = i % (D / 8);
        if (r < valid && chunk * 8 < head_dim)
            *(uint4 *)(to + r * stride + chunk * 8) = *(const uint4 *)(tile + tile_at<ROWS>(r, chunk));
    }
}

// --- Products ---

#if WGMMA
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define ACC4(c, j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define ACC16(c, j) ACC4(c, j), ACC4(c, j + 1), ACC4(c, j + 2), ACC4(c, j + 3)
#define NAMES16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define ACC32(c, j) ACC16(c, j), ACC16(c, j + 4)
#define NAMES32 NAMES16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"

#define NAMES64 NAMES32                                                                                              \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58"     \
    ",%59,%60,%61,%62,%63"
#define WGMMA_NAME(N) "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TEXT(ELEM) "." TEXT(ELEM)

// A tile from an address on: rows of 128 bytes, swizzled, groups of eight rows 1024 bytes apart. Read by columns, its
// panels of 64 are `panel` bytes apart. A descriptor's address moves by `bytes` with advance.
__device__ __forceinline__ u64 descriptor(const void *p, int panel = 16) {
    return (u64)0x40000040 << 32 | (u32)(shared_address(p) >> 4 | panel >> 4 << 16);
}
__device__ __forceinline__ u64 advance(u64 d, int bytes) { return d & 0xffffffff00000000ull | (u32)d + (bytes >> 4); }
// `shared`: c[64, N] = a[64, 16] b[16, N], or added to c; a and b from shared memory, both by rows along the 16.
// `registers`: c += a b with a from registers and b by columns. O0 and on number the operands after the accumulators.
template <int N> struct Wgmma;
#define WGMMA_OF(N, ACC, NAMES, O0, O1, O2, O3, O4)                                                                   \
    template <> struct Wgmma<N> {                                                                                     \
        static __device__ __forceinline__ void shared(float (*c)[4], u64 a, u64 b, int add) {                         \
            asm volatile("{.reg .pred p; setp.ne.b32 p, %" #O2 ", 0;\n" WGMMA_NAME(N)                                \
                         " {" NAMES "}, %" #O0 ", %" #O1 ", p, 1, 1, 0, 0;}"                                          \
                         : ACC : "l"(a), "l"(b), "r"(add));                                                           \
        }                                                                                                             \
        static __device__ __forceinline__ void registers(float (*c)[4], const u32 (&a)[4], u64 b) {                   \
            asm volatile(WGMMA_NAME(N) " {" NAMES "}, {%" #O0 ", %" #O1 ", %" #O2 ", %" #O3 "}, %" #O4                \
                         ", 1, 1, 1, 1;"                                                                              \
                         : ACC : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                 \
        }                                                                                                             \
    };
#define ACC_32 ACC16(c, 0)
#define ACC_64 ACC32(c, 0)
#define ACC_128 ACC32(c, 0), ACC32(c, 8)
WGMMA_OF(32, ACC_32, NAMES16, 16, 17, 18, 19, 20)
WGMMA_OF(64, ACC_64, NAMES32, 32, 33, 34, 35, 36)
WGMMA_OF(128, ACC_128, NAMES64, 64, 65, 66, 67, 68)
#endif

// Brackets around products: `start` before the first, `finish` when the batch is complete, `wait<n>` until at most n
// batches run. mma.sync needs none of them.
__device__ __forceinline__ void products_start() {
#if WGMMA
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void products_finish() {
#if WGMMA
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int PENDING> __device__ __forceinline__ void products_wait() {
#if WGMMA
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#endif
}
// Keeps the compiler from reading or writing a result while its product runs.
template <int N> __device__ __forceinline__ void pin(float (&c)[N][4]) {
#if WGMMA
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])::"memory");
#endif
}

template <int N> __device__ __forceinline__ void set_zero(float (&c)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; i++) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0.0f;
}

// Rows of a tile as the left operand, in registers.
template <int ROWS, int D>
__device__ __forceinline__ void load_left(u32 (&a)[D / 16][4], const char *tile, int row) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < D / 16; k++) ldmatrix4(a[k], tile + tile_at<ROWS>(row + lane % 16, 2 * k + lane / 16));
}

// c[16 a warp, N] = a b^T over D columns: `a` rows of a tile from `row`, `b` a tile of N rows.
template <int N, int D, int ROWS_A>
__device__ __forceinline__ void product_shared(float (&c)[N / 8][4], const char *a, int row, const char *b) {
#if WGMMA
    const u64 left = descriptor(a + row / 64 * 8192), right = descriptor(b);
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        Wgmma<N>::shared(c, advance(left, k / 4 * ROWS_A * 128 + k % 4 * 32), advance(right, k / 4 * N * 128 + k % 4 * 32), k);
#else
    const int lane = threadIdx.x % 32;
    set_zero(c);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 left[4];
        ldmatrix4(left, a + tile_at<ROWS_A>(row + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int j = 0; j < N / 8; j += 2) {
            u32 right[4];
            ldmatrix4(right, b + tile_at<N>(8 * j + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
            Mma<elem>::run(c[j], left, right[0], right[1]);
            Mma<elem>::run(c[j + 1], left, right[2], right[3]);
        }
    }
#endif
}

// The same with `a` in registers, for mma.sync alone.
template <int N, int D>
__device__ __forceinline__ void product_registers(float (&c)[N / 8][4], const u32 (&a)[D / 16][4], const char *b) {
    const int lane = threadIdx.x % 32;
    set_zero(c);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int j = 0; j < N / 8; j += 2) {
            u32 right[4];
            ldmatrix4(right, b + tile_at<N>(8 * j + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
            Mma<elem>::run(c[j], a[k], right[0], right[1]);
            Mma<elem>::run(c[j + 1], a[k], right[2], right[3]);
        }
    }
}

// c[16 a warp, D] += p b over K rows of the tile `b`: its columns from panel `first` on.
template <int K, int D>
__device__ __forceinline__ void product_add(float (&c)[D / 8][4], const u32 (&p)[K / 16][4], const char *b, int first) {
    b += first * K * 128;
#if WGMMA
    // As wide as the instruction allows, then what is left.
    constexpr int WIDE = D % 128 == 0 ? 128 : 64;
    const u64 right = descriptor(b, K * 128);
#pragma unroll
    for (int column = 0; column < D / WIDE * WIDE; column += WIDE)
#pragma unroll
        for (int k = 0; k < K / 16; k++)
            Wgmma<WIDE>::registers(c + column / 8, p[k], advance(right, column / 64 * K * 128 + k * 2048));
    if constexpr (D % WIDE != 0)
#pragma unroll
        for (int k = 0; k < K / 16; k++)
            Wgmma<32>::registers(c + D / 64 * 8, p[k], advance(right, D / 64 * K * 128 + k * 2048));
#else
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            u32 right[4];
            ldmatrix4_trans(right, b + tile_at<K>(16 * k + lane % 16, j + lane / 16));
            Mma<elem>::run(c[j], p[k], right[0], right[1]);
            Mma<elem>::run(c[j + 1], p[k], right[2], right[3]);
        }
    }
#endif
}

// A product's result as the left operand of the next.
template <int N> __device__ __forceinline__ void as_left(u32 (&a)[N / 2][4], const float (&c)[N][4]) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        a[k][0] = pack2<elem>(c[2 * k][0], c[2 * k][1]);
        a[k][1] = pack2<elem>(c[2 * k][2], c[2 * k][3]);
        a[k][2] = pack2<elem>(c[2 * k + 1][0], c[2 * k + 1][1]);
        a[k][3] = pack2<elem>(c[2 * k + 1][2], c[2 * k + 1][3]);
    }
}

// Whether the query at position q sees the key at position k.
__device__ __forceinline__ bool sees(int q, int k, int window) { return k <= q && (!window || k > q - window); }
// The first and the last tile of keys that some query in [q0, q1) sees.
__device__ __forceinline__ int first_tile(int q0, int window, int tile) {
    return window && q0 >= window ? (q0 - window + 1) / tile : 0;
}
// Bias of a key in units of log2, from a row of the ALiBi table.
__device__ __forceinline__ float bias_log2(const Attention &f, const float *row, int key) {
    return row[key < f.alibi_positions ? key : f.alibi_positions - 1] * LOG2E;
}
