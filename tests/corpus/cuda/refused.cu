// Kernels whose blocks do not stand on their own.

#include <cooperative_groups.h>

namespace cg = cooperative_groups;

extern "C" __global__ void grid_sync(int *x, int *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    x[i] += 1;
    cg::this_grid().sync();
    y[i] = x[n - 1 - i];
}

// A barrier of the grid made by hand.
extern "C" __global__ void grid_barrier(int *x, int *y, unsigned *arrived) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    x[i] += 1;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(arrived, 1);
        while (*(volatile unsigned *)arrived < gridDim.x) {
        }
    }
    __syncthreads();
    y[i] = ((volatile int *)x)[n - 1 - i];
}

// A running sum: each block waits for the one before it.
extern "C" __global__ void look_back(const int *x, int *y, int *sums, int *ready) {
    int before = 0;
    if (threadIdx.x == 0) {
        if (blockIdx.x > 0) {
            while (atomicAdd(&ready[blockIdx.x - 1], 0) == 0) {
            }
            __threadfence();
            before = sums[blockIdx.x - 1];
        }
        sums[blockIdx.x] = before + x[blockIdx.x];
        __threadfence();
        atomicExch(&ready[blockIdx.x], 1);
        y[blockIdx.x] = before + x[blockIdx.x];
    }
}

// The wait is in a function.
__device__ __noinline__ void wait_for(int *flag) {
    int seen;
    do
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(__cvta_generic_to_global(flag)) : "memory");
    while (!seen);
}

extern "C" __global__ void waits_in_a_function(const int *x, int *y, int *ready) {
    if (blockIdx.x > 0) wait_for(&ready[blockIdx.x - 1]);
    y[blockIdx.x * blockDim.x + threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0)
        asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(__cvta_generic_to_global(&ready[blockIdx.x])) : "memory");
}

// One block at a time.
extern "C" __global__ void lock(int *held, int *y) {
    if (threadIdx.x == 0) {
        while (atomicCAS(held, 0, 1) != 0) __nanosleep(100);
        y[0] = y[0] * 3 % 1009 + 1;
        __threadfence();
        atomicExch(held, 0);
    }
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster(const int *x, int *y) {
    __shared__ int held[32];
    auto group = cg::this_cluster();
    held[threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x];
    group.sync();
    y[blockIdx.x * 32 + threadIdx.x] = group.map_shared_rank(held, group.block_rank() ^ 1)[threadIdx.x];
    group.sync();
}

// Asks where it is in a cluster, whose size the launch decides.
extern "C" __global__ void cluster_rank(int *y) {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    y[blockIdx.x * blockDim.x + threadIdx.x] = rank;
}

// Starts before the launch in front of it has ended.
extern "C" __global__ void dependent_launch(const int *x, int *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    asm volatile("griddepcontrol.wait;" ::: "memory");
    y[i] = x[i] + 1;
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__device__ __noinline__ int half_of(int a) { return a / 2 + blockIdx.x; }
__device__ __noinline__ int third_of(int a) { return a / 3 - blockIdx.x; }
__device__ int (*const functions[])(int) = {half_of, third_of};

extern "C" __global__ void function_pointer(const int *x, int *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = functions[x[i] & 1](x[i]);
}

// Warps hand registers to each other and keep them so.
extern "C" __global__ void __launch_bounds__(256) register_shift(const int *x, int *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    if (threadIdx.x < 128)
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    else
        asm volatile("setmaxnreg.inc.sync.aligned.u32 64;");
#endif
    y[i] = x[i] * 2;
}
