// Cross-entropy: loss and gradient of a row in one block, the second reading of a row served by the cache.

KERNEL __launch_bounds__(1024) void cross_entropy(elem *logits, const u32 *target_rows, const int *targets, float *losses,
                                                  int vocab, float gradient, int with_gradient, int vec) {
    elem *row = logits + (u64)blockIdx.x * vocab;
    const int target = targets[target_rows[blockIdx.x]];
    float top = -INF, sum = 0.0f;
    for (int col = threadIdx.x * 8; col < vocab; col += blockDim.x * 8) {
        float v[8];
        load8(row, col, vocab, vec, v);
        float chunk_top = -INF;
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (col + j < vocab) chunk_top = fmaxf(chunk_top, v[j]);
        if (chunk_top > top) {
            sum *= fast_exp(top - chunk_top);
            top = chunk_top;
        }
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (col + j < vocab) sum += fast_exp(v[j] - top);
    }
    const float row_top = block_max(top);
    const float total = block_sum(top == -INF ? 0.0f : sum * fast_exp(top - row_top));
    const float lse = row_top + logf(total);
    if (threadIdx.x == 0) losses[blockIdx.x] = lse - to_f32(row[target]);
    if (!with_gradient) return;
    __syncthreads();
    for (int col = threadIdx.x * 8; col < vocab; col += blockDim.x * 8) {
        float v[8];
        load8(row, col, vocab, vec, v);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = gradient * (fast_exp(v[j] - lse) - (col + j == target ? 1.0f : 0.0f));
        store8(row, col, vocab, vec, v);
    }
}

// loss += the sum of n losses, in a fixed order. One block.
KERNEL __launch_bounds__(1024) void sum_losses(const float *losses, int n, float *loss) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += losses[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *loss += sum;
}
