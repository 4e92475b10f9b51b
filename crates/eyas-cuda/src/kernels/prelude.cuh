// What every kernel file begins with: element types, 16-byte accesses, reductions, Philox, tensor core instructions.
//
// No toolkit header is used, so that NVRTC alone compiles the kernels. ELEM names the element type of activations.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};
typedef ELEM elem;

#define KERNEL extern "C" __global__
#define INF __int_as_float(0x7f800000)

// --- Conversions. All arithmetic is done in f32. ---

__device__ __forceinline__ float to_f32(float v) { return v; }
__device__ __forceinline__ float to_f32(bf16 v) { return __uint_as_float((u32)v.bits << 16); }
__device__ __forceinline__ float to_f32(f16 v) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.bits));
    return r;
}

template <class T> struct Cast;
template <> struct Cast<float> {
    static __device__ __forceinline__ float from(float v) { return v; }
};
template <> struct Cast<f16> {
    static __device__ __forceinline__ f16 from(float v) {
        f16 r;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
        return r;
    }
};
template <> struct Cast<bf16> {
    static __device__ __forceinline__ bf16 from(float v) {
        bf16 r;
#if __CUDA_ARCH__ >= 800
        u32 pair;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(v));
        r.bits = (u16)pair;
#else
        u32 bits = __float_as_uint(v);
        r.bits = v != v ? (u16)0x7fff : (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
        return r;
    }
};
template <class T> __device__ __forceinline__ T from_f32(float v) { return Cast<T>::from(v); }

// exp, to the last places where activations are f32.
__device__ __forceinline__ float fast_exp(float x) {
#if ELEM_IS_F32
    return expf(x);
#else
    return __expf(x);
#endif
}

// Two values as the 32 bits that a pair of 2-byte elements takes, the first in the low half.
template <class T> __device__ __forceinline__ u32 pack2(float a, float b) {
    return (u32)from_f32<T>(a).bits | (u32)from_f32<T>(b).bits << 16;
}
#if __CUDA_ARCH__ >= 800
template <> __device__ __forceinline__ u32 pack2<bf16>(float a, float b) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
    return r;
}
template <> __device__ __forceinline__ u32 pack2<f16>(float a, float b) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
    return r;
}
#endif

// --- Eight neighbouring elements ---

template <class T> __device__ __forceinline__ void unpack8(uint4 raw, float (&v)[8]) {
    const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        T low, high;
        low.bits = (u16)words[i];
        high.bits = (u16)(words[i] >> 16);
        v[2 * i] = to_f32(low);
        v[2 * i + 1] = to_f32(high);
    }
}

template <class T> struct Eight {
    static __device__ __forceinline__ void load(const T *p, float (&v)[8]) { unpack8<T>(*(const uint4 *)p, v); }
    static __device__ __forceinline__ void store(T *p, const float (&v)[8]) {
        *(uint4 *)p = make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
    }
};
template <> struct Eight<float> {
    static __device__ __forceinline__ void load(const float *p, float (&v)[8]) {
        const float4 a = ((const float4 *)p)[0], b = ((const float4 *)p)[1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    }
    static __device__ __forceinline__ void store(float *p, const float (&v)[8]) {
        ((float4 *)p)[0] = make_float4(v[0], v[1], v[2], v[3]);
        ((float4 *)p)[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
};

// Eight elements of a row of n from column col on, zeros past its end. With vec, rows are multiples of eight wide and
// start on 16 bytes.
template <class T> __device__ __forceinline__ void load8(const T *row, int col, int n, int vec, float (&v)[8]) {
    if (vec) {
        Eight<T>::load(row + col, v);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = col + i < n ? to_f32(row[col + i]) : 0.0f;
    }
}
template <class T> __device__ __forceinline__ void store8(T *row, int col, int n, int vec, const float (&v)[8]) {
    if (vec) {
        Eight<T>::store(row + col, v);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (col + i < n) row[col + i] = from_f32<T>(v[i]);
    }
}

// --- Overlap with the kernel in front ---

// A kernel that is launched to overlap calls this before it reads what another has written, or writes. Until then it may
// read what nothing writes, weights for one. The kernel behind it may start as far as its own call.
__device__ __forceinline__ void await_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// --- Reductions: the order is fixed, so the same inputs give the same bits ---

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) v += __shfl_xor_sync(0xffffffffu, v, i);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, i));
    return v;
}
// The sum over a block whose size is a multiple of a warp, in every thread.
__device__ __forceinline__ float block_sum(float v) {
    __shared__ float sums[32];
    v = warp_sum(v);
    const int warps = blockDim.x / 32;
    if (warps == 1) return v;
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < warps; i++) total += sums[i];
    return total;
}
__device__ __forceinline__ float block_max(float v) {
    __shared__ float maxima[32];
    v = warp_max(v);
    const int warps = blockDim.x / 32;
    if (warps == 1) return v;
    __syncthreads();
    if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = v;
    __syncthreads();
    float top = maxima[0];
    for (int i = 1; i < warps; i++) top = fmaxf(top, maxima[i]);
    return top;
}

