// Dense convolutions (1x1 and 3x3, zero padding), forward and backward, and PReLU.
#pragma once
# include "rows.h"

namespace film {

struct ConvShape {
    int in, out;
    long batch, height, width;
    long plane() const { return height * width; }
};

// Pixels of a plane that a 1x1 convolution takes at a time, whatever the image's width: a few KB a channel,
// and a whole number of tiles.
constexpr long CHUNK = 576;

// Call body(image, first pixel, count) for chunks of all planes, spread over the threads in a fixed way, so that
// partial sums per thread are the same every time.
template <class Body>
inline void for_chunks(long batch, long plane, Body body) {
    const long per_image = (plane + CHUNK - 1) / CHUNK;
#pragma omp for schedule(static)
    for (long i = 0; i < batch * per_image; i++) {
        long first = i % per_image * CHUNK;
        body(i / per_image, first, std::min(CHUNK, plane - first));
    }
}

inline void read_chunk(RowBuffer& buffer, const float* from, long plane, int channels, long count) {
    for (int c = 0; c < channels; c++) {
        std::memcpy(buffer[c], from + c * plane, count * sizeof(float));
        std::fill(buffer[c] + count, buffer[c] + vectors(count) * LANES, 0.0f);
    }
}

// y = W x + bias, weight (out, in); with `transposed` the weight is (in, out), as in the backward pass.
inline void pointwise_conv(
    const ConvShape& s, const float* x, const float* weight, const float* bias, float* y, bool transposed = false
) {
    const long plane = s.plane();
    Packed w(weight, s.out, s.in, transposed ? s.out : s.in, transposed);
#pragma omp parallel
    {
        RowBuffer in(s.in, CHUNK), out(s.out, CHUNK);
        for_chunks(s.batch, plane, [&](long b, long first, long count) {
            read_chunk(in, x + b * s.in * plane + first, plane, s.in, count);
            gemm(w, in.matrix(), count, out[0], out.stride, false, bias);
            for (int o = 0; o < s.out; o++)
                std::memcpy(y + (b * s.out + o) * plane + first, out[o], count * sizeof(float));
        });
    }
}

// dW (out, in) = sum dout x^T and dbias (out) = sum dout; dbias may be null.
inline void pointwise_conv_weights(const ConvShape& s, const float* x, const float* dout, float* dweight, float* dbias) {
    const long plane = s.plane(), ld = vectors(s.in) * LANES;
    const int threads = omp_get_max_threads();
    std::vector<std::vector<double>> dw(threads, std::vector<double>(s.out * s.in)), db(threads, std::vector<double>(s.out));
#pragma omp parallel
    {
        floats transposed(CHUNK * ld);
        RowBuffer d(s.out, CHUNK);
        auto &w = dw[omp_get_thread_num()], &bias = db[omp_get_thread_num()];
        for_chunks(s.batch, plane, [&](long b, long first, long count) {
            transpose(x + b * s.in * plane + first, plane, s.in, count, transposed.data(), ld);
            read_chunk(d, dout + b * s.out * plane + first, plane, s.out, count);
            outer_add(d[0], d.stride, s.out, count, transposed.data(), ld, s.in, w.data());
            if (!dbias) return;
            for (int o = 0; o < s.out; o++) {
                vec sum{};
                for (long v = 0; v < vectors(count); v++) sum += load(d[o] + v * LANES);
                bias[o] += sum_lanes(sum);
            }
        });
    }
    for (int t = 1; t < threads; t++) {
        add_to(dw[0], dw[t]);
        add_to(db[0], db[t]);
    }
    write(dw[0], dweight);
    if (dbias) write(db[0], dbias);
}

// Rows of an image with their neighbours: what a 3x3 window slides over.
struct WindowRows {
    int channels;
    long height, width;
    Ring rows;
    WindowRows(int c, long h, long w) : channels(c), height(h), width(w), rows(c, w) {}

