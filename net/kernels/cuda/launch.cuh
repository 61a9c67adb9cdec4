// How the bodies of this folder's kernels are run: by CUDA, or, compiled by a C++ compiler, by plain loops over the
// same bodies. That is how they are tested without a GPU.
#pragma once
# include <cmath>
#ifdef __CUDACC__
# include <cuda_runtime.h>
# include <stdexcept>
#define FILM_BODY __device__ inline
#else
#define FILM_BODY inline
#endif

namespace film {
namespace gpu {

// Threads of a block: of for_each, which has any number of blocks, and of for_each_block.
constexpr int THREADS = 256, BLOCK = 1024;

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

// The states of a warp in lane 0, added up. A state consists of floats.
template <class State>
__device__ State warp_total(State state) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        State other;
        for (int k = 0; k < sizeof(State) / sizeof(float); k++)
            ((float*)&other)[k] = __shfl_down_sync(0xffffffffu, ((float*)&state)[k], distance);
        state.add(other);
    }
    return state;
}

// The threads that work on a group.
struct Block {
    // The items added up: add(item, state) adds one to a state, state.add(other) another state. At most once per group.
    template <class State, class Add>
    __device__ State total(long items, Add add) const {
        State state = State::none();
        for (long item = threadIdx.x; item < items; item += BLOCK) add(item, state);
        __shared__ State warps[BLOCK / WARP];
        static_assert(BLOCK / WARP == WARP, "one warp adds up what the warps have");
        state = warp_total(state);
        if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = state;
        __syncthreads();
        if (threadIdx.x < WARP) state = warp_total(warps[threadIdx.x]);
        if (threadIdx.x == 0) warps[0] = state;
        __syncthreads();
        return warps[0];
    }
    // f(item) for every item.
    template <class F>
    __device__ void each(long items, F f) const {
        for (long item = threadIdx.x; item < items; item += BLOCK) f(item);
    }
};

template <class Body>
__global__ void __launch_bounds__(BLOCK) for_each_block_kernel(Body body) {
    body(blockIdx.x, Block());
}

// body(group, block) for every group below `groups`, each in a block of threads.
template <class Body>
void for_each_block(Body body, long groups) {
    if (groups == 0) return;
    for_each_block_kernel<<<groups, BLOCK>>>(body);
    check_launch();
}

#else

template <class Body>
void for_each(Body body, long n) {
    for (long index = 0; index < n; index++) body(index);
}

struct Block {
    template <class State, class Add>
    State total(long items, Add add) const {
        State total = State::none();
        for (long thread = 0; thread < BLOCK && thread < items; thread++) {
            State state = State::none();
            for (long item = thread; item < items; item += BLOCK) add(item, state);
            total.add(state);
        }
        return total;
    }
    template <class F>
    void each(long items, F f) const {
        for (long item = 0; item < items; item++) f(item);
    }
};

template <class Body>
void for_each_block(Body body, long groups) {
    for (long group = 0; group < groups; group++) body(group, Block());
}

#endif

template <int N>
struct Sums {
    float of[N];
    FILM_BODY static Sums none() { return {}; }
    FILM_BODY void add(const Sums& other) {
        for (int k = 0; k < N; k++) of[k] += other.of[k];
    }
};

template <int N, class Body>
struct SumEach {
    Body body;
    long items;
    FILM_BODY void operator()(long group, const Block& block) const {
        const auto add = [&](long item, Sums<N>& sums) { body(group, item, sums.of); };
        const Sums<N> sums = block.total<Sums<N>>(items, add);
        block.each(N, [&](long k) { body.write(group, k, sums.of[k]); });
    }
};

// For each group the N sums that body(group, item, sums) adds up over all items, always in the same order.
// body.write(group, k, total) takes the total of sum k.
template <int N, class Body>
void sum_each(Body body, long groups, long items) {
    for_each_block(SumEach<N, Body>{body, items}, groups);
}

// totals[group] = sum over the items of terms[group * group_step + item * item_step].
struct Total {
    const float* terms;
    long group_step, item_step;
    float* totals;
    FILM_BODY void operator()(long group, long item, float* sums) const {
        sums[0] += terms[group * group_step + item * item_step];
    }
    FILM_BODY void write(long group, int, float total) const { totals[group] = total; }
};

}  // namespace gpu
}  // namespace film
