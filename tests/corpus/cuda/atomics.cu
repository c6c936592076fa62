// Warps and atomics: sums, votes, counters, queues.

extern "C" __global__ void histogram(const int *x, int *bins, int n) {
    __shared__ int own[64];
    for (int i = threadIdx.x; i < 64; i += blockDim.x) own[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&own[x[i] & 63], 1);
    __syncthreads();
    for (int i = threadIdx.x; i < 64; i += blockDim.x)
        if (own[i]) atomicAdd(&bins[i], own[i]);
}

// Sums by shuffles, through shared memory from warp to warp.
extern "C" __global__ void reduction(const float *x, float *y, int n) {
    __shared__ float of_warp[32];
    float sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    for (int d = 16; d; d /= 2) sum += __shfl_down_sync(~0u, sum, d);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    sum = threadIdx.x < blockDim.x / 32 ? of_warp[threadIdx.x] : 0;
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

// Keeps what is odd, in order: ballots, masks, and counts at a barrier.
extern "C" __global__ void compaction(const int *x, int *y, int *counts) {
    __shared__ int first[4];
    const int i = blockIdx.x * blockDim.x + threadIdx.x, warp = threadIdx.x / 32;
    const bool kept = x[i] & 1;
    const unsigned who = __ballot_sync(~0u, kept);
    if (threadIdx.x % 32 == 0) first[warp] = __popc(who);
    const int all = __syncthreads_count(kept);
    int at = 0;
    for (int w = 0; w < warp; w++) at += first[w];
    unsigned below;
    asm("mov.u32 %0, %%lanemask_lt;" : "=r"(below));
    if (kept) y[blockIdx.x * blockDim.x + at + __popc(who & below)] = x[i];
    if (threadIdx.x == 0) counts[blockIdx.x] = all;
}

extern "C" __global__ void in_place(const float *x, float *y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += x[i];
}

// Places are given out in the order of arrival: the outputs are the same set in any order.
extern "C" __global__ void tickets(const int *x, int *next, int *y) {
    const int value = x[blockIdx.x * blockDim.x + threadIdx.x];
    if (value % 3 == 0) y[atomicAdd(next, 1)] = value * 100 + blockIdx.x;
}

// A maximum of floats by compare and swap: repeats, but never waits for anyone.
extern "C" __global__ void greatest(const float *x, float *y) {
    const float value = x[blockIdx.x * blockDim.x + threadIdx.x];
    int *word = (int *)&y[threadIdx.x % 4], seen = *word;
    while (__int_as_float(seen) < value) {
        const int old = atomicCAS(word, seen, __float_as_int(value));
        if (old == seen) break;
        seen = old;
    }
}

// The block that is done last sums up; nobody waits.
extern "C" __global__ void last_block_sums(const int *x, int *parts, unsigned *done, int *y) {
    __shared__ bool last;
    int sum = x[blockIdx.x * 32 + threadIdx.x];
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(done, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    sum = 0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += 32) sum += ((volatile int *)parts)[i];
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (threadIdx.x == 0) {
        *y = sum;
        *done = 0;
    }
}

// Blocks take work from a common counter until it is empty.
extern "C" __global__ void work_queue(const int *x, int *y, unsigned *next, int items) {
    __shared__ unsigned item;
    while (true) {
        __syncthreads();
        if (threadIdx.x == 0) item = atomicAdd(next, 1);
        __syncthreads();
        if (item >= items) return;
        y[item * 32 + threadIdx.x] = x[item * 32 + threadIdx.x] * 3 + item;
    }
}

// Adds into one word from all blocks; exact, since the numbers are whole.
extern "C" __global__ void float_atomics(const float *x, float *y) {
    atomicAdd(&y[threadIdx.x % 8], x[blockIdx.x * blockDim.x + threadIdx.x]);
    atomicMax((int *)&y[8], (int)(blockIdx.x * blockDim.x + threadIdx.x));
}
