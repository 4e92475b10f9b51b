// Projections of at most 64 tokens (generation) whose weights are in 4 bits, on the tensor cores. A weight is read once, in
// the form it is kept in, and decoded in registers.
//
// y [tokens, ldy] (+)= x [tokens, k] w^T + bias + scaling * h B^T, for all parts of a projection in one launch. A warp's
// product is sixteen rows of a weight times eight tokens. Sums do not care for the order of k, so a lane takes sixteen
// neighbouring weights of a row, eight bytes, as what the instruction calls columns 2q, 2q + 1, 2q + 8 and 2q + 9 of four
// steps. Those 64 columns share a scale, which the sum of the four steps is multiplied with.
#if !ELEM_IS_F32

#define WARPS 8
#define UNIT 64                // columns of four steps
#define QUAD 4                 // units that are read together: 128 bytes of a row

struct Part {
    Quantized q;
    const float *bias;         // [n], or none
    const float *b;            // [n, r], the update's; none without one
    int n, column;             // rows of the weight, and the first of its columns in y
    int r, rank;               // rank of the update, and where its activations start in a row of h
    float scaling;
    int tile;                  // the first of its tiles of rows
};
struct Parts {
    Part part[4];
    int count;
};

__device__ __forceinline__ int part_of(const Parts &parts, int tile) {
    int i = 0;
    while (i + 1 < parts.count && tile >= parts.part[i + 1].tile) i++;
    return i;
}

// The two values of every byte as a pair of elements, a copy for each lane: no bank conflict whatever the codes.
struct Table {
    u32 pair[256][32];
    float map[256];
};
__device__ __forceinline__ void fill_table(Table &table, const Quantized &q) {
    const int byte = threadIdx.x;
    const u32 pair = pack2<elem>(q.tables[byte >> 4], q.tables[byte & 15]);
    // Rotated, so that the threads of a warp write to different banks.
#pragma unroll
    for (int i = 0; i < 8; i++) *(uint4 *)&table.pair[byte][((i + byte) & 7) * 4] = make_uint4(pair, pair, pair, pair);
    if (q.nested) table.map[byte] = q.tables[17 + byte];
}

// What a lane reads of a quad: eight bytes of two rows in each unit, and the parts of one scale of each row: that of
// unit `lane % 4`.
struct Quad {
    uint2 codes[QUAD][2];
    u32 map[2];
    float absmax[2];
};

// Where a lane's two rows lie.
struct Source {
    const u8 *packed[2];
    u64 first[2];              // the row's first weight
    int units;
};

__device__ __forceinline__ Source source(const Quantized &q, int row0, int n, int k, int lane) {
    Source s;
    s.units = k / UNIT;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = row0 + lane / 4 + 8 * i < n ? row0 + lane / 4 + 8 * i : n - 1;
        s.first[i] = (u64)row * k;
        s.packed[i] = q.packed + s.first[i] / 2 + lane % 4 * 8;
    }
    return s;
}

__device__ __forceinline__ void read_quad(Quad &quad, const Quantized &q, int nested_shift, const Source &s, int unit, int end,
                                          int lane) {
#pragma unroll
    for (int j = 0; j < QUAD; j++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (unit + j < end) quad.codes[j][i] = __ldcs((const uint2 *)(s.packed[i] + (unit + j) * (UNIT / 2)));
    const int own = unit + lane % 4 < end ? unit + lane % 4 : end - 1;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u64 block = (s.first[i] + (u64)own * UNIT) >> q.block_shift;
        quad.map[i] = q.nested ? q.codes[block] : 0;
        quad.absmax[i] = q.absmax[q.nested ? block >> nested_shift : block];
    }
}

__device__ __forceinline__ float quad_scale(const Quad &quad, const Quantized &q, const Table &table, float offset, int i) {
    return q.nested ? __fadd_rn(__fmul_rn(table.map[quad.map[i]], quad.absmax[i]), offset) : quad.absmax[i];
}

