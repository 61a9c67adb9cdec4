// Dense convolutions (1x1, and 3x3 with zero padding 1) and PReLU, forward and backward.
#pragma once
# include "rows.h"

namespace film {

struct ConvShape {
    int in, out;  // channels
    long batch, height, width;
    long plane() const { return height * width; }
};

// Pixels of a plane that are processed at a time where rows do not matter: a few KB a channel, and a multiple of TILE
// vectors.
constexpr long PIXEL_CHUNK = 576;

// Call body(b, first pixel, count) for every chunk of every image, inside a parallel region. The schedule is static, so
// a thread always gets the same chunks and its partial sums are reproducible.
template <class Body>
inline void for_chunks(long batch, long plane, Body body) {
    const long per_image = (plane + PIXEL_CHUNK - 1) / PIXEL_CHUNK;
#pragma omp for schedule(static)
    for (long i = 0; i < batch * per_image; i++) {
        long first = i % per_image * PIXEL_CHUNK;
        body(i / per_image, first, std::min(PIXEL_CHUNK, plane - first));
    }
}

// Copy a chunk of every channel into a buffer, with zeros to the end of the last vector.
inline void read_chunk(RowBuffer& buffer, const float* from, long plane, int channels, long count) {
    for (int i = 0; i < channels; i++) {
        std::memcpy(buffer[i], from + i * plane, count * sizeof(float));
        std::fill(buffer[i] + count, buffer[i] + vectors(count) * LANES, 0.0f);
    }
}

// y = W x + bias for every pixel; weight (out, in), bias (out) or null.
//
// The same function is the backward pass of x:
// forward:  y[o] = sum over i of W[o][i] x[i] + bias[o]
// backward: dx[i] = sum over o of W[o][i] dy[o], that is dx = W^T dy
// so it is called with dy for x, with `in` and `out` exchanged, without a bias, and `transposed`: the weight, which is
// then (in, out), is used transposed.
inline void pointwise_conv(
    const ConvShape& s, const float* x, const float* weight, const float* bias, float* y, bool transposed = false
) {
    const long plane = s.plane();
    Packed w(weight, s.out, s.in, transposed ? s.out : s.in, transposed);
#pragma omp parallel
    {
        RowBuffer in(s.in, PIXEL_CHUNK), out(s.out, PIXEL_CHUNK);
        for_chunks(s.batch, plane, [&](long b, long first, long count) {
            read_chunk(in, x + b * s.in * plane + first, plane, s.in, count);
            gemm(w, in.matrix(), count, out[0], out.stride, false, bias);
            for (int o = 0; o < s.out; o++) write_out(y + (b * s.out + o) * plane + first, out[o], count);
        });
    }
}

// forward:  y[o] = sum over i of W[o][i] x[i] + bias[o], for every pixel
// backward: dW[o][i] = sum over pixels of dy[o] x[i],  dbias[o] = sum over pixels of dy[o]
//
// dweight (out, in), dbias (out) or null.
inline void pointwise_conv_weights(const ConvShape& s, const float* x, const float* dy, float* dweight, float* dbias) {
    const long plane = s.plane(), ld = vectors(s.in) * LANES;
    const int threads = omp_get_max_threads();
    std::vector<std::vector<double>> dw(threads, std::vector<double>(s.out * s.in));
    std::vector<std::vector<double>> db(threads, std::vector<double>(s.out));
#pragma omp parallel
    {
        floats transposed(PIXEL_CHUNK * ld);
        RowBuffer dy_chunk(s.out, PIXEL_CHUNK);
        auto &w = dw[omp_get_thread_num()], &bias = db[omp_get_thread_num()];
        for_chunks(s.batch, plane, [&](long b, long first, long count) {
            transpose(x + b * s.in * plane + first, plane, s.in, count, transposed.data(), ld);
            read_chunk(dy_chunk, dy + b * s.out * plane + first, plane, s.out, count);
            outer_add(dy_chunk[0], dy_chunk.stride, s.out, count, transposed.data(), ld, s.in, w.data());
            if (!dbias) return;
            for (int o = 0; o < s.out; o++) {
                vec sum{};
                for (long v = 0; v < vectors(count); v++) sum += load(dy_chunk[o] + v * LANES);
                bias[o] += sum_lanes(sum);
            }
        });
    }
    for (int thread = 1; thread < threads; thread++) {
        add_to(dw[0], dw[thread]);
        add_to(db[0], db[thread]);
    }
    write(dw[0], dweight);
    if (dbias) write(db[0], dbias);
}

// The 3x3 convolutions compute two rows of y, r and r + 1, from four rows of x, d[0] = x[r - 1] to d[3] = x[r + 2].
// With g[0], g[1] and g[2] for the rows of a window, and every product summed over input channels and columns of the
// window,
//
//     y[r] = g[0] d[0] + g[1] d[1] + g[2] d[2]           y[r + 1] = g[0] d[1] + g[1] d[2] + g[2] d[3]
//
// Winograd's F(2, 3) needs four products instead of these six (Lavin and Gray, "Fast algorithms for convolutional
// neural networks", 2016; here t[3] and its product have the other sign):
//
//     t[0] = d[0] - d[2]    t[1] = d[1] + d[2]                  t[2] = d[2] - d[1]                  t[3] = d[3] - d[1]
//     u[0] = g[0]           u[1] = (g[0] + g[1] + g[2]) / 2     u[2] = (g[0] - g[1] + g[2]) / 2     u[3] = g[2]
//     y[r] = u[0] t[0] + u[1] t[1] + u[2] t[2]                  y[r + 1] = u[1] t[1] - u[2] t[2] + u[3] t[3]

// u[m] = sum over k of WINOGRAD[m][k] g[k]
constexpr double WINOGRAD[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};

// The rows t for two rows of y, in all channels of an image. Rows outside the image are zeros.
struct WinogradRows {
    int channels;
    long height, width;
    floats zeros;
    std::vector<RowBuffer> t;
    WinogradRows(int channels_, long height_, long width_)
        : channels(channels_), height(height_), width(width_), zeros(width_) {
        for (int m = 0; m < 4; m++) t.emplace_back(channels, width);
    }

