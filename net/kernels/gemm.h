// Products of a small matrix (weights) with rows of pixels, blocked for registers, and transposition.
//
// Matrices are row-major. `ldx` is the leading dimension of x: the distance in floats from one row to the next.
#pragma once
#include <algorithm>

# include "simd.h"

namespace film {

// The register block: PANEL rows of the weights times TILE vectors of pixels. The sums take 8 * 3 = 24 of the 32
// registers of AVX-512, and 6 * 2 = 12 of the 16 of AVX2. 32 rows are no multiple of 6: LOW rows are computed for a
// panel that has no more.
#ifdef __AVX512F__
constexpr int PANEL = 8, LOW = 8, TILE = 3;
#else
constexpr int PANEL = 6, LOW = 5, TILE = 2;
#endif

// Weights (rows, columns) in the order in which gemm reads them: panels of at most PANEL rows, [panel][column][PANEL],
// with zeros below a panel's last row. The numbers of rows of two panels differ by one at most. The source has stride
// `ld`; with `transposed` it is (columns, rows) and its transpose is packed.
struct Packed {
    int rows = 0, columns = 0, panels = 0;
    floats data;

    Packed() {}
    Packed(const float* weight, int rows_, int columns_, long ld, bool transposed = false) {
        pack(weight, rows_, columns_, ld, transposed);
    }

    void pack(const float* weight, int rows_, int columns_, long ld, bool transposed = false) {
        reserve(rows_, columns_);
        for (int p = 0; p < panels; p++) pack_panel(p, weight, ld, transposed);
    }

    // pack in two steps, so that threads can share the panels.
    void reserve(int rows_, int columns_) {
        rows = rows_;
        columns = columns_;
        panels = (rows + PANEL - 1) / PANEL;
        data.assign((size_t)panels * columns * PANEL, 0.0f);
    }
    void pack_panel(int p, const float* weight, long ld, bool transposed = false) {
        for (int i = first(p); i < first(p + 1); i++)
            for (int j = 0; j < columns; j++)
                data[((size_t)p * columns + j) * PANEL + i - first(p)] =
                    transposed ? weight[j * ld + i] : weight[i * ld + j];
    }

    // The first row of a panel.
    int first(int panel) const { return rows * panel / panels; }
};

// The right-hand matrix x of gemm: x[j] points to row j. Its rows lie at a fixed stride, or anywhere (the shifted rows
// of a convolution's window). at(pixel) is the same matrix from that column on. The rows of a Streamed matrix are not in
// the first two caches: gemm fetches them two tiles before they are needed.
struct Strided {
    const float* p;
    long ld;
    const float* operator[](int j) const { return p + j * ld; }
    Strided at(long pixel) const { return {p + pixel, ld}; }
};
struct Streamed {
    const float* p;
    long ld;
    const float* operator[](int j) const {
        const float* row = p + j * ld;
        for (int l = 0; l < TILE * LANES; l += 16) __builtin_prefetch(row + 2 * TILE * LANES + l);
        return row;
    }
    Streamed at(long pixel) const { return {p + pixel, ld}; }
};
struct Scattered {
    const float* const* rows;
    long offset;
    const float* operator[](int j) const { return rows[j] + offset; }
    Scattered at(long pixel) const { return {rows, offset + pixel}; }
};

// One panel of weights times NV vectors of pixels: HEIGHT rows are computed, and `rows` of them are written.
template <int HEIGHT, int NV, class Rows>
inline void panel_times_tile(
    const float* panel, int columns, Rows x, float* y, long ldy, int rows, bool add, const float* bias
) {
    vec sum[HEIGHT][NV];
    for (int i = 0; i < HEIGHT; i++)
        for (int v = 0; v < NV; v++) sum[i][v] = splat(bias && i < rows ? bias[i] : 0.0f);
    for (int j = 0; j < columns; j++, panel += PANEL) {
        const float* row = x[j];
        vec tile[NV];
        for (int v = 0; v < NV; v++) tile[v] = load(row + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) sum[i][v] += panel[i] * tile[v];
    }
#pragma GCC unroll 8
    for (int i = 0; i < HEIGHT; i++)
        if (i < rows)
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) {
                float* p = y + i * ldy + v * LANES;
                store(p, add ? load(p) + sum[i][v] : sum[i][v]);
            }
}

