// Sums, copies, gathers and scatters of rows, and the embedding. Eight columns a thread.

KERNEL void add_rows(const elem *x, elem *y, u64 n, int vec) {
    await_previous();
    const u64 chunks = (n + 7) / 8;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < chunks; i += (u64)gridDim.x * blockDim.x) {
        const u64 start = i * 8;
        const int left = n - start < 8 ? (int)(n - start) : 8;
        float a[8], b[8];
        load8(x + start, 0, left, vec && left == 8, a);
        load8(y + start, 0, left, vec && left == 8, b);
#pragma unroll
        for (int j = 0; j < 8; j++) b[j] += a[j];
        store8(y + start, 0, left, vec && left == 8, b);
    }
}

KERNEL void copy_rows(const elem *x, elem *y, u64 n, int vec) {
    await_previous();
    const u64 chunks = (n + 7) / 8;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < chunks; i += (u64)gridDim.x * blockDim.x) {
        const u64 start = i * 8;
        const int left = n - start < 8 ? (int)(n - start) : 8;
        float a[8];
        load8(x + start, 0, left, vec && left == 8, a);
        store8(y + start, 0, left, vec && left == 8, a);
    }
}

// y[i] = x[rows[i]]; with last set, y[i] = x[rows[i + 1] - 1]: rows are then the ends of sequences.
KERNEL void gather_rows(const elem *x, const u32 *rows, elem *y, int n, int last, int vec) {
    await_previous();
    const u64 from = last ? rows[blockIdx.x + 1] - 1 : rows[blockIdx.x];
    for (int col = threadIdx.x * 8; col < n; col += blockDim.x * 8) {
        float v[8];
        load8(x + from * n, col, n, vec, v);
        store8(y + (u64)blockIdx.x * n, col, n, vec, v);
    }
}

// y[rows[i]] = x[i]
KERNEL void scatter_rows(const elem *x, const u32 *rows, elem *y, int n, int vec) {
    const u64 to = rows[blockIdx.x];
    for (int col = threadIdx.x * 8; col < n; col += blockDim.x * 8) {
        float v[8];
        load8(x + (u64)blockIdx.x * n, col, n, vec, v);
        store8(y + to * n, col, n, vec, v);
    }
}

template <class T> __device__ __forceinline__ void embed(const u32 *ids, const T *table, elem *x, int n, int vec) {
    const u64 id = ids[blockIdx.x];
    for (int col = threadIdx.x * 8; col < n; col += blockDim.x * 8) {
        float v[8];
        load8(table + id * n, col, n, vec, v);
        store8(x + (u64)blockIdx.x * n, col, n, vec, v);
    }
}

// x[t] = table[ids[t]]; table_type as in dense_to_wide.
KERNEL void embed_dense(const u32 *ids, const void *table, int table_type, elem *x, int n, int vec) {
    await_previous();
    if (table_type == 0) embed(ids, (const float *)table, x, n, vec);
    if (table_type == 1) embed(ids, (const bf16 *)table, x, n, vec);
    if (table_type == 2) embed(ids, (const f16 *)table, x, n, vec);
}

KERNEL void embed_quantized(const u32 *ids, Quantized table, elem *x, int n) {
    await_previous();
    const u64 id = ids[blockIdx.x];
    for (int col = threadIdx.x; col < n; col += blockDim.x)
        x[(u64)blockIdx.x * n + col] = from_f32<elem>(quantized_value(table, id * n + col));
}
