// Vectors of floats, and the functions FILM needs of them. GCC's vector types compile to whatever the machine has.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>
#ifdef __AVX__
#include <immintrin.h>
#endif

namespace film {

// Floats in a vector.
#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t veci __attribute__((vector_size(4 * LANES)));
typedef float unaligned_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// load and store accept any address; an aligned one is faster.
inline vec load(const float* p) { return *(const unaligned_vec*)p; }
inline void store(float* p, vec v) { *(unaligned_vec*)p = v; }

#if defined(__AVX512F__)
inline void stream(float* p, vec v) { _mm512_stream_ps(p, (__m512)v); }
#elif defined(__AVX__)
inline void stream(float* p, vec v) { _mm256_stream_ps(p, (__m256)v); }
#endif

// Copy n floats to an operation's output. It is larger than the cache, so complete lines go straight to memory: an ordinary
// store would read each line before it overwrites it. Other threads see them after the next barrier, which is a locked
// instruction and waits for such stores.
inline void write_out(float* to, const float* from, long n) {
    long i = 0;
#ifdef __AVX__
    constexpr long LINE = 64 / sizeof(float);
    const long head = -(long)((uintptr_t)to / sizeof(float)) & (LINE - 1);
    for (; i < head && i < n; i++) to[i] = from[i];
    for (; i + LINE <= n; i += LINE)
        for (long j = i; j < i + LINE; j += LANES) stream(to + j, load(from + j));
#endif
    for (; i < n; i++) to[i] = from[i];
}

// For a vector that is used several times. GCC would load it again for each use, as if that cost nothing.
inline vec load_once(const float* p) {
    vec v = load(p);
#ifdef __AVX__
    asm("" : "+v"(v));
#endif
    return v;
}
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

// The number of vectors that hold n floats; the last one may be partly filled.
inline long vectors(long n) { return (n + LANES - 1) / LANES; }

// Memory that starts at a cache line (64 bytes), so that a vector at a multiple of LANES never crosses a line.
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

// Uninitialised memory, for large buffers that are written before they are read: zeroing them would cost as much as
// filling them.
struct unset_floats {
    float* data;
    explicit unset_floats(size_t n) : data(AlignedAllocator<float>().allocate(n)) {}
    ~unset_floats() { free(data); }
    unset_floats(const unset_floats&) = delete;
    unset_floats(unset_floats&& other) noexcept : data(other.data) { other.data = nullptr; }
    float& operator[](size_t i) { return data[i]; }
    const float& operator[](size_t i) const { return data[i]; }
};

// exp(x) for x <= 0, with a relative error of at most 4e-7. Below -87 the result stays at exp(-87), about 1e-38.
// x = n ln2 + r with |r| <= ln2/2, so exp(x) = 2^n exp(r); exp(r) is a polynomial of degree 5 (minimax in the relative
// error, its first two coefficients fixed at 1).
inline vec exp_negative(vec x) {
    const float log2e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    const vec lowest = splat(-87.0f);
    x = x < lowest ? lowest : x;
    // The conversion truncates towards zero; for x <= 0, subtracting 0.5 first makes it round to nearest. (Adding and
    // subtracting 1.5 * 2^23 would round too, but -Ofast may cancel the two.)
    const veci n = __builtin_convertvector(x * log2e - 0.5f, veci);
    const vec nf = __builtin_convertvector(n, vec);
    vec r = x - nf * ln2_high;
    r = r - nf * ln2_low;
    vec p = splat(0.0083125010f);
    p = p * r + 0.041890331f;
    p = p * r + 0.16667116f;
    p = p * r + 0.49999231f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    veci bits;  // n is added to the exponent field of p
    std::memcpy(&bits, &p, sizeof bits);
    bits += n << 23;
    std::memcpy(&p, &bits, sizeof p);
    return p;
}

// |x|, but at most 6: |x| Phi(-|x|) is 6e-9 there, and smaller beyond.
inline vec near(vec x) {
    const vec magnitude = x < 0.0f ? -x : x, furthest = splat(6.0f);
    return magnitude < furthest ? magnitude : furthest;
}

// The standard normal distribution at x: `tail` is Phi(-|x|), `density` is phi(x).
// Phi(-|x|) = P(|x|)^8 / 2. P is a polynomial of degree 8 on [0, 6], fitted in float64 so that the largest error of
// max(|x|, 0.2) Phi(-|x|) is smallest: 9e-9. That is less than the rounding to float32, 3e-8. P(0) is fixed at 1: the
// eighth power would multiply the rounding of another number by eight, just where most values are.
struct Normal {
    vec tail, density;
};

inline Normal normal(vec x) {
    const vec t = near(x);
    vec p = splat(-3.18533893e-7f);
    p = p * t + 8.09333596e-6f;
    p = p * t - 6.53175448e-5f;
    p = p * t + 3.61054117e-5f;
    p = p * t + 1.64293428e-3f;
    p = p * t - 7.3535135e-4f;
    p = p * t - 0.034816321f;
    p = p * t - 0.0997354314f;
    p = p * t + 1.0f;
    p *= p;
    p *= p;
    return {0.5f * p * p, 0.3989422804f * exp_negative(-0.5f * x * x)};
}

// forward:  gelu(x)  = x Phi(x) = max(x, 0) - |x| Phi(-|x|), absolute error below 3e-7
// backward: gelu'(x) = Phi(x) + x phi(x), because phi is the derivative of Phi
inline vec gelu(vec x, Normal n) { return (x > 0.0f ? x : vec{}) - near(x) * n.tail; }
inline vec gelu_slope(vec x, Normal n) { return (x < 0.0f ? n.tail : 1.0f - n.tail) + x * n.density; }

}  // namespace film
