// The pipeline both halves of a transformer block share: layer norm, 1x1 expansion, 3x3 depthwise convolution, row by
// row. Three rows of the expanded image are alive at a time, so they stay in the cache and never reach memory.
#pragma once
#include <omp.h>

# include "gemm.h"

namespace film {

// Image rows in a buffer: LANES zeros, the row, zeros up to `stride`. Vectors may be read one pixel to either side and
// to the end of the last vector. The stride is an odd number of vectors: no two channels fight for one cache set.
struct RowBuffer {
    long width, nv, stride;
    floats data;

    RowBuffer(int channels, long w) : width(w), nv(vectors(w)) {
        stride = ((nv + 2) | 1) * LANES;
        data.assign(channels * stride + LANES, 0.0f);
    }
    float* operator[](long c) { return data.data() + c * stride + LANES; }
    Strided matrix() { return {(*this)[0], stride}; }
    void zero() { std::fill(data.begin(), data.end(), 0.0f); }
    // Copy one row of an image (channels planes apart); what lies behind the row stays zero.
    void read(const float* image, long plane, int channels) {
        for (int c = 0; c < channels; c++) std::memcpy((*this)[c], image + c * plane, width * sizeof(float));
    }
    void write(float* image, long plane, int channels) {
        for (int c = 0; c < channels; c++) std::memcpy(image + c * plane, (*this)[c], width * sizeof(float));
    }
    void clear_tail(int channel) {
        float* p = (*this)[channel];
        for (long i = width; i < nv * LANES; i++) p[i] = 0.0f;
    }
};

struct Mean {
    vec mu, scale;  // scale = 1 / sqrt(var + 1e-5)
};

inline Mean channel_mean(RowBuffer& x, int channels, long v) {
    vec sum{}, squares{};
    for (int c = 0; c < channels; c++) sum += load(x[c] + v * LANES);
    vec mu = sum * (1.0f / channels);
    for (int c = 0; c < channels; c++) {
        vec d = load(x[c] + v * LANES) - mu;
        squares += d * d;
    }
    vec var = squares * (1.0f / channels) + 1e-5f, scale;
    for (int l = 0; l < LANES; l++) scale[l] = 1.0f / std::sqrt(var[l]);
    return {mu, scale};
}

// y = layer norm of the row x over its channels; pads of y become zero again.
inline void norm_row(RowBuffer& x, int channels, const float* weight, const float* bias, RowBuffer& y) {
    for (long v = 0; v < x.nv; v++) {
        Mean m = channel_mean(x, channels, v);
        for (int c = 0; c < channels; c++)
            store(y[c] + v * LANES, (load(x[c] + v * LANES) - m.mu) * m.scale * weight[c] + bias[c]);
    }
    for (int c = 0; c < channels; c++) y.clear_tail(c);
}

// A 3x3 cross-correlation over one channel, from the rows above, at and below. Pointers and weights are copies, so that
// the compiler may keep them in registers while results are stored.
struct Window {
    const float *up, *mid, *down;
    float w0, w1, w2, w3, w4, w5, w6, w7, w8;

    vec at(long v) const {
        const float *a = up + v * LANES, *b = mid + v * LANES, *c = down + v * LANES;
        vec s = w0 * load(a - 1) + w1 * load(a) + w2 * load(a + 1);
        s += w3 * load(b - 1) + w4 * load(b) + w5 * load(b + 1);
        return s + (w6 * load(c - 1) + w7 * load(c) + w8 * load(c + 1));
    }
};

struct Triple {  // three consecutive rows
    RowBuffer *up, *mid, *down;

    Window window(int c, const float* w) const {
        return {(*up)[c], (*mid)[c], (*down)[c], w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]};
    }
    // to = the cross-correlation of channel c along the row
    void correlate(int c, const float* w, float* to) const {
        const Window taps = window(c, w);
        const long nv = mid->nv;
        for (long v = 0; v < nv; v++) store(to + v * LANES, taps.at(v));
    }
};

struct Ring {  // the last three rows of an image that flows by
    std::vector<RowBuffer> rows;
    Ring(int channels, long width) : rows(3, RowBuffer(channels, width)) {}
    RowBuffer& operator[](long r) { return rows[(r + 3) % 3]; }
    Triple around(long r) { return {&(*this)[r - 1], &(*this)[r], &(*this)[r + 1]}; }
};

