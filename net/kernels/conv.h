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

// The rows of an image with their neighbours, for a 3x3 window; rows outside the image are zeros.
struct WindowRows {
    int channels;
    long height, width;
    Ring rows;
    WindowRows(int channels_, long height_, long width_)
        : channels(channels_), height(height_), width(width_), rows(channels_, width_) {}

    void fill(const float* image, long r) {
        if (r < 0 || r >= height)
            rows[r].zero();
        else
            rows[r].read(image + r * width, height * width, channels);
    }

    // Call row(r) for every row of the band, with rows r - 1, r and r + 1 in the ring.
    template <class Row>
    void run(const float* image, const Band& band, Row row) {
        fill(image, band.first - 1);
        fill(image, band.first);
        for (long r = band.first; r < band.last; r++) {
            fill(image, r + 1);
            row(r);
        }
    }
};

// y[o][r][p] = sum over i and t of W[o][i][t] x[i][r + t / 3 - 1][p + t % 3 - 1], with x = 0 outside the image.
//
// A matrix product: weight (out, in * 9) times the in * 9 shifted rows. Nothing is copied: the rows are pointers into
// the ring.
inline void conv3x3(const ConvShape& s, const float* x, const float* weight, float* y) {
    const long plane = s.plane();
    Packed w(weight, s.out, s.in * 9, s.in * 9);
    auto all = bands(s.batch, s.height);
#pragma omp parallel
    {
        WindowRows window(s.in, s.height, s.width);
        RowBuffer out(s.out, s.width);
        std::vector<const float*> taps(s.in * 9);
#pragma omp for schedule(dynamic)
        for (size_t k = 0; k < all.size(); k++) {
            float* target = y + all[k].image * s.out * plane;
            window.run(x + all[k].image * s.in * plane, all[k], [&](long r) {
                for (int i = 0; i < s.in; i++)
                    for (int t = 0; t < 9; t++) taps[i * 9 + t] = window.rows[r + t / 3 - 1][i] + t % 3 - 1;
                gemm(w, Scattered{taps.data(), 0}, s.width, out[0], out.stride);
                out.write(target + r * s.width, plane, s.out);
            });
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

// forward:  y[o][r][p] = sum over i, t of W[o][i][t] x[i][r + t / 3 - 1][p + t % 3 - 1]
// backward: dW[o][i][t] = sum over r, p of dy[o][r][p] x[i][r + t / 3 - 1][p + t % 3 - 1]
//
// One product of a row of dy with a shifted row of x for each tap; partial sums (9, out, in) per band.
inline void conv3x3_weights(const ConvShape& s, const float* x, const float* dy, float* dweight) {
    const long plane = s.plane(), ld = vectors(s.in) * LANES;
    auto all = bands(s.batch, s.height);
    std::vector<std::vector<double>> parts(all.size(), std::vector<double>((size_t)9 * s.out * s.in));
#pragma omp parallel
    {
        WindowRows window(s.in, s.height, s.width);
        RowBuffer dy_row(s.out, s.width);
        // The rows of the ring, transposed, with a pixel of zeros on either side: tap t starts at pixel t % 3.
        std::vector<floats> transposed(3, floats((s.width + 2) * ld));
#pragma omp for schedule(dynamic)
        for (size_t k = 0; k < all.size(); k++) {
            const float *image = x + all[k].image * s.in * plane, *dy_image = dy + all[k].image * s.out * plane;
            auto transpose_row = [&](long r) {
                transpose(window.rows[r][0], window.rows[r].stride, s.in, s.width, &transposed[(r + 3) % 3][ld], ld);
            };
            window.fill(image, all[k].first - 1);
            window.fill(image, all[k].first);
            transpose_row(all[k].first - 1);
            transpose_row(all[k].first);
            for (long r = all[k].first; r < all[k].last; r++) {
                window.fill(image, r + 1);
                transpose_row(r + 1);
                dy_row.read(dy_image + r * s.width, plane, s.out);
                for (int t = 0; t < 9; t++)
                    outer_add(
                        dy_row[0], dy_row.stride, s.out, s.width, &transposed[(r + t / 3 + 2) % 3][t % 3 * ld], ld, s.in,
                        &parts[k][(size_t)t * s.out * s.in]
                    );
            }
        }
    }
    for (size_t k = 1; k < all.size(); k++) add_to(parts[0], parts[k]);
    for (int t = 0; t < 9; t++)
        for (int i = 0; i < s.out * s.in; i++) dweight[i * 9 + t] = (float)parts[0][(size_t)t * s.out * s.in + i];
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