    void fill(const float* image, long r) {
        if (r < 0 || r >= height)
            rows[r].zero();
        else
            rows[r].read(image + r * width, height * width, channels);
    }

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

// y = W * x, weight (out, in, 3, 3), zero padding 1: a matrix product over the in * 9 shifted rows of the window.
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
        for (size_t i = 0; i < all.size(); i++) {
            float* target = y + all[i].image * s.out * plane;
            window.run(x + all[i].image * s.in * plane, all[i], [&](long r) {
                for (int c = 0; c < s.in; c++)
                    for (int t = 0; t < 9; t++) taps[c * 9 + t] = window.rows[r + t / 3 - 1][c] + t % 3 - 1;
                gemm(w, Scattered{taps.data(), 0}, s.width, out[0], out.stride);
                out.write(target + r * s.width, plane, s.out);
            });
        }
    }
}

// dx = the same convolution with the window turned round and its channels exchanged.
inline void conv3x3_input(const ConvShape& s, const float* dout, const float* weight, float* dx) {
    floats turned(s.in * s.out * 9);
    for (int o = 0; o < s.out; o++)
        for (int c = 0; c < s.in; c++)
            for (int t = 0; t < 9; t++) turned[(c * s.out + o) * 9 + 8 - t] = weight[(o * s.in + c) * 9 + t];
    conv3x3({s.out, s.in, s.batch, s.height, s.width}, dout, turned.data(), dx);
}

// dW (out, in, 3, 3): one product of dout with the shifted input for each tap.
inline void conv3x3_weights(const ConvShape& s, const float* x, const float* dout, float* dweight) {
    const long plane = s.plane(), ld = vectors(s.in) * LANES;
    auto all = bands(s.batch, s.height);
    std::vector<std::vector<double>> parts(all.size(), std::vector<double>((size_t)9 * s.out * s.in));
#pragma omp parallel
    {
        WindowRows window(s.in, s.height, s.width);
        // A row, transposed, with one pixel of zeros to either side.
        std::vector<floats> turned(3, floats((s.width + 2) * ld));
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < all.size(); i++) {
            const float *image = x + all[i].image * s.in * plane, *d = dout + all[i].image * s.out * plane;
            auto turn = [&](long r) {
                transpose(window.rows[r][0], window.rows[r].stride, s.in, s.width, &turned[(r + 3) % 3][ld], ld);
            };
            window.fill(image, all[i].first - 1);
            window.fill(image, all[i].first);
            turn(all[i].first - 1);
            turn(all[i].first);
            for (long r = all[i].first; r < all[i].last; r++) {
                window.fill(image, r + 1);
                turn(r + 1);
                for (int t = 0; t < 9; t++)
                    outer_add(
                        d + r * s.width, plane, s.out, s.width, &turned[(r + t / 3 + 2) % 3][t % 3 * ld], ld, s.in,
                        &parts[i][(size_t)t * s.out * s.in]
                    );
            }
        }
    }
    for (size_t i = 1; i < all.size(); i++) add_to(parts[0], parts[i]);
    for (int t = 0; t < 9; t++)
        for (int k = 0; k < s.out * s.in; k++) dweight[k * 9 + t] = (float)parts[0][(size_t)t * s.out * s.in + k];
}

inline void prelu(const float* x, float slope, long n, float* y) {
#pragma omp parallel for simd schedule(static)
    for (long i = 0; i < n; i++) y[i] = x[i] > 0.0f ? x[i] : slope * x[i];
}

// The slope's gradient sums millions of terms of either sign: in double, a chunk at a time.
inline void prelu_backward(const float* x, float slope, const float* dout, long n, float* dx, float* dslope) {
    const int threads = omp_get_max_threads();
    std::vector<double> parts(threads);
    const long chunks = (n + CHUNK - 1) / CHUNK;
#pragma omp parallel
    {
        double total = 0;
#pragma omp for schedule(static)
        for (long k = 0; k < chunks; k++) {
            float sum = 0;
            const long end = std::min(n, (k + 1) * CHUNK);
            for (long i = k * CHUNK; i < end; i++) {
                bool positive = x[i] > 0.0f;
                dx[i] = positive ? dout[i] : slope * dout[i];
                sum += positive ? 0.0f : x[i] * dout[i];
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