// The pair of byte `i` of a word; `lane4` is four times the lane.
__device__ __forceinline__ u32 decode(const Table &table, u32 word, int i, u32 lane4) {
    const u32 shifted = i == 0 ? word << 7 : word >> (8 * i - 7);
    return *(const u32 *)((const char *)table.pair + (shifted & 0x7f80u | lane4));
}

// The left operands of a unit's four steps.
__device__ __forceinline__ void decode_unit(u32 (&a)[4][4], const uint2 (&codes)[2], const Table &table, u32 lane4) {
#pragma unroll
    for (int step = 0; step < 4; step++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 word = step < 2 ? codes[i].x : codes[i].y;
            a[step][i] = decode(table, word, step % 2 * 2, lane4);
            a[step][2 + i] = decode(table, word, step % 2 * 2 + 1, lane4);
        }
}

// acc += scaling * B h^T for sixteen ranks from `rank0` on and the tokens `token0 .. token0 + 8`.
__device__ __forceinline__ void low_rank(float (&acc)[4], const Part &part, int row0, int rank0, const float *h, int ldh,
                                         int token0, int tokens, int lane) {
    const int g = lane / 4, q = lane % 4;
    u32 a[4], b[2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = row0 + g + i % 2 * 8, j = rank0 + 2 * q + i / 2 * 8;
        const float *from = part.b + (u64)row * part.r + j;
        const bool inside = row < part.n;
        const float low = inside && j < part.r ? from[0] * part.scaling : 0.0f;
        const float high = inside && j + 1 < part.r ? from[1] * part.scaling : 0.0f;
        a[i] = pack2<elem>(low, high);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int j = rank0 + 2 * q + i * 8;
        const float *from = h + (u64)(token0 + g) * ldh + part.rank + j;
        const bool inside = token0 + g < tokens;
        b[i] = pack2<elem>(inside && j < part.r ? from[0] : 0.0f, inside && j + 1 < part.r ? from[1] : 0.0f);
    }
    Mma<elem>::run(acc, a, b[0], b[1]);
}

// At most eight tokens. A block has sixteen rows; its warps share out the quads.
KERNEL __launch_bounds__(32 * WARPS, 3) void few_mma(const __grid_constant__ Parts parts, const elem *x, int tokens, int k,
                                                    const float *h, int ldh, elem *y, u64 ldy, int add) {
    __shared__ __align__(16) Table table;
    __shared__ float pieces[WARPS][16][8];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const Part &part = parts.part[part_of(parts, blockIdx.x)];
    const Quantized &weight = part.q;
    const int row0 = (blockIdx.x - part.tile) * 16, nested_shift = 31 - __clz(weight.nested_block_size);
    const Source s = source(weight, row0, part.n, k, lane);
    // Weights are never written: they are asked for before the kernel in front has ended.
    Quad now, next;
    int unit = warp * QUAD;
    if (unit < s.units) read_quad(now, weight, nested_shift, s, unit, s.units, lane);
    fill_table(table, weight);
    const float offset = weight.tables[16];
    __syncthreads();
    await_previous();

    float acc[4] = {};
    const u32 lane4 = lane * 4;
    const elem *from = x + (u64)(g < tokens ? g : 0) * k + q * 16;
    for (; unit < s.units; unit += WARPS * QUAD) {
        if (unit + WARPS * QUAD < s.units) read_quad(next, weight, nested_shift, s, unit + WARPS * QUAD, s.units, lane);
        const float scale[2] = {quad_scale(now, weight, table, offset, 0), quad_scale(now, weight, table, offset, 1)};
#pragma unroll
        for (int j = 0; j < QUAD; j++) {
            if (unit + j >= s.units) break;
            uint4 low = make_uint4(0, 0, 0, 0), high = low;
            if (g < tokens) {
                const uint4 *columns = (const uint4 *)(from + (unit + j) * UNIT);
                low = columns[0], high = columns[1];
            }
            u32 a[4][4];
            decode_unit(a, now.codes[j], table, lane4);
            float sum[4] = {};
            Mma<elem>::run(sum, a[0], low.x, low.y);
            Mma<elem>::run(sum, a[1], low.z, low.w);
            Mma<elem>::run(sum, a[2], high.x, high.y);
            Mma<elem>::run(sum, a[3], high.z, high.w);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float f = __shfl_sync(0xffffffffu, scale[i], lane / 4 * 4 + j);
                acc[2 * i] += f * sum[2 * i];
                acc[2 * i + 1] += f * sum[2 * i + 1];
            }
        }
        now = next;
    }
    if (part.b)
        for (int rank = warp * 16; rank < part.r; rank += WARPS * 16) low_rank(acc, part, row0, rank, h, ldh, 0, tokens, lane);