// Rows of an image (channels planes apart), read when asked for.
struct ImageRows {
    const float* image;
    long plane;
    int channels;
    RowBuffer row;
    ImageRows(int c, long height, long width) : image(nullptr), plane(height * width), channels(c), row(c, width) {}

    RowBuffer& operator()(long r) {
        row.read(image + r * row.width, plane, channels);
        return row;
    }
};

struct Expansion {  // layer norm, 1x1 convolution c -> e, 3x3 depthwise convolution
    int c, e;
    const float *norm_weight, *norm_bias, *expand, *depthwise;
};

// Rows that one thread computes by itself.
struct Band {
    long image, first, last;
};

inline std::vector<Band> bands(long batch, long height) {
    long threads = omp_get_max_threads();
    long per_image = std::min(height, batch % threads == 0 ? 1 : threads);
    std::vector<Band> all;
    for (long b = 0; b < batch; b++)
        for (long i = 0; i < per_image; i++)
            all.push_back({b, height * i / per_image, height * (i + 1) / per_image});
    return all;
}

struct ForwardRows {
    const Expansion& layer;
    long height, width, plane;
    Packed expand;
    RowBuffer y;
    Ring h;

    ForwardRows(const Expansion& l, long height_, long width_)
        : layer(l), height(height_), width(width_), plane(height_ * width_), expand(l.expand, l.e, l.c, l.c),
          y(l.c, width_), h(l.e, width_) {}

    // norm = row r of the input, normalised; its expansion joins the ring. input(r) gives the row.
    template <class Input>
    void fill(Input& input, long r, RowBuffer& norm) {
        if (r < 0 || r >= height) {
            norm.zero();
            h[r].zero();
            return;
        }
        norm_row(input(r), layer.c, layer.norm_weight, layer.norm_bias, norm);
        gemm(expand, norm.matrix(), width, h[r][0], h[r].stride);
    }

    // Call row(r, triple of expanded rows around r) for every row of the band.
    template <class Input, class Row>
    void run(Input& input, const Band& band, Row row) {
        fill(input, band.first - 1, y);
        fill(input, band.first, y);
        for (long r = band.first; r < band.last; r++) {
            fill(input, r + 1, y);
            row(r, h.around(r));
        }
    }
};

// Gradients of an Expansion's weights, in double.
inline void add_to(std::vector<double>& total, const std::vector<double>& part) {
    for (size_t i = 0; i < total.size(); i++) total[i] += part[i];
}

inline void write(const std::vector<double>& values, float* out) {
    for (size_t i = 0; i < values.size(); i++) out[i] = (float)values[i];
}

struct ExpansionGrad {
    std::vector<double> norm_weight, norm_bias, expand, depthwise;
    explicit ExpansionGrad(const Expansion& l)
        : norm_weight(l.c), norm_bias(l.c), expand((size_t)l.e * l.c), depthwise((size_t)l.e * 9) {}

    void add(const ExpansionGrad& o) {
        add_to(norm_weight, o.norm_weight);
        add_to(norm_bias, o.norm_bias);
        add_to(expand, o.expand);
        add_to(depthwise, o.depthwise);
    }

    // `out` has a pointer of each name.
    template <class Pointers>
    void write_to(const Pointers& out) const {
        write(norm_weight, out.norm_weight);
        write(norm_bias, out.norm_bias);
        write(expand, out.expand);
        write(depthwise, out.depthwise);
    }
};

// Add one row's part of a window's gradient, sum over the row of d times the shifted input; returns the sum of d, whose
// tail is zero.
inline float depthwise_row_grad(const Triple& x, int channel, const float* d, long nv, double* dweight) {
    const float* rows[3] = {(*x.up)[channel], (*x.mid)[channel], (*x.down)[channel]};
    vec s[9] = {}, all{};
    for (long v = 0; v < nv; v++) {
        vec g = load(d + v * LANES);
        all += g;
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 3; j++) s[i * 3 + j] += g * load(rows[i] + v * LANES + j - 1);
    }
    for (int t = 0; t < 9; t++) dweight[t] += sum_lanes(s[t]);
    return sum_lanes(all);
}

