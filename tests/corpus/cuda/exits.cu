// All the ways out of a kernel.

extern "C" __global__ void guarded(const float *x, float *y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    y[i] = x[i] * 2 + 1;
}

// Whole blocks leave before their first barrier.
extern "C" __global__ void skipped_blocks(const int *wanted, const int *x, int *y) {
    __shared__ int held[32];
    if (!(wanted[blockIdx.x] & 1)) return;
    held[threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 32 + threadIdx.x] = held[threadIdx.x ^ 5];
}

// Threads leave a loop, and the kernel with it, at different turns.
extern "C" __global__ void out_of_a_loop(const int *x, int *y, int n) {
    int value = x[blockIdx.x * blockDim.x + threadIdx.x];
    for (int turn = 0; turn < n; turn++) {
        if (value == 1) {
            y[blockIdx.x * blockDim.x + threadIdx.x] = turn;
            return;
        }
        value = value % 2 ? 3 * value + 1 : value / 2;
    }
    y[blockIdx.x * blockDim.x + threadIdx.x] = -1;
}

// Some threads leave, the others go on to meet at barriers (which then wait for these alone).
extern "C" __global__ void some_leave_before_a_barrier(const int *x, int *y) {
    __shared__ int held[64];
    if (threadIdx.x >= 48) return;
    held[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 64 + threadIdx.x] = held[47 - threadIdx.x];
}

// A warp leaves between barriers.
extern "C" __global__ void a_warp_leaves_between_barriers(const int *x, int *y) {
    __shared__ int held[96];
    held[threadIdx.x] = x[blockIdx.x * 96 + threadIdx.x];
    __syncthreads();
    const int first = held[95 - threadIdx.x];
    __syncthreads();
    if (threadIdx.x / 32 == blockIdx.x % 3) {
        y[blockIdx.x * 96 + threadIdx.x] = first;
        return;
    }
    held[threadIdx.x] = first;
    __syncthreads();
    y[blockIdx.x * 96 + threadIdx.x] = held[threadIdx.x ^ 1] + 1000;
}

// `exit` in place of `ret`, guarded by a predicate.
extern "C" __global__ void exit_instruction(const int *x, int *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    asm volatile("{ .reg .pred p; setp.lt.s32 p, %0, 0; @p exit; }" ::"r"(x[i]) : "memory");
    y[i] = x[i] + 7;
}

// A function that does not return everywhere: `exit` below a call.
__device__ __noinline__ int leave_if_negative(int a) {
    if (a < 0) asm volatile("exit;");
    return a * 3;
}

extern "C" __global__ void exit_in_a_function(const int *x, int *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = leave_if_negative(x[i]);
}

// An assertion that holds, and a trap that is not reached.
extern "C" __global__ void asserted(const int *x, int *y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (x[i] > 1 << 30) __trap();
    if (gridDim.x * blockDim.x != n) __assertfail("gridDim.x * blockDim.x == n", "exits.cu", 1, "asserted", 1);
    y[i] = x[i] - 1;
}
