// The instructions of PTX that the kernels use, as functions: mul.lo.s32 is ptx::mul_lo<s32>. ptx.py writes the calls.
// What each computes: NVIDIA, "Parallel Thread Execution ISA".
#pragma once
#include <cfenv>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <type_traits>
#include "thread.h"

using u8 = uint8_t; using u16 = uint16_t; using u32 = uint32_t; using u64 = uint64_t;
using s8 = int8_t; using s16 = int16_t; using s32 = int32_t; using s64 = int64_t;
using b8 = u8; using b16 = u16; using b32 = u32; using b64 = u64;
using f32 = float; using f64 = double; using pred = bool;

#define INLINE inline __attribute__((always_inline))

// A register holds bits; an instruction says what they are.
template <class T> struct Register {
    T bits;
    template <class V> INLINE operator V() const {
        V value{};
        memcpy(&value, &bits, sizeof(V) < sizeof(T) ? sizeof(V) : sizeof(T));
        return value;
    }
    // An integer that is narrower is extended.
    template <class V> INLINE void operator=(V value) {
        if constexpr (std::is_integral<V>::value && std::is_integral<T>::value) bits = (T)value;
        else {
            static_assert(sizeof(V) == sizeof(T));
            memcpy(&bits, &value, sizeof bits);
        }
    }
};

// --- where operands in memory are: LANES values, each a T
template <class T> INLINE T* param(Thread& t, int index, int offset) { return (T*)((char*)t.arguments[index] + offset); }

template <class T, int LANES> INLINE T* global(Thread&, const char* instruction, u64 base, s64 offset) {
    const u64 at = base + offset;
    const bool known = standin_known[at / KNOWN_BYTES % KNOWN].holds(at, LANES * sizeof(T));
    return (T*)(known ? (void*)at : standin_find(instruction, at, LANES * sizeof(T)));
}

INLINE void* within(const Array& array, const char* instruction, u64 at, size_t size) {
    return array.holds(at, size) ? (void*)at : standin_outside(instruction, at - array.start, array);
}

template <class T, int LANES> INLINE T* shared(Thread& t, const char* instruction, u32 base, s32 offset) {
    const u32 at = base + offset;
    const Array& array = t.shared[at / SHARED_SLOT % SHARED_ARRAYS];
    return (T*)within(array, instruction, array.start + at % SHARED_SLOT - SHARED_START, LANES * sizeof(T));
}

template <class T, int LANES> INLINE T* local(Thread& t, const char* instruction, u64 base, s64 offset) {
    return (T*)within(t.local, instruction, base + offset, LANES * sizeof(T));
}

template <class T, int LANES> INLINE T* param(Thread& t, const char* instruction, u64 base, s64 offset) {
    return (T*)within(t.indexed, instruction, base + offset, LANES * sizeof(T));
}