// y (rows, n) = weight x + bias, or y += weight x + bias with `add`. Works on complete vectors: x is read and y is
// written up to column vectors(n) * LANES.
template <class Rows>
inline void gemm(
    const Packed& weight, Rows x, long n, float* y, long ldy, bool add = false, const float* bias = nullptr
) {
    long nv = vectors(n);
    for (long v = 0; v < nv; v += TILE) {
        for (int p = 0; p < weight.panels; p++) {
            const float* panel = weight.data.data() + (size_t)p * weight.columns * PANEL;
            const int i = weight.first(p), rows = weight.first(p + 1) - i;
            const float* panel_bias = bias ? bias + i : nullptr;
            float* tile_y = y + i * ldy + v * LANES;
            auto tile_x = x.at(v * LANES);
            if (nv - v >= TILE && rows <= LOW)
                panel_times_tile<LOW, TILE>(panel, weight.columns, tile_x, tile_y, ldy, rows, add, panel_bias);
            else if (nv - v >= TILE)
                panel_times_tile<PANEL, TILE>(panel, weight.columns, tile_x, tile_y, ldy, rows, add, panel_bias);
            else if (nv - v == 2)
                panel_times_tile<PANEL, 2>(panel, weight.columns, tile_x, tile_y, ldy, rows, add, panel_bias);
            else
                panel_times_tile<PANEL, 1>(panel, weight.columns, tile_x, tile_y, ldy, rows, add, panel_bias);
        }
    }
}

// HEIGHT rows of outer_add times NV vectors of its columns; the sums of `rows` of them are added.
template <int HEIGHT, int NV>
inline void outer_tile(
    const float* const* dy, int rows, long n, const float* xt, long ldxt, double* dweight, long ldw, int columns
) {
    vec sum[HEIGHT][NV];
    for (int i = 0; i < HEIGHT; i++)
        for (int v = 0; v < NV; v++) sum[i][v] = vec{};
    for (long p = 0; p < n; p++) {
        vec tile[NV];
        for (int v = 0; v < NV; v++) tile[v] = load(xt + p * ldxt + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) sum[i][v] += dy[i][p] * tile[v];
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < NV; v++) {
            double* to = dweight + i * ldw + v * LANES;
            float lanes[LANES];  // the compiler adds them as vectors
            store(lanes, sum[i][v]);
            for (int l = 0; l < std::min(LANES, columns - v * LANES); l++) to[l] += lanes[l];
        }
}

// forward:  y = weight x                                           (gemm)
// backward: dweight[i][j] += sum over n pixels p of dy[i][p] x[j][p]
//
// dy (rows, n); xt (n, columns) is x transposed, its rows padded to complete vectors; dweight (rows, columns), compact.
// One call sums its pixels in float32 (at most a row or a chunk of them) and adds the sums to `dweight` in double.
inline void outer_add(
    const float* dy, long lddy, int rows, long n, const float* xt, long ldxt, int columns, double* dweight
) {
    const int panels = (rows + PANEL - 1) / PANEL;
    for (int p = 0; p < panels; p++) {
        const int i = rows * p / panels, used = rows * (p + 1) / panels - i;
        const float* row[PANEL];  // an incomplete panel repeats its last row; the sums of the copies are not used
        for (int r = 0; r < PANEL; r++) row[r] = dy + (i + std::min(r, used - 1)) * lddy;
        for (int j = 0; j < columns; j += 2 * LANES) {
            double* to = dweight + (long)i * columns + j;
            if (columns - j <= LANES)
                outer_tile<PANEL, 1>(row, used, n, xt + j, ldxt, to, columns, columns - j);
            else if (used <= LOW)
                outer_tile<LOW, 2>(row, used, n, xt + j, ldxt, to, columns, columns - j);
            else
                outer_tile<PANEL, 2>(row, used, n, xt + j, ldxt, to, columns, columns - j);
        }
    }
}

// Transpose LANES rows and columns in registers: rows exchange halves, then quarters, and so on.
inline void transpose_square(const float* x, long ldx, float* xt, long ldxt) {
    vec rows[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) rows[i] = load(x + i * ldx);
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
                vec first = rows[i], second = rows[i + s];
                rows[i] = __builtin_shuffle(first, second, low);
                rows[i + s] = __builtin_shuffle(first, second, high);
            }
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) store(xt + i * ldxt, rows[i]);
}

// xt (n, rows) = the transpose of x (rows, n). With `pad`, the rows of xt are filled with zeros to complete vectors;
// ldxt must have room for that.
inline void transpose(const float* x, long ldx, long rows, long n, float* xt, long ldxt, bool pad = true) {
    const long square_rows = rows / LANES * LANES, square_n = n / LANES * LANES;
    for (long j = 0; j < square_n; j += LANES)
        for (long i = 0; i < square_rows; i += LANES) transpose_square(x + i * ldx + j, ldx, xt + j * ldxt + i, ldxt);
    for (long j = 0; j < n; j++) {
        for (long i = j < square_n ? square_rows : 0; i < rows; i++) xt[j * ldxt + i] = x[i * ldx + j];
        if (pad)
            for (long i = rows; i < vectors(rows) * LANES; i++) xt[j * ldxt + i] = 0.0f;
    }
}

}  // namespace film
