// Vectors of floats, and the two functions FILM needs of them. GCC's vector types compile to whatever the machine has.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace film {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t veci __attribute__((vector_size(4 * LANES)));
typedef float unaligned_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline vec load(const float* p) { return *(const unaligned_vec*)p; }
inline void store(float* p, vec v) { *(unaligned_vec*)p = v; }
inline vec splat(float x) { return x - vec{}; }

inline float max_lanes(vec v) {
    float m = v[0];
    for (int i = 1; i < LANES; i++) m = v[i] > m ? v[i] : m;
    return m;
}

inline float sum_lanes(vec v) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
}

// Vectors that n floats fill, the last one perhaps in part.
inline long vectors(long n) { return (n + LANES - 1) / LANES; }

// Floats that begin at a cache line, so that a vector at a multiple of LANES lies in one.
template <class T>
struct AlignedAllocator {
    typedef T value_type;
    AlignedAllocator() {}
    template <class U>
    AlignedAllocator(const AlignedAllocator<U>&) {}
    T* allocate(size_t n) {
        void* p = nullptr;
        if (posix_memalign(&p, 64, n * sizeof(T))) throw std::bad_alloc();
        return (T*)p;
    }
    void deallocate(T* p, size_t) { free(p); }
    bool operator==(const AlignedAllocator&) const { return true; }
    bool operator!=(const AlignedAllocator&) const { return false; }
};
typedef std::vector<float, AlignedAllocator<float>> floats;

// Large buffers that are written before they are read: zeroing them first would cost as much as filling them.
struct unset_floats {
    float* data;
    explicit unset_floats(size_t n) : data(AlignedAllocator<float>().allocate(n)) {}
    ~unset_floats() { free(data); }
    unset_floats(const unset_floats&) = delete;
    float& operator[](size_t i) { return data[i]; }
    const float& operator[](size_t i) const { return data[i]; }
};

// exp(x) for x <= 0: 2^n times a polynomial on [-ln2/2, ln2/2], 1 + r + ..., relative minimax of degree 5; relative
// error below 2e-7. Below -87 it stays at exp(-87), about 1e-38.
inline vec exp_negative(vec x) {
    const float log2e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    vec floor_at = splat(-87.0f);
    x = x < floor_at ? floor_at : x;
    // Conversion cuts towards zero, so that for these x it rounds. (Adding and subtracting 1.5 * 2^23 would round
    // too, but -Ofast may cancel the two.)
    veci n = __builtin_convertvector(x * log2e - 0.5f, veci);
    vec nf = __builtin_convertvector(n, vec);
    vec r = x - nf * ln2_high;
    r = r - nf * ln2_low;
    vec p = splat(0.0083125010f);
    p = p * r + 0.041890331f;
    p = p * r + 0.16667116f;
    p = p * r + 0.49999231f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    veci bits = (n + 127) << 23;
    vec power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

// 1 / x within a unit in the last place: an estimate of 14 bits and a Newton step, where there is one.
inline vec reciprocal(vec x) {
#ifdef __AVX512F__
    vec r = (vec)_mm512_rcp14_ps((__m512)x);
    return r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

// The normal distribution: `cdf` Phi(x) and `density` phi(x), for GELU(x) = x Phi(x) and its slope Phi(x) + x phi(x).
// Phi(-|x|) = exp(-x^2/2) t P(t), t = 1 / (1 + 0.26 |x|), P a polynomial of degree 8 fitted to scipy.special.erfcx in
// float64 (relative minimax, 2.5e-8 on |x| <= 14); in float32 the GELU is within 8e-8.
struct Normal {
    vec cdf, density;
};

inline Normal normal(vec x) {
    vec a = x < 0.0f ? -x : x;
    vec t = reciprocal(1.0f + 0.26f * a);
    vec p = splat(0.03050513f);
    p = p * t - 0.15282996f;
    p = p * t + 0.25149354f;
    p = p * t - 0.1509514f;
    p = p * t + 0.16094944f;
    p = p * t + 0.051027045f;
    p = p * t + 0.103030406f;
    p = p * t + 0.10301673f;
    p = p * t + 0.10375906f;
    vec e = exp_negative(-0.5f * x * x);
    vec tail = p * t * e;
    return {x < 0.0f ? tail : 1.0f - tail, 0.3989422804f * e};
}

}  // namespace film
