// How the bodies of this folder's kernels are run: by CUDA, or, compiled by a C++ compiler, by plain loops over the
// same bodies. That second way is how they are tested where there is no GPU.
#pragma once
# include <cmath>
#ifdef __CUDACC__
# include <cuda_runtime.h>
# include <stdexcept>
#define FILM_BODY __host__ __device__ inline
#else
#define FILM_BODY inline
#endif

namespace film {
namespace gpu {

constexpr int THREADS = 256;

#ifdef __CUDACC__

constexpr long MOST_BLOCKS = 1 << 20;

inline void check_launch() {
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

template <class Body>
__global__ void for_each_kernel(Body body, long n) {
    const long step = (long)gridDim.x * blockDim.x;
    for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) body(i);
}

// body(i) for every i below n.
template <class Body>
void for_each(Body body, long n) {
    if (n == 0) return;
    const long blocks = (n + THREADS - 1) / THREADS;
    for_each_kernel<<<blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS, THREADS>>>(body, n);
    check_launch();
}

template <int N, class Body>
__global__ void sum_kernel(Body body, long items) {
    __shared__ float of_warp[THREADS / 32][N];
    float sums[N] = {};
    for (long i = threadIdx.x; i < items; i += THREADS) body(blockIdx.x, i, sums);
    for (int k = 0; k < N; k++) {
        for (int distance = 16; distance > 0; distance /= 2)
            sums[k] += __shfl_down_sync(0xffffffffu, sums[k], distance);
        if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32][k] = sums[k];
    }
    __syncthreads();
    if (threadIdx.x < N) {
        float total = 0;
        for (int warp = 0; warp < THREADS / 32; warp++) total += of_warp[warp][threadIdx.x];
        body.write(blockIdx.x, threadIdx.x, total);
    }
}

// For each group the N sums that body(group, item, sums) adds up over all items, always in one order. body.write(group,
// k, total) takes the total of sum k.
template <int N, class Body>
void sum_each(Body body, long groups, long items) {
    if (groups == 0) return;
    sum_kernel<N><<<groups, THREADS>>>(body, items);
    check_launch();
}

#else

template <class Body>
void for_each(Body body, long n) {
    for (long i = 0; i < n; i++) body(i);
}

template <int N, class Body>
void sum_each(Body body, long groups, long items) {
    for (long group = 0; group < groups; group++) {
        float totals[N] = {};
        for (long thread = 0; thread < THREADS; thread++) {
            float sums[N] = {};
            for (long i = thread; i < items; i += THREADS) body(group, i, sums);
            for (int k = 0; k < N; k++) totals[k] += sums[k];
        }
        for (int k = 0; k < N; k++) body.write(group, k, totals[k]);
    }
}

#endif

}  // namespace gpu
}  // namespace film