// --- Dropout: Philox4x32-10 (Salmon et al. 2011), eight columns of a token a call ---

struct Dropout {
    u32 threshold;  // in the upper half: an element is dropped when its 16 bits are below it; 0 drops nothing
    float keep_scale;
    u32 projection, micro_batch;
    u32 keys[10][2];  // of each round, so that no thread works them out
};

__device__ __forceinline__ uint4 dropout_words(const Dropout &d, u32 token, u32 block) {
    u32 c0 = block, c1 = token, c2 = d.projection, c3 = d.micro_batch;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 a = (u64)0xD2511F53u * c0, b = (u64)0xCD9E8D57u * c2;
        c0 = (u32)(b >> 32) ^ c1 ^ d.keys[round][0];
        c1 = (u32)b;
        c2 = (u32)(a >> 32) ^ c3 ^ d.keys[round][1];
        c3 = (u32)a;
    }
    return make_uint4(c0, c1, c2, c3);
}
// Clears the dropped ones of two neighbouring 2-byte elements; each has 16 of the word's bits.
__device__ __forceinline__ u32 drop_pair(const Dropout &d, u32 pair, u32 word) {
    if ((word << 16) < d.threshold) pair &= 0xffff0000u;
    if (word < d.threshold) pair &= 0x0000ffffu;
    return pair;
}
// Applies the mask of columns 8 * block .. 8 * block + 8. What is kept is not scaled.
__device__ __forceinline__ void drop8(const Dropout &d, u32 token, u32 block, float (&v)[8]) {
    const uint4 words = dropout_words(d, token, block);
    const u32 w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 8; i++)
        if ((i % 2 ? w[i / 2] : w[i / 2] << 16) < d.threshold) v[i] = 0.0f;
}

// --- Frozen weights in 4 bits ---

// Where a quantised weight's parts lie. Scale b is nested ? map[codes[b]] * nested_absmax[b / 256] + offset : absmax[b].
struct Quantized {
    const u8 *packed;
    const u8 *codes;
    const float *absmax;   // nested_absmax with codes, absmax without
    const float *tables;   // 16 levels, the offset, 256 levels of the map
    int block_shift;       // log2 of the block size
    int nested;
    int nested_block_size;
};

__device__ __forceinline__ float block_scale(const Quantized &q, u64 block) {
    if (!q.nested) return q.absmax[block];
    const float value = q.tables[17 + q.codes[block]];
    // A product and a sum, each rounded, as the format has it.
    return __fadd_rn(__fmul_rn(value, q.absmax[(u32)block / (u32)q.nested_block_size]), q.tables[16]);
}
__device__ __forceinline__ float quantized_value(const Quantized &q, u64 index) {
    const u8 byte = q.packed[index / 2];
    return q.tables[index % 2 ? byte & 15 : byte >> 4] * block_scale(q, index >> q.block_shift);
}

// --- Where heads lie in a row of the fused queries, keys and values; see eyas_backend::QkvLayout ---

struct QkvLayout {
    int heads, kv_heads, head_dim, query_group_stride, key_offset, kv_stride, value_offset, width;
};

// --- Shared memory, asynchronous copies, tensor cores ---

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// Copies 16 bytes to shared memory, or zeros where there is nothing to copy.
__device__ __forceinline__ void copy16(void *to, const void *from, bool valid) {
#if __CUDA_ARCH__ >= 800
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
#else
    *(uint4 *)to = valid ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
#endif
}
__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;");
#endif
}
template <int PENDING> __device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix4(u32 (&r)[4], const void *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(p)));
}
__device__ __forceinline__ void ldmatrix4_trans(u32 (&r)[4], const void *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(p)));
}

// c[16, 8] += a[16, 16] b[16, 8] in f32 over a warp.
template <class T> struct Mma;
template <> struct Mma<bf16> {
    static __device__ __forceinline__ void run(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
    }
};
template <> struct Mma<f16> {
    static __device__ __forceinline__ void run(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(b0));
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
    }
};