struct BackwardRows {
    ForwardRows forward;
    const Expansion& layer;
    Packed contract;  // expand, transposed
    floats flipped, transposed;
    Ring y, dz;
    RowBuffer dh, dy;
    long ld;
    ExpansionGrad grad;

    BackwardRows(const Expansion& l, long height, long width)
        : forward(l, height, width), layer(l), contract(l.expand, l.c, l.e, l.c, true), flipped((size_t)l.e * 9),
          y(l.c, width), dz(l.e, width), dh(l.e, width), dy(l.c, width), ld(vectors(l.c) * LANES), grad(l) {
        transposed.resize(width * ld);
        for (int c = 0; c < l.e; c++)
            for (int t = 0; t < 9; t++) flipped[c * 9 + t] = l.depthwise[c * 9 + 8 - t];
    }

    // Backward of a band. row(r, triple, dz) writes the gradient behind the depthwise convolution at row r, zero in the
    // tail; it is called for one row beyond the band on either side too, `inside` false, and then must not count
    // into its own weights. input(r) gives row r of the input; dx must hold what else flows into it, the pipeline's part
    // is added.
    template <class Input, class Row>
    void run(Input& input, const Band& band, float* dx, Row row) {
        long r0 = band.first, r1 = band.last;
        forward.fill(input, r0 - 2, y[r0 - 2]);
        forward.fill(input, r0 - 1, y[r0 - 1]);
        for (long r = r0 - 1; r <= r1; r++) {
            // y[r - 2], overwritten by y[r + 1], has been used by then; so has h[r - 2].
            forward.fill(input, r + 1, y[r + 1]);
            bool inside = r >= r0 && r < r1;
            if (r < 0 || r >= forward.height)
                dz[r].zero();
            else
                row(r, forward.h.around(r), dz[r], inside);
            if (inside) depthwise_grad(forward.h.around(r), dz[r]);
            if (r - 1 >= r0) contract_row(input, r - 1, dx);
        }
    }

    void depthwise_grad(const Triple& h, RowBuffer& d) {
        for (int c = 0; c < layer.e; c++) depthwise_row_grad(h, c, d[c], d.nv, &grad.depthwise[c * 9]);
    }

    template <class Input>
    void contract_row(Input& input, long r, float* dx) {
        Triple d = dz.around(r);
        for (int c = 0; c < layer.e; c++) {
            d.correlate(c, &flipped[c * 9], dh[c]);
            dh.clear_tail(c);
        }
        transpose(y[r][0], y[r].stride, layer.c, forward.width, transposed.data(), ld);
        outer_add(dh[0], dh.stride, layer.e, forward.width, transposed.data(), ld, layer.c, grad.expand.data());
        gemm(contract, dh.matrix(), forward.width, dy[0], dy.stride);
        norm_grad(input(r), dx + r * forward.width);
    }

    void norm_grad(RowBuffer& x, float* dx) {
        int n = layer.c;
        std::vector<vec, AlignedAllocator<vec>> dw(n, vec{}), db(n, vec{});
        for (long v = 0; v < x.nv; v++) {
            Mean m = channel_mean(x, n, v);
            vec mean{}, mean_hat{};
            for (int c = 0; c < n; c++) {
                vec hat = (load(x[c] + v * LANES) - m.mu) * m.scale, d = load(dy[c] + v * LANES);
                dw[c] += d * hat;
                db[c] += d;
                mean += d * layer.norm_weight[c];
                mean_hat += d * layer.norm_weight[c] * hat;
            }
            mean *= 1.0f / n;
            mean_hat *= 1.0f / n;
            for (int c = 0; c < n; c++) {
                vec hat = (load(x[c] + v * LANES) - m.mu) * m.scale, d = load(dy[c] + v * LANES);
                store(dy[c] + v * LANES, m.scale * (d * layer.norm_weight[c] - mean - hat * mean_hat));
            }
        }
        for (int c = 0; c < n; c++) {
            grad.norm_weight[c] += sum_lanes(dw[c]);
            grad.norm_bias[c] += sum_lanes(db[c]);
            float *out = dx + c * forward.plane, *d = dy[c];
            for (long i = 0; i < forward.width; i++) out[i] += d[i];
        }
    }
};

}  // namespace film