#pragma unroll
    for (int i = 0; i < 2; i++) *(float2 *)&pieces[warp][g + 8 * i][2 * q] = make_float2(acc[2 * i], acc[2 * i + 1]);
    __syncthreads();
    const int token = threadIdx.x / 16, row = threadIdx.x % 16;
    if (token >= tokens || row0 + row >= part.n) return;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += pieces[w][row][token];
    if (part.bias) sum += part.bias[row0 + row];
    elem *to = y + token * ldy + part.column + row0 + row;
    *to = from_f32<elem>(add ? to_f32(*to) + sum : sum);
}

// Rows of a block, and bytes of a token's columns of a quad in shared memory: padded, so that eight lanes read from
// different banks.
#define BLOCK_ROWS (16 * WARPS)
#define TOKEN_BYTES (QUAD * UNIT * 2 + 16)

// Nine to 64 tokens in TILES groups of eight. A warp has sixteen rows; blocks share out the quads of a row, and their sums
// [splits, tokens, n] wait for some_mma_finish.
template <int TILES>
__device__ __forceinline__ void some_rows(const Parts &parts, const elem *x, int tokens, int k, const float *h, int ldh,
                                          float *pieces, int n, int step) {
    extern __shared__ __align__(16) unsigned char shared[];
    Table &table = *(Table *)shared;
    unsigned char *stages = shared + sizeof(Table);
    constexpr int STAGE = TILES * 8 * TOKEN_BYTES;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const Part &part = parts.part[part_of(parts, blockIdx.x)];
    const Quantized &weight = part.q;
    const int row0 = (blockIdx.x - part.tile) * BLOCK_ROWS + warp * 16, nested_shift = 31 - __clz(weight.nested_block_size);
    const Source s = source(weight, row0, part.n, k, lane);
    const int first = blockIdx.y * step * QUAD, end = min(first + step * QUAD, s.units);
    Quad now, next;
    read_quad(now, weight, nested_shift, s, first, end, lane);
    fill_table(table, weight);
    const float offset = weight.tables[16];
    await_previous();

    const auto stage_tokens = [&](int unit, int slot) {
        constexpr int CHUNKS = QUAD * UNIT / 8;
        for (int i = threadIdx.x; i < TILES * 8 * CHUNKS; i += 32 * WARPS) {
            const int token = i / CHUNKS, chunk = i % CHUNKS;
            const bool inside = token < tokens && unit + chunk / (UNIT / 8) < end;
            copy16(stages + slot * STAGE + token * TOKEN_BYTES + chunk * 16,
                   x + (u64)(inside ? token : 0) * k + (inside ? unit * UNIT + chunk * 8 : 0), inside);
        }
        copy_commit();
    };
    stage_tokens(first, 0);
    float acc[TILES][4];
#pragma unroll
    for (int t = 0; t < TILES; t++) acc[t][0] = acc[t][1] = acc[t][2] = acc[t][3] = 0.0f;
    const u32 lane4 = lane * 4;
    int slot = 0;
    for (int unit = first; unit < end; unit += QUAD, slot ^= 1) {
        copy_wait<0>();
        __syncthreads();
        if (unit + QUAD < end) {
            stage_tokens(unit + QUAD, slot ^ 1);
            read_quad(next, weight, nested_shift, s, unit + QUAD, end, lane);
        }
        const float scale[2] = {quad_scale(now, weight, table, offset, 0), quad_scale(now, weight, table, offset, 1)};
#pragma unroll
        for (int j = 0; j < QUAD; j++) {
            if (unit + j >= end) break;
            u32 a[4][4];
            decode_unit(a, now.codes[j], table, lane4);
            const float f[2] = {__shfl_sync(0xffffffffu, scale[0], lane / 4 * 4 + j),
                                __shfl_sync(0xffffffffu, scale[1], lane / 4 * 4 + j)};
            const unsigned char *columns = stages + slot * STAGE + g * TOKEN_BYTES + j * UNIT * 2 + q * 32;
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const uint4 *of_token = (const uint4 *)(columns + t * 8 * TOKEN_BYTES);
                const uint4 low = of_token[0], high = of_token[1];
                float sum[4] = {};
                Mma<elem>::run(sum, a[0], low.x, low.y);
                Mma<elem>::run(sum, a[1], low.z, low.w);
                Mma<elem>::run(sum, a[2], high.x, high.y);
                Mma<elem>::run(sum, a[3], high.z, high.w);
#pragma unroll
                for (int i = 0; i < 4; i++) acc[t][i] += f[i / 2] * sum[i];
            }
        }
        now = next;
    }
    if (part.b && blockIdx.y == 0)
        for (int rank = 0; rank < part.r; rank += 16)
