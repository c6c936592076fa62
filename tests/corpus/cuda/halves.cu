// Numbers of 16 and 64 bits, vectors, tensor cores.

#include <cuda_fp16.h>
#include <mma.h>

extern "C" __global__ void half_pairs(const __half2 *x, __half2 *y, __half a, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = __hfma2(x[i], __half2half2(a), y[i]);
}

extern "C" __global__ void vectors(const float4 *x, float4 *y, double *sums, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float4 v = x[i];
    y[i] = make_float4(v.w, v.z + 1, v.y + 2, v.x + 3);
    sums[i] = (double)v.x + v.y + v.z + v.w;
}

extern "C" __global__ void tensor_cores(const __half *a, const __half *b, float *c, int n, int k) {
    using namespace nvcuda::wmma;
    fragment<matrix_a, 16, 16, 16, __half, row_major> left;
    fragment<matrix_b, 16, 16, 16, __half, row_major> right;
    fragment<accumulator, 16, 16, 16, float> sum;
    fill_fragment(sum, 0.0f);
    for (int t = 0; t < k; t += 16) {
        load_matrix_sync(left, a + blockIdx.y * 16 * k + t, k);
        load_matrix_sync(right, b + t * n + blockIdx.x * 16, n);
        mma_sync(sum, left, right, sum);
    }
    store_matrix_sync(c + blockIdx.y * 16 * n + blockIdx.x * 16, sum, n, mem_row_major);
}