namespace ptx {

template <class T> struct Twice;
template <> struct Twice<u16> { using type = u32; };
template <> struct Twice<s16> { using type = s32; };
template <> struct Twice<u32> { using type = u64; };
template <> struct Twice<s32> { using type = s64; };
template <> struct Twice<u64> { using type = unsigned __int128; };
template <> struct Twice<s64> { using type = __int128; };

#define ONE(name, value) template <class T> INLINE T name(T a) { return value; }
#define TWO(name, value) template <class T> INLINE T name(T a, T b) { return value; }
#define THREE(name, value) template <class T> INLINE T name(T a, T b, T c) { return value; }
#define SHIFT(name, value) template <class T> INLINE T name(T a, u32 n) { return value; }
#define COMPARE(name, value) template <class T> INLINE pred name(T a, T b) { return value; }

ONE(mov, a)
ONE(neg, -a)
ONE(abs, std::abs(a))
ONE(sqrt, std::sqrt(a))
ONE(rcp, 1 / a)
template <class T> INLINE T not(T a) { if constexpr (std::is_same<T, pred>::value) return !a; else return ~a; }

TWO(add, a + b)
TWO(sub, a - b)
TWO(mul, a * b)
TWO(mul_lo, a * b)
TWO(rem, a % b)
TWO(and, a & b)
TWO(or, a | b)
TWO(xor, a ^ b)
TWO(copysign, std::copysign(b, a))
TWO(min, a < b || b != b || (a == b && std::signbit(a)) ? a : b)  // of a number and NaN, the number; -0 is below 0
TWO(max, a > b || b != b || (a == b && std::signbit(b)) ? a : b)
TWO(div, a / b)
template <class T> INLINE auto mul_wide(T a, T b) { return (typename Twice<T>::type)a * b; }
template <class T> INLINE T mul_hi(T a, T b) { return (typename Twice<T>::type)a * b >> 8 * sizeof(T); }

THREE(mad_lo, a * b + c)
THREE(fma, std::fma(a, b, c))
template <class T> INLINE T fma_rm(T a, T b, T c) {
    std::fesetround(FE_DOWNWARD);
    volatile T x = a, result = std::fma((T)x, b, c);  // volatile: between the changes of the mode
    std::fesetround(FE_TONEAREST);
    return result;
}
// Only approximate on a GPU; here 2^-22 off, up or down by the last bit of a, except at 0. ftz: subnormal numbers count as 0.
template <class T> INLINE T ex2_approx_ftz(T a) {
    if (std::abs(a) < FLT_MIN) return 1;
    Register<b32> bits;
    bits = a;
    const T exact = std::exp2(a);
    return exact < FLT_MIN ? 0 : exact * (bits.bits % 2 ? 1 + 0x1p-22f : 1 - 0x1p-22f);
}

SHIFT(shl, n < 8 * sizeof(T) ? a << n : 0)
SHIFT(shr, n < 8 * sizeof(T) ? a >> n : a < 0 ? -1 : 0)

COMPARE(setp_eq, a == b)
COMPARE(setp_ne, a < b || a > b)
COMPARE(setp_lt, a < b)
COMPARE(setp_le, a <= b)
COMPARE(setp_gt, a > b)
COMPARE(setp_ge, a >= b)
COMPARE(setp_equ, !(a < b || a > b))  // u: or one of them is NaN
COMPARE(setp_neu, a != b)
COMPARE(setp_ltu, !(a >= b))
COMPARE(setp_leu, !(a > b))
COMPARE(setp_gtu, !(a <= b))
COMPARE(setp_geu, !(a < b))
template <class T> INLINE T selp(T a, T b, pred p) { return p ? a : b; }

template <class To, class From> INLINE To cvt(From a) { return (To)a; }
template <class To, class From> INLINE To cvt_sat(From a) { return a > 0 ? a < 1 ? a : 1 : 0; }  // NaN becomes 0

// An address in global or local memory is the same in the generic space.
ONE(cvta_to, a)
ONE(cvta, a)
template <class T> INLINE T ld(const T* p) { return *p; }
template <class T, class... Registers> INLINE void ld(const T* p, Registers&... registers) { ((registers = *p++), ...); }
template <class T, class... Values> INLINE void st(T* p, Values... values) { ((*p++ = (T)values), ...); }
#define ATOMIC(name, value) template <class T> INLINE T name(T* p, T b) { const T a = *p; *p = value; return a; }
ATOMIC(atom_add, a + b)
ATOMIC(atom_max, max<T>(a, b))
ATOMIC(red_add, a + b)  // red: atom without a result
ATOMIC(red_max, max<T>(a, b))

// The only barrier is number 0: no other number converts to this type.
INLINE void bar(Thread& t, decltype(nullptr)) { standin_wait(t, Reached::BARRIER); }
// Of a whole warp: nothing else is used.
template <class T> INLINE T shfl_down(Thread& t, T value, u32 distance, u32 last, u32 mask) {
    const unsigned turn = t.turn++ % 2;
    t.offered[turn] = value;
    standin_wait(t, Reached::SHUFFLE);
    const bool whole = last == 31 && mask == UINT32_MAX && t.lanes == 32;
    if (!whole) standin_outside("shfl.sync.down of a part of a warp", mask, {0, 0});
    t.in_range = whole && t.lane + distance <= last;
    return t.in_range ? t.warp[t.lane + distance].offered[turn] : value;
}

}  // namespace ptx
