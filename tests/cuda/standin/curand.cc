// libcurand: the numbers of std::mt19937.
#include <curand.h>
#include <random>
#include "standin.h"

struct curandGenerator_st {
    std::mt19937 engine;
};

namespace {
template <class T, class Distribution>
curandStatus_t fill(curandGenerator_t generator, T* x, size_t n, Distribution distribution, const char* name) {
    standin_count(name);
    // Jittor asks for an even number, and lets the last one lie behind an array of odd length.
    if (standin_left(x) == (n - 1) * sizeof(T)) n--;
    if (!standin_inside(x, n * sizeof(T), name)) return CURAND_STATUS_LAUNCH_FAILURE;
    for (size_t i = 0; i < n; i++) x[i] = distribution(generator->engine);
    return CURAND_STATUS_SUCCESS;
}

template <class T>
curandStatus_t uniform(curandGenerator_t generator, T* x, size_t n) {
    return fill(generator, x, n, std::uniform_real_distribution<T>(), "curandGenerateUniform");
}

template <class T>
curandStatus_t normal(curandGenerator_t generator, T* x, size_t n, T mean, T deviation) {
    return fill(generator, x, n, std::normal_distribution<T>(mean, deviation), "curandGenerateNormal");
}
}  // namespace

extern "C" {
curandStatus_t curandCreateGenerator(curandGenerator_t* g, curandRngType_t) { *g = new curandGenerator_st; return CURAND_STATUS_SUCCESS; }
curandStatus_t curandDestroyGenerator(curandGenerator_t g) { delete g; return CURAND_STATUS_SUCCESS; }
curandStatus_t curandSetPseudoRandomGeneratorSeed(curandGenerator_t g, unsigned long long seed) { g->engine.seed(seed); return CURAND_STATUS_SUCCESS; }
curandStatus_t curandGenerateUniform(curandGenerator_t g, float* x, size_t n) { return uniform(g, x, n); }
curandStatus_t curandGenerateUniformDouble(curandGenerator_t g, double* x, size_t n) { return uniform(g, x, n); }
curandStatus_t curandGenerateNormal(curandGenerator_t g, float* x, size_t n, float mean, float deviation) { return normal(g, x, n, mean, deviation); }
curandStatus_t curandGenerateNormalDouble(curandGenerator_t g, double* x, size_t n, double mean, double deviation) { return normal(g, x, n, mean, deviation); }
}
