// How the bodies of this folder's kernels are run: by CUDA, or, compiled by a C++ compiler, by plain loops over the
// same bodies. That is how they are tested without a GPU.
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

// Threads of a block.
constexpr int THREADS = 256;

#ifdef __CUDACC__

constexpr int WARP = 32;
constexpr long MOST_BLOCKS = 1 << 20;

inline void check_launch() {
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

template <class Body>
__global__ void for_each_kernel(Body body, long n) {
    const long step = (long)gridDim.x * blockDim.x;
    for (long index = (long)blockIdx.x * blockDim.x + threadIdx.x; index < n; index += step) body(index);
}

// body(index) for every index below n, each in a thread.
template <class Body>
void for_each(Body body, long n) {
    if (n == 0) return;
    const long blocks = (n + THREADS - 1) / THREADS;
    for_each_kernel<<<blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS, THREADS>>>(body, n);
    check_launch();
}

// A block for each group: every thread sums its items, every warp its threads, and N threads sum the warps.
template <int N, class Body>
__global__ void sum_kernel(Body body, long items) {
    __shared__ float warp_sums[THREADS / WARP][N];
    float sums[N] = {};
    for (long item = threadIdx.x; item < items; item += THREADS) body(blockIdx.x, item, sums);
    for (int k = 0; k < N; k++) {
        for (int distance = WARP / 2; distance > 0; distance /= 2)
            sums[k] += __shfl_down_sync(0xffffffffu, sums[k], distance);
        if (threadIdx.x % WARP == 0) warp_sums[threadIdx.x / WARP][k] = sums[k];
    }
    __syncthreads();
    if (threadIdx.x < N) {
        float total = 0;
        for (int warp = 0; warp < THREADS / WARP; warp++) total += warp_sums[warp][threadIdx.x];
        body.write(blockIdx.x, threadIdx.x, total);
    }
}

// For each group the N sums that body(group, item, sums) adds up over all items, always in the same order.
// body.write(group, k, total) takes the total of sum k.
template <int N, class Body>
void sum_each(Body body, long groups, long items) {
    if (groups == 0) return;
    sum_kernel<N><<<groups, THREADS>>>(body, items);
    check_launch();
}

#else

template <class Body>
void for_each(Body body, long n) {
    for (long index = 0; index < n; index++) body(index);
}

template <int N, class Body>
void sum_each(Body body, long groups, long items) {
    for (long group = 0; group < groups; group++) {
        float totals[N] = {};
        for (long thread = 0; thread < THREADS; thread++) {
            float sums[N] = {};
            for (long item = thread; item < items; item += THREADS) body(group, item, sums);
            for (int k = 0; k < N; k++) totals[k] += sums[k];
        }
        for (int k = 0; k < N; k++) body.write(group, k, totals[k]);
    }
}

#endif

}  // namespace gpu
}  // namespace film
