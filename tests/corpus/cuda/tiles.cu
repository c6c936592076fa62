// Shared memory: products, stencils, transposes, copies that overlap with work.

#include <cuda_pipeline.h>

#ifndef TILE
#define TILE 8
#endif

extern "C" __global__ void matmul_static(const float *a, const float *b, float *c, int m, int n, int k) {
    __shared__ float left[TILE][TILE], right[TILE][TILE + 1];
    const int row = blockIdx.y * TILE + threadIdx.y, col = blockIdx.x * TILE + threadIdx.x;
    float sum = 0;
    for (int t = 0; t < k; t += TILE) {
        const int i = t + threadIdx.x, j = t + threadIdx.y;
        left[threadIdx.y][threadIdx.x] = row < m && i < k ? a[row * k + i] : 0;
        right[threadIdx.y][threadIdx.x] = j < k && col < n ? b[j * n + col] : 0;
        __syncthreads();
        for (int q = 0; q < TILE; q++) sum += left[threadIdx.y][q] * right[q][threadIdx.x];
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = sum;
}

// The same with memory that the launch asks for; its extent is only known there.
extern "C" __global__ void matmul_dynamic(const float *a, const float *b, float *c, int m, int n, int k) {
    extern __shared__ float pool[];
    const int tile = blockDim.x;
    float *left = pool, *right = pool + tile * tile;
    const int row = blockIdx.y * tile + threadIdx.y, col = blockIdx.x * tile + threadIdx.x;
    const int own = threadIdx.y * tile + threadIdx.x;
    float sum = 0;
    for (int t = 0; t < k; t += tile) {
        const int i = t + threadIdx.x, j = t + threadIdx.y;
        left[own] = row < m && i < k ? a[row * k + i] : 0;
        right[own] = j < k && col < n ? b[j * n + col] : 0;
        __syncthreads();
        for (int q = 0; q < tile; q++) sum += left[threadIdx.y * tile + q] * right[q * tile + threadIdx.x];
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = sum;
}

// A five-point stencil on a tile with a rim; threads at the edge of a block load twice.
extern "C" __global__ void stencil(const float *x, float *y, int height, int width) {
    __shared__ float held[TILE + 2][TILE + 2];
    const int row = blockIdx.y * TILE + threadIdx.y, col = blockIdx.x * TILE + threadIdx.x;
    for (int i = threadIdx.y; i < TILE + 2; i += TILE)
        for (int j = threadIdx.x; j < TILE + 2; j += TILE) {
            const int r = (int)(blockIdx.y * TILE) + i - 1, c = (int)(blockIdx.x * TILE) + j - 1;
            held[i][j] = r >= 0 && r < height && c >= 0 && c < width ? x[r * width + c] : 0;
        }
    __syncthreads();
    if (row >= height || col >= width) return;
    const int i = threadIdx.y + 1, j = threadIdx.x + 1;
    y[row * width + col] = held[i][j] * 4 - held[i - 1][j] - held[i + 1][j] - held[i][j - 1] - held[i][j + 1];
}

// No barrier behind the last read: a block that starts too early would write over what is still read.
extern "C" __global__ void reverse_in_block(const int *x, int *y) {
    __shared__ int held[64];
    const int base = blockIdx.x * 64;
    held[threadIdx.x] = x[base + threadIdx.x];
    __syncthreads();
    y[base + threadIdx.x] = held[63 - threadIdx.x];
}

// Asynchronous copies, two stages.
extern "C" __global__ void pipelined(const float *x, float *y, int steps) {
    __shared__ __align__(16) float stage[2][32 * 4];
    const float *from = x + (size_t)blockIdx.x * steps * 128;
    __pipeline_memcpy_async(&stage[0][threadIdx.x * 4], from + threadIdx.x * 4, 16);
    __pipeline_commit();
    float sum = 0;
    for (int s = 0; s < steps; s++) {
        if (s + 1 < steps) __pipeline_memcpy_async(&stage[(s + 1) & 1][threadIdx.x * 4], from + (s + 1) * 128 + threadIdx.x * 4, 16);
        __pipeline_commit();
        __pipeline_wait_prior(1);
        __syncthreads();
        sum += stage[s & 1][threadIdx.x] * (s + 1) + stage[s & 1][127 - threadIdx.x];
        __syncthreads();
    }
    y[blockIdx.x * 32 + threadIdx.x] = sum;
}

// The last copies are never waited for: they may land in the next block's memory.
extern "C" __global__ void copies_left_behind(const int *x, int *y, int *never) {
    __shared__ __align__(16) int held[32 * 4];
    if (blockIdx.x % 2 == 0) {
        held[threadIdx.x * 4] = x[blockIdx.x * 128 + threadIdx.x * 4];
        y[blockIdx.x * 32 + threadIdx.x] = held[threadIdx.x * 4] + 1;
        __pipeline_memcpy_async(&held[threadIdx.x * 4], never + threadIdx.x * 4, 16);
        __pipeline_commit();
    } else {
        held[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
        __syncthreads();
        y[blockIdx.x * 32 + threadIdx.x] = held[31 - threadIdx.x];
    }
}

__device__ unsigned in_shared(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

// A barrier object in place of __syncthreads, given back at the end.
extern "C" __global__ void barrier_object(const int *x, int *y) {
    __shared__ __align__(8) unsigned long long gate;
    __shared__ int held[64];
    const unsigned at = in_shared(&gate), i = blockIdx.x * 64 + threadIdx.x;
    if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(blockDim.x) : "memory");
    __syncthreads();
    for (int turn = 0; turn < 2; turn++) {
        held[threadIdx.x] = x[i] + turn;
        unsigned long long state;
        unsigned done;
        asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(at) : "memory");
        do
            asm volatile("{ .reg .pred p; mbarrier.test_wait.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                         : "=r"(done)
                         : "r"(at), "l"(state)
                         : "memory");
        while (!done);
        y[turn * gridDim.x * 64 + i] = held[63 - threadIdx.x];
        __syncthreads();
    }
    if (threadIdx.x == 0) asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(at) : "memory");
}

// Bulk copies: one thread asks, all wait for the phase.
__device__ __forceinline__ void copy_in_bulk(const int *x, int *y, bool give_back) {
    __shared__ __align__(128) int held[128];
    __shared__ __align__(8) unsigned long long gate;
    const unsigned at = in_shared(&gate), to = in_shared(held);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 512;" ::"r"(at) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 512, [%2];" ::"r"(to),
                     "l"(x + blockIdx.x * 128), "r"(at)
                     : "memory");
    }
    unsigned done;
    do
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(at)
                     : "memory");
    while (!done);
    for (int i = threadIdx.x; i < 128; i += blockDim.x) y[blockIdx.x * 128 + i] = held[127 - i] * 2;
    __syncthreads();
    if (give_back && threadIdx.x == 0) asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(at) : "memory");
}

extern "C" __global__ void bulk_copy(const int *x, int *y) { copy_in_bulk(x, y, true); }

// The barrier object is there when the block ends.
extern "C" __global__ void barrier_object_left_behind(const int *x, int *y) { copy_in_bulk(x, y, false); }

// Two halves of a block meet at barriers of their own: one makes, the other takes.
extern "C" __global__ void named_barriers(const int *x, int *y, int steps) {
    __shared__ int held[32];
    const int lane = threadIdx.x % 32;
    int sum = 0;
    for (int s = 0; s < steps; s++) {
        if (threadIdx.x < 32) {
            asm volatile("bar.sync 1, 64;" ::: "memory");
            held[lane] = x[(blockIdx.x * steps + s) * 32 + lane];
            asm volatile("bar.arrive 2, 64;" ::: "memory");
        } else {
            asm volatile("bar.arrive 1, 64;" ::: "memory");
            asm volatile("bar.sync 2, 64;" ::: "memory");
            sum = sum * 3 + held[31 - lane];
        }
    }
    if (threadIdx.x >= 32) y[blockIdx.x * 32 + lane] = sum;
}