#pragma unroll
            for (int t = 0; t < TILES; t++) low_rank(acc[t], part, row0, rank, h, ldh, t * 8, tokens, lane);
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = row0 + g + i / 2 * 8, token = t * 8 + 2 * q + i % 2;
            if (token < tokens && row < part.n)
                pieces[((u64)blockIdx.y * tokens + token) * n + part.column + row] = acc[t][i];
        }
}

#define SOME_PARAMETERS                                                                                                    \
    const __grid_constant__ Parts parts, const elem *x, int tokens, int k, const float *h, int ldh, float *pieces, int n, int step
#define SOME_ARGUMENTS parts, x, tokens, k, h, ldh, pieces, n, step
KERNEL __launch_bounds__(32 * WARPS, 2) void some_mma_2(SOME_PARAMETERS) { some_rows<2>(SOME_ARGUMENTS); }
KERNEL __launch_bounds__(32 * WARPS, 2) void some_mma_4(SOME_PARAMETERS) { some_rows<4>(SOME_ARGUMENTS); }
KERNEL __launch_bounds__(32 * WARPS, 2) void some_mma_8(SOME_PARAMETERS) { some_rows<8>(SOME_ARGUMENTS); }

// Adds up the splits, the bias and what y held. A block has 256 columns of a token.
KERNEL __launch_bounds__(256) void some_mma_finish(const __grid_constant__ Parts parts, const float *pieces, int splits,
                                                 int tokens, int n, elem *y, u64 ldy, int add) {
    await_previous();
    const int column = blockIdx.x * 256 + threadIdx.x, token = blockIdx.y;
    if (column >= n) return;
    float sum = 0.0f;
    for (int split = 0; split < splits; split++) sum += pieces[((u64)split * tokens + token) * n + column];
    int i = 0;
    while (i + 1 < parts.count && column >= parts.part[i + 1].column) i++;
    if (parts.part[i].bias) sum += parts.part[i].bias[column - parts.part[i].column];
    elem *to = y + token * ldy + column;
    *to = from_f32<elem>(add ? to_f32(*to) + sum : sum);
}

#endif