    void fill(const float* image, long r) {
        for (int i = 0; i < channels; i++) {
            const float* d[4];
            for (long k = 0; k < 4; k++) {
                const long row = r - 1 + k;
                d[k] = row < 0 || row >= height ? zeros.data() : image + (i * height + row) * width;
            }
            float *t0 = t[0][i], *t1 = t[1][i], *t2 = t[2][i], *t3 = t[3][i];
#pragma omp simd
            for (long p = 0; p < width; p++) {
                t0[p] = d[0][p] - d[2][p];
                t1[p] = d[1][p] + d[2][p];
                t2[p] = d[2][p] - d[1][p];
                t3[p] = d[3][p] - d[1][p];
            }
        }
    }
};

// sum = a + b and difference = a - b for a row in all channels. They may be a and b themselves.
inline void add_and_subtract(RowBuffer& a, RowBuffer& b, int channels, RowBuffer& sum, RowBuffer& difference) {
    for (int i = 0; i < channels; i++)
        for (long p = 0; p < a.nv * LANES; p += LANES) {
            const vec first = load(a[i] + p), second = load(b[i] + p);
            store(sum[i] + p, first + second);
            store(difference[i] + p, first - second);
        }
}

// y[o][r][p] = sum over i and t of W[o][i][t] x[i][r + t / 3 - 1][p + t % 3 - 1], with x = 0 outside the image.
//
// Each product of F(2, 3) is one of matrices: u[m] (out, in * 3) times the in * 3 shifted rows of t[m]. The shifted
// rows are not copied: they are pointers into t[m].
inline void conv3x3(const ConvShape& s, const float* x, const float* weight, float* y) {
    const long plane = s.plane();
    Packed u[4];
    floats matrix(s.out * s.in * 3);
    for (int m = 0; m < 4; m++) {
        for (int i = 0; i < s.out * s.in; i++)
            for (int j = 0; j < 3; j++) {
                double sum = 0;
                for (int k = 0; k < 3; k++) sum += WINOGRAD[m][k] * weight[i * 9 + k * 3 + j];
                matrix[i * 3 + j] = (float)sum;
            }
        u[m].pack(matrix.data(), s.out, s.in * 3, s.in * 3);
    }
    auto all = bands(s.batch, (s.height + 1) / 2);  // of pairs of rows
#pragma omp parallel
    {
        WinogradRows rows(s.in, s.height, s.width);
        RowBuffer first(s.out, s.width), second(s.out, s.width);
        std::vector<const float*> taps[4];
        for (int m = 0; m < 4; m++)
            for (int i = 0; i < s.in; i++)
                for (int j = 0; j < 3; j++) taps[m].push_back(rows.t[m][i] + j - 1);
        auto product = [&](int m, RowBuffer& to, bool add) {
            gemm(u[m], Scattered{taps[m].data(), 0}, s.width, to[0], to.stride, add);
        };
#pragma omp for schedule(dynamic)
        for (size_t k = 0; k < all.size(); k++) {
            float* target = y + all[k].image * s.out * plane;
            for (long r = 2 * all[k].first; r < 2 * all[k].last; r += 2) {
                rows.fill(x + all[k].image * s.in * plane, r);
                product(1, first, false);
                product(2, second, false);
                add_and_subtract(first, second, s.out, first, second);
                product(0, first, true);
                product(3, second, true);
                first.write(target + r * s.width, plane, s.out);
                if (r + 1 < s.height) second.write(target + (r + 1) * s.width, plane, s.out);
            }
        }
    }
}

// forward:  y[o][r][p] = sum over i, t of W[o][i][t] x[i][r + t / 3 - 1][p + t % 3 - 1]
// backward: dx[i][r][p] = sum over o, t of W[o][i][t] dy[o][r - t / 3 + 1][p - t % 3 + 1]
//                       = sum over o, t of W[o][i][8 - t] dy[o][r + t / 3 - 1][p + t % 3 - 1]
//
// This is the forward convolution of dy, from `out` to `in` channels, with the windows flipped (rotated by 180
// degrees).
inline void conv3x3_input(const ConvShape& s, const float* dy, const float* weight, float* dx) {
    floats flipped(s.in * s.out * 9);  // (in, out, 9)
    for (int o = 0; o < s.out; o++)
        for (int i = 0; i < s.in; i++)
            for (int t = 0; t < 9; t++) flipped[(i * s.out + o) * 9 + 8 - t] = weight[(o * s.in + i) * 9 + t];
    conv3x3({s.out, s.in, s.batch, s.height, s.width}, dy, flipped.data(), dx);
}

// Pixels of a row that conv3x3_weights sums in float32, before it adds them in double. The terms of F(2, 3) are larger
// than those of the six products; with half a row of 384 pixels, the result is as exact.
constexpr long GRAD_CHUNK = 192;

// forward:  y[o][r][p] = sum over i, t of W[o][i][t] x[i][r + t / 3 - 1][p + t % 3 - 1]
// backward: dW[o][i][t] = sum over r, p of dy[o][r][p] x[i][r + t / 3 - 1][p + t % 3 - 1]
//
// With e and f for rows r and r + 1 of dy, and the names above, these two rows add e d[k] + f d[k + 1] to dg[k]. That
// is six products; the transpose of F(2, 3) needs four (derivations.md):
//
//     du[0] = e t[0]    du[1] = (e + f) t[1]    du[2] = (e - f) t[2]    du[3] = f t[3]
//     dg[k] = sum over m of WINOGRAD[m][k] du[m]
//
// Each product is one of a row with a shifted row for each column of the window. du is summed over the rows of a band:
// (4, 3, out, in).
inline void conv3x3_weights(const ConvShape& s, const float* x, const float* dy, float* dweight) {
    const long plane = s.plane(), ld = vectors(s.in) * LANES, matrix = s.out * s.in;
    auto all = bands(s.batch, (s.height + 1) / 2);  // of pairs of rows
    std::vector<std::vector<double>> parts(all.size(), std::vector<double>(12 * matrix));
#pragma omp parallel
    {
        WinogradRows rows(s.in, s.height, s.width);
        std::vector<RowBuffer> left;  // of each product
        for (int m = 0; m < 4; m++) left.emplace_back(s.out, s.width);
        RowBuffer &e = left[0], &f = left[3];
        // A row of t, transposed, with a pixel of zeros on either side: column j of the window starts at pixel j.
        floats transposed((s.width + 2) * ld);
        // Inlined next to `transpose`, GCC 12 keeps one of the sums in memory, and all take 1.5 times as long.
        auto product = [&](int m, int j, long p, double* du) __attribute__((noinline)) {
            const long count = std::min(GRAD_CHUNK, s.width - p);
            outer_add(left[m][0] + p, left[m].stride, s.out, count, &transposed[(p + j) * ld], ld, s.in, du);
        };
#pragma omp for schedule(dynamic)
        for (size_t k = 0; k < all.size(); k++)
            for (long r = 2 * all[k].first; r < 2 * all[k].last; r += 2) {
                const float* dy_rows = dy + all[k].image * s.out * plane + r * s.width;
                rows.fill(x + all[k].image * s.in * plane, r);
                e.read(dy_rows, plane, s.out);
                if (r + 1 < s.height)
                    f.read(dy_rows + s.width, plane, s.out);
                else
                    f.zero();
                add_and_subtract(e, f, s.out, left[1], left[2]);
                for (int m = 0; m < 4; m++) {
                    transpose(rows.t[m][0], rows.t[m].stride, s.in, s.width, &transposed[ld], ld);
                    for (long p = 0; p < s.width; p += GRAD_CHUNK)
                        for (int j = 0; j < 3; j++) product(m, j, p, &parts[k][(m * 3 + j) * matrix]);
                }
            }
    }
    for (size_t k = 1; k < all.size(); k++) add_to(parts[0], parts[k]);
    for (long i = 0; i < matrix; i++)
        for (int t = 0; t < 9; t++) {
            double sum = 0;
            for (int m = 0; m < 4; m++) sum += WINOGRAD[m][t / 3] * parts[0][(m * 3 + t % 3) * matrix + i];
            dweight[i * 9 + t] = (float)sum;
        }
}

// y = x where x > 0, else slope * x
inline void prelu(const float* x, float slope, long n, float* y) {
#pragma omp parallel for simd schedule(static)
    for (long p = 0; p < n; p++) y[p] = x[p] > 0.0f ? x[p] : slope * x[p];
}

// forward:  y = x where x > 0, else slope * x
// backward: dx = dy where x > 0, else slope * dy;  dslope = sum of x dy where x <= 0
//
// dslope sums millions of terms of either sign: a chunk in float32, the chunks in double.
inline void prelu_backward(const float* x, float slope, const float* dy, long n, float* dx, float* dslope) {
    const int threads = omp_get_max_threads();
    std::vector<double> parts(threads);
    const long chunks = (n + PIXEL_CHUNK - 1) / PIXEL_CHUNK;
#pragma omp parallel
    {
        double total = 0;
#pragma omp for schedule(static)
        for (long k = 0; k < chunks; k++) {
            float sum = 0;
            const long end = std::min(n, (k + 1) * PIXEL_CHUNK);
            for (long p = k * PIXEL_CHUNK; p < end; p++) {
                bool positive = x[p] > 0.0f;
                dx[p] = positive ? dy[p] : slope * dy[p];
                sum += positive ? 0.0f : x[p] * dy[p];
            }
            total += sum;
        }
        parts[omp_get_thread_num()] = total;
    }
    double total = 0;
    for (double part : parts) total += part;
    *dslope = (float)total;
}

}  // namespace film
