// Matrix products of small matrices (weights) with rows of pixels, blocked for registers.
#pragma once
#include <algorithm>

# include "simd.h"

namespace film {

// Rows of a panel of weights that are multiplied at once, and vectors of pixels beside each other: 24 of 32 registers
// hold sums where there are 32 of them.
constexpr int PANEL = 8;
#ifdef __AVX512F__
constexpr int TILE = 3;
#else
constexpr int TILE = 1;
#endif

// Weights A (m, k), row-major with stride `lda` (or its transpose), rearranged to panels of 8 rows, [panel][k][8], with
// zeros below the last row.
struct Packed {
    int m = 0, k = 0;
    floats data;

    Packed() {}
    Packed(const float* a, int m_, int k_, long lda, bool transposed = false) { pack(a, m_, k_, lda, transposed); }

    void pack(const float* a, int m_, int k_, long lda, bool transposed = false) {
        m = m_;
        k = k_;
        int panels = (m + PANEL - 1) / PANEL;
        data.assign((size_t)panels * k * PANEL, 0.0f);
        for (int i = 0; i < m; i++)
            for (int j = 0; j < k; j++)
                data[((size_t)(i / PANEL) * k + j) * PANEL + i % PANEL] = transposed ? a[j * lda + i] : a[i * lda + j];
    }
};

// Where the k-th row of the right-hand matrix begins: rows at a stride, or rows anywhere (a convolution's taps).
struct Strided {
    const float* p;
    long ld;
    const float* operator[](int k) const { return p + k * ld; }
    Strided at(long n) const { return {p + n, ld}; }
};
struct Scattered {
    const float* const* rows;
    long offset;
    const float* operator[](int k) const { return rows[k] + offset; }
    Scattered at(long n) const { return {rows, offset + n}; }
};

template <int NV, class Rows>
inline void panel_times_tile(const float* a, int k, Rows b, float* c, long ldc, int rows, bool add, const float* bias) {
    vec sum[PANEL][NV];
    for (int i = 0; i < PANEL; i++)
        for (int v = 0; v < NV; v++) sum[i][v] = splat(bias && i < rows ? bias[i] : 0.0f);
    for (int j = 0; j < k; j++, a += PANEL) {
        const float* row = b[j];
        vec x[NV];
        for (int v = 0; v < NV; v++) x[v] = load(row + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < PANEL; i++)
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) sum[i][v] += a[i] * x[v];
    }
#pragma GCC unroll 8
    for (int i = 0; i < PANEL; i++)
        if (i < rows)
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) {
                float* p = c + i * ldc + v * LANES;
                store(p, add ? load(p) + sum[i][v] : sum[i][v]);
            }
}

// C (m, n) = A B + bias, or += with `add`, for n in whole vectors: B and C are read and written up to vectors(n).
template <class Rows>
inline void gemm(const Packed& a, Rows b, long n, float* c, long ldc, bool add = false, const float* bias = nullptr) {
    long nv = vectors(n);
    for (long v = 0; v < nv; v += TILE) {
        for (int i = 0; i < a.m; i += PANEL) {
            const float* panel = a.data.data() + (size_t)i * a.k;
            int rows = std::min(PANEL, a.m - i);
            const float* bi = bias ? bias + i : nullptr;
            float* ci = c + i * ldc + v * LANES;
            auto bv = b.at(v * LANES);
            if (nv - v >= TILE)
                panel_times_tile<TILE>(panel, a.k, bv, ci, ldc, rows, add, bi);
            else if (nv - v == 2)
                panel_times_tile<2>(panel, a.k, bv, ci, ldc, rows, add, bi);
            else
                panel_times_tile<1>(panel, a.k, bv, ci, ldc, rows, add, bi);
        }
    }
}

// Sums over pixels that end in a weight's gradient: C (m, n) += sum_p A[i][p] B[p][j], in double. B is transposed
// (pixels along its rows, n channels beside each other, stride ldb in whole vectors), A is not.
template <int NV>
inline void outer_tile(const float* const* a, int rows, long p, const float* b, long ldb, double* c, long ldc, int n) {
    vec sum[PANEL][NV];
    for (int i = 0; i < PANEL; i++)
        for (int v = 0; v < NV; v++) sum[i][v] = vec{};
    for (long j = 0; j < p; j++) {
        vec x[NV];
        for (int v = 0; v < NV; v++) x[v] = load(b + j * ldb + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < PANEL; i++)
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) sum[i][v] += a[i][j] * x[v];
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < NV; v++)
            for (int l = 0; l < LANES && v * LANES + l < n; l++) c[i * ldc + v * LANES + l] += sum[i][v][l];
}

inline void outer_add(const float* a, long lda, int m, long p, const float* b, long ldb, int n, double* c) {
    for (int i = 0; i < m; i += PANEL) {
        int rows = std::min(PANEL, m - i);
        const float* row[PANEL];
        for (int r = 0; r < PANEL; r++) row[r] = a + (i + std::min(r, rows - 1)) * lda;
        for (int j = 0; j < n; j += 2 * LANES) {
            if (n - j > LANES)
                outer_tile<2>(row, rows, p, b + j, ldb, c + (long)i * n + j, n, n - j);
            else
                outer_tile<1>(row, rows, p, b + j, ldb, c + (long)i * n + j, n, n - j);
        }
    }
}

// A square of LANES rows and columns, transposed in registers: rows exchange halves, then quarters, and so on.
inline void transpose_square(const float* a, long lda, float* b, long ldb) {
    vec rows[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) rows[i] = load(a + i * lda);
#pragma GCC unroll 4
    for (int s = LANES / 2; s > 0; s /= 2) {
        veci low, high;
#pragma GCC unroll 16
        for (int l = 0; l < LANES; l++) {
            low[l] = l & s ? LANES + l - s : l;
            high[l] = l & s ? LANES + l : l + s;
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & s)) {
                vec x = rows[i], y = rows[i + s];
                rows[i] = __builtin_shuffle(x, y, low);
                rows[i + s] = __builtin_shuffle(x, y, high);
            }
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) store(b + i * ldb, rows[i]);
}

// B (p rows, stride ldb) = the transpose of A (m rows of p values, stride lda); columns m..vectors(m) of B become zero
// if `pad`, which needs ldb to hold them.
inline void transpose(const float* a, long lda, long m, long p, float* b, long ldb, bool pad = true) {
    const long whole_m = m / LANES * LANES, whole_p = p / LANES * LANES;
    for (long j = 0; j < whole_p; j += LANES)
        for (long i = 0; i < whole_m; i += LANES) transpose_square(a + i * lda + j, lda, b + j * ldb + i, ldb);
    for (long j = 0; j < p; j++) {
        for (long i = j < whole_p ? whole_m : 0; i < m; i++) b[j * ldb + i] = a[i * lda + j];
        if (pad)
            for (long i = m; i < vectors(m) * LANES; i++) b[j * ldb + i] = 0.0f;
    }
}

}  // namespace film
