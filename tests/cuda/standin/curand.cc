// libcurand: fills with one value, so that what follows is finite.
#include <curand.h>
#include "standin.h"

namespace {
template <class T>
curandStatus_t fill(T* x, size_t n, T value, const char* name) {
    standin_count(name);
    // Jittor asks for an even number, and lets the last one lie behind an array of odd length.
    if (!standin_inside(x, (n - 1) * sizeof(T), name)) return CURAND_STATUS_LAUNCH_FAILURE;
    for (size_t i = 0; i + 1 < n; i++) x[i] = value;
    return CURAND_STATUS_SUCCESS;
}
}  // namespace

extern "C" {
curandStatus_t curandCreateGenerator(curandGenerator_t* g, curandRngType_t) { *g = nullptr; return CURAND_STATUS_SUCCESS; }
curandStatus_t curandDestroyGenerator(curandGenerator_t) { return CURAND_STATUS_SUCCESS; }
curandStatus_t curandSetPseudoRandomGeneratorSeed(curandGenerator_t, unsigned long long) { return CURAND_STATUS_SUCCESS; }
curandStatus_t curandGenerateUniform(curandGenerator_t, float* x, size_t n) { return fill(x, n, 0.5f, "curandGenerateUniform"); }
curandStatus_t curandGenerateUniformDouble(curandGenerator_t, double* x, size_t n) { return fill(x, n, 0.5, "curandGenerateUniform"); }
curandStatus_t curandGenerateNormal(curandGenerator_t, float* x, size_t n, float mean, float) { return fill(x, n, mean, "curandGenerateNormal"); }
curandStatus_t curandGenerateNormalDouble(curandGenerator_t, double* x, size_t n, double mean, double) { return fill(x, n, mean, "curandGenerateNormal"); }
}
