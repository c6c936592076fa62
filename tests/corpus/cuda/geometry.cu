// What a block knows of itself and of the grid.

extern "C" __global__ void coordinates(int *y) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    int *to = y + (block * blockDim.x * blockDim.y * blockDim.z + thread) * 6;
    to[0] = blockIdx.x * 100 + gridDim.x;
    to[1] = blockIdx.y * 100 + gridDim.y;
    to[2] = blockIdx.z * 100 + gridDim.z;
    to[3] = threadIdx.x * 100 + blockDim.x;
    to[4] = threadIdx.y * 100 + blockDim.y;
    to[5] = threadIdx.z * 100 + blockDim.z;
}

extern "C" __global__ void grid_stride(const float *x, float *y, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = x[i] * x[i];
}

// From the last block to the first, and each block looks at its neighbours' input.
extern "C" __global__ void backwards(const int *x, int *y) {
    const int block = gridDim.x - 1 - blockIdx.x, next = (blockIdx.x + 1) % gridDim.x;
    y[block * blockDim.x + threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x] * 10 + x[next * blockDim.x];
}

__device__ __noinline__ int where() { return blockIdx.y * gridDim.x + blockIdx.x; }
__device__ __noinline__ int deeper(const int *x, int i) { return x[i] + where() * 1000; }

extern "C" __global__ void called(const int *x, int *y) {
    const int i = where() * blockDim.x + threadIdx.x;
    y[i] = deeper(x, i);
}

__device__ __noinline__ int shared_sum(int value) {
    __shared__ int held[32];
    __syncthreads();
    held[threadIdx.x] = value;
    __syncthreads();
    int sum = 0;
    for (int i = 0; i < 32; i++) sum += held[i] * (i + 1);
    return sum;
}

// Barriers and shared memory inside a function, a number of times that differs from block to block.
extern "C" __global__ void barriers_in_a_function(const int *x, int *y) {
    int value = x[blockIdx.x * 32 + threadIdx.x];
    for (unsigned turn = 0; turn <= blockIdx.x % 3; turn++) value += shared_sum(value) % 1009;
    y[blockIdx.x * 32 + threadIdx.x] = value;
}

__device__ __noinline__ int depth(const int *next, int at) { return next[at] == at ? 0 : 1 + depth(next, next[at]); }

// Recursion: ptxas does not know how deep the stack gets.
extern "C" __global__ void recursion(const int *next, int *y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = depth(next, i) + blockIdx.x * 100;
}

// A table of jumps.
extern "C" __global__ void jump_table(const int *x, int *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    int value = x[i];
    for (int turn = 0; turn < 2; turn++)
        asm volatile(
            "{\n"
            ".reg .b32 which;\n"
            "places: .branchtargets here, there, nowhere, out;\n"
            "xor.b32 which, %0, %1;\n"
            "and.b32 which, which, 3;\n"
            "brx.idx which, places;\n"
            "here: mad.lo.s32 %0, %0, 3, %1; bra.uni out;\n"
            "there: add.s32 %0, %0, 11; bra.uni out;\n"
            "nowhere: st.global.u32 [%2], %0; ret;\n"
            "out:\n"
            "}"
            : "+r"(value)
            : "r"(blockIdx.x), "l"(__cvta_generic_to_global(y + i))
            : "memory");
    y[i] = value + 1000;
}

__constant__ float weights[4] = {1.0f, -2.0f, 0.5f, 4.0f};
__device__ int offsets[4] = {3, 1, 2, 0};

// Constant and global tables that the module brings, and an array of each thread that is indexed.
extern "C" __global__ void tables(const float *x, float *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    float own[4];
    for (int j = 0; j < 4; j++) own[offsets[(j + blockIdx.x) & 3]] = x[i] * weights[j];
    y[i] = own[(threadIdx.x + blockIdx.x) & 3] + own[blockIdx.x & 1];
}

struct Shape {
    int extents[4];
    float scale;
    short shift;
};

// A structure by value, its address taken and indexed.
extern "C" __global__ void structure(const __grid_constant__ Shape shape, float *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = shape.extents[(i + blockIdx.x) & 3] * shape.scale + shape.shift;
}

// Coordinates that are asked for in assembly, and once more behind a barrier.
extern "C" __global__ void in_assembly(int *y) {
    int block, blocks;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
    asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(blocks));
    __syncthreads();
    asm volatile("{ .reg .b32 again; mov.u32 again, %%ctaid.x; mad.lo.u32 %0, again, 100, %0; }" : "+r"(block));
    y[blockIdx.x * blockDim.x + threadIdx.x] = block * 1000 + blocks * 100 + threadIdx.x;
}

extern "C" __global__ void __launch_bounds__(1024, 1) widest(const int *x, int *y) {
    __shared__ int held[1024];
    held[threadIdx.x] = x[blockIdx.x * 1024 + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 1024 + threadIdx.x] = held[(threadIdx.x * 5 + 3) % 1024];
}
