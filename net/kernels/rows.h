// The row pipeline that both halves of a transformer block share: layer norm over channels, 1x1 expansion, 3x3
// depthwise convolution. An image flows through it two rows at a time; four expanded rows exist, so they stay in the
// cache and are never written to memory. README.md has a drawing.
//
//     x -> normed -> expanded -> z        normed = layer norm(x), expanded = W normed, z = depthwise(expanded)
#pragma once
#include <omp.h>

# include "constants.h"
# include "gemm.h"

namespace film {

// One image row of every channel, each as LANES zeros, the row's `width` pixels, and zeros up to `stride`. So vectors
// may be read one pixel to the left and right of the row and to the end of its last vector. The stride is an odd number
// of vectors, so that the channels of a pixel lie in different sets of the cache. The pixels are not set at first.
struct RowBuffer {
    long width, nv, stride, size;  // nv: vectors that hold a row; size: of all channels
    unset_floats data;

    RowBuffer(int channels, long width_)
        : width(width_), nv(vectors(width_)), stride(((nv + 2) | 1) * LANES), size(channels * stride + LANES),
          data(size) {
        std::fill(data.data, data.data + LANES, 0.0f);
        for (int i = 0; i < channels; i++) std::fill((*this)[i] + width, (*this)[i] + stride, 0.0f);
    }
    float* operator[](long channel) { return data.data + channel * stride + LANES; }
    Strided matrix() { return {(*this)[0], stride}; }
    void zero() { std::fill(data.data, data.data + size, 0.0f); }
    // Copy a row from or to an image, whose channels are `plane` floats apart. read leaves the tail as it is.
    void read(const float* image, long plane, int channels) {
        for (int i = 0; i < channels; i++) std::memcpy((*this)[i], image + i * plane, width * sizeof(float));
    }
    void write(float* image, long plane, int channels) {
        for (int i = 0; i < channels; i++) write_out(image + i * plane, (*this)[i], width);
    }
    // Zero the tail: what lies after the row in its last vector.
    void clear_tail(int channel) { keep(channel, 0, width); }
    // Zero everything but the pixels first <= p < last.
    void keep(int channel, long first, long last) {
        float* p = (*this)[channel];
        for (long i = 0; i < first; i++) p[i] = 0.0f;
        for (long i = last; i < nv * LANES; i++) p[i] = 0.0f;
    }
};

// Mean over the channels of each pixel of a vector, and scale = 1 / sqrt(variance + LAYER_NORM_EPS).
struct NormStatistics {
    vec mean, scale;
};

inline NormStatistics norm_statistics(RowBuffer& x, int channels, long v) {
    vec sum{}, squares{};
    for (int i = 0; i < channels; i++) sum += load(x[i] + v * LANES);
    vec mean = sum * (1.0f / channels);
    for (int i = 0; i < channels; i++) {
        vec centred = load(x[i] + v * LANES) - mean;
        squares += centred * centred;
    }
    vec var = squares * (1.0f / channels) + LAYER_NORM_EPS, scale;
    for (int l = 0; l < LANES; l++) scale[l] = 1.0f / std::sqrt(var[l]);
    return {mean, scale};
}

// normed = (x - mean) * scale * weight + bias for a row, with the mean and scale of each pixel. The tail of `normed` is
// zeroed. The backward pass needs mean and scale again: two more channels of `normed` take them.
inline void norm_row(RowBuffer& x, int channels, const float* weight, const float* bias, RowBuffer& normed) {
    for (long v = 0; v < x.nv; v++) {
        NormStatistics s = norm_statistics(x, channels, v);
        for (int i = 0; i < channels; i++)
            store(normed[i] + v * LANES, (load(x[i] + v * LANES) - s.mean) * s.scale * weight[i] + bias[i]);
        store(normed[channels] + v * LANES, s.mean);
        store(normed[channels + 1] + v * LANES, s.scale);
    }
    for (int i = 0; i < channels; i++) normed.clear_tail(i);
}

// A vector in each of two rows.
struct TwoVectors {
    vec row[2];
};

// A 3x3 window over one channel, for two rows of results: pointers to these rows and to those around them, and the nine
// weights. They are copies, so that the compiler can keep them in registers while results are stored. Two rows at a
// time read four rows of the channel, one after the other they would read six.
struct Window {
    const float *above, *upper, *lower, *below;
    float w0, w1, w2, w3, w4, w5, w6, w7, w8;

    // The cross-correlation at vector v: sum over taps t of w[t] x[row + t / 3 - 1][pixel + t % 3 - 1].
    TwoVectors at(long v) const {
        const long p = v * LANES;
        const vec u0 = load_once(upper + p - 1), u1 = load_once(upper + p), u2 = load_once(upper + p + 1);
        const vec l0 = load_once(lower + p - 1), l1 = load_once(lower + p), l2 = load_once(lower + p + 1);
        vec first = w0 * load(above + p - 1) + w1 * load(above + p) + w2 * load(above + p + 1);
        first += w3 * u0 + w4 * u1 + w5 * u2;
        first += w6 * l0 + w7 * l1 + w8 * l2;
        vec second = w0 * u0 + w1 * u1 + w2 * u2;
        second += w3 * l0 + w4 * l1 + w5 * l2;
        second += w6 * load(below + p - 1) + w7 * load(below + p) + w8 * load(below + p + 1);
        return {{first, second}};
    }
};

// Consecutive rows of an image: two, and the rows above and below them.
struct FourRows {
    RowBuffer *above, *upper, *lower, *below;

    Window window(int channel, const float* w) const {
        return {(*above)[channel], (*upper)[channel], (*lower)[channel], (*below)[channel], w[0], w[1], w[2],
                w[3],              w[4],              w[5],              w[6],              w[7], w[8]};
    }
    // to_upper, to_lower = the cross-correlation of a channel with the window w, along the two rows
    void correlate(int channel, const float* w, float* to_upper, float* to_lower) const {
        const Window taps = window(channel, w);
        const long nv = upper->nv;
        for (long v = 0; v < nv; v++) {
            const TwoVectors z = taps.at(v);
            store(to_upper + v * LANES, z.row[0]);
            store(to_lower + v * LANES, z.row[1]);
        }
    }
};

struct Ring {  // the last four rows of an image; row r overwrites row r - 4
    std::vector<RowBuffer> rows;
    Ring(int channels, long width) {
        for (int i = 0; i < 4; i++) rows.emplace_back(channels, width);
    }
    RowBuffer& operator[](long r) { return rows[(r + 4) % 4]; }
    // Rows r and r + 1 with their neighbours. If only row r is wanted, `count` is 1: the results for row r + 1 are
    // meaningless then, and row r + 2 need not exist.
    FourRows around(long r, long count) {
        return {&(*this)[r - 1], &(*this)[r], &(*this)[r + 1], &(*this)[count == 2 ? r + 2 : r + 1]};
    }
};

// An image whose rows are read when the pipeline asks for them, or `window` pixels of each. The last four are kept.
struct ImageRows {
    const float* image;  // its first pixel to read
    long width, plane;
    int channels;
    Ring rows;
    ImageRows(int channels_, long height, long width_) : ImageRows(channels_, height, width_, width_) {}
    ImageRows(int channels_, long height, long width_, long window)
        : image(nullptr), width(width_), plane(height * width), channels(channels_), rows(channels_, window) {}

    RowBuffer& operator()(long r) {
        rows[r].read(image + r * width, plane, channels);
        return rows[r];
    }
};

// The weights of the pipeline: layer norm over c channels, 1x1 convolution c -> e, 3x3 depthwise convolution.
struct Expansion {
    int c, e;
    const float *norm_weight, *norm_bias, *expand, *depthwise;  // (c), (c), (e, c), (e, 9)
};

// Rows first <= r < last of one image: the unit of work of a thread.
struct Band {
    long image, first, last;
};

// One band per image if the threads divide the images evenly, otherwise one per thread and image.
inline std::vector<Band> bands(long batch, long height) {
    long threads = omp_get_max_threads();
    long per_image = std::min(height, batch % threads == 0 ? 1 : threads);
    std::vector<Band> all;
    for (long b = 0; b < batch; b++)
        for (long i = 0; i < per_image; i++)
            all.push_back({b, height * i / per_image, height * (i + 1) / per_image});
    return all;
}

// What a thread computes at a time in a forward pass: the columns left <= p < right of a band. The pipeline computes all
// `window` pixels from column `start`, which contain these columns and their neighbours in the image.
struct Patch {
    Band band;
    long start, left, right;
    // In a row of the pipeline, whose first pixel is column `start`.
    long first() const { return left - start; }
    long last() const { return right - start; }
};

struct Patches {
    long window;
    std::vector<Patch> all;

    // Neighbouring bands both compute the rows between them, up to `expanded`: about half of the work of two rows for
    // each band. Neighbouring columns cost more vectors. The cheapest division for the slowest thread is taken; with few
    // threads, that is one band for each.
    Patches(long batch, long height, long width) {
        const long threads = omp_get_max_threads();
        long rows = 1, columns = 1, least = 0;
        for (long k = 1; k == 1 || (k <= 4 && width / k >= 4 * LANES); k++)
            for (long n = 1; n <= std::min(threads, height); n++) {
                const long each = (batch * k * n + threads - 1) / threads;
                const long cost = each * ((height + n - 1) / n + 1) * vectors(window_of(width, k));
                if (least == 0 || cost < least) least = cost, rows = n, columns = k;
            }
        window = window_of(width, columns);
        for (long b = 0; b < batch; b++)
            for (long i = 0; i < rows; i++)
                for (long j = 0; j < columns; j++) {
                    const long left = width * j / columns, right = width * (j + 1) / columns;
                    const long start = std::min(std::max(left - 1, 0L), width - window);
                    all.push_back({{b, height * i / rows, height * (i + 1) / rows}, start, left, right});
                }
    }
    static long window_of(long width, long columns) {
        return columns == 1 ? width : (width + columns - 1) / columns + 2;
    }
};

// The forward pipeline of one thread.
struct ForwardRows {
    const Expansion& layer;
    long height, width, plane;
    Packed expand;
    RowBuffer normed;
    Ring expanded;

    ForwardRows(const Expansion& l, long height_, long width_)
        : layer(l), height(height_), width(width_), plane(height_ * width_), expand(l.expand, l.e, l.c, l.c),
          normed(l.c + 2, width_), expanded(l.e, width_) {}

    // norm = row r of the input, normalised; its expansion enters the ring. input(r) returns the row. Rows outside the
    // image are zeros: the padding of the depthwise convolution.
    template <class Input>
    void fill(Input& input, long r, RowBuffer& norm) {
        if (r < 0 || r >= height) {
            norm.zero();
            expanded[r].zero();
            return;
        }
        norm_row(input(r), layer.c, layer.norm_weight, layer.norm_bias, norm);
        gemm(expand, norm.matrix(), width, expanded[r][0], expanded[r].stride);
    }

    // Call row(r, count, expanded rows r - 1 to r + 2) for every two rows r and r + 1 of the band. `count` is 1 if row
    // r + 1 is not in the band.
    template <class Input, class Row>
    void run(Input& input, const Band& band, Row row) {
        fill(input, band.first - 1, normed);
        fill(input, band.first, normed);
        for (long r = band.first; r < band.last; r += 2) {
            const long count = std::min(2L, band.last - r);
            for (long k = 1; k <= count; k++) fill(input, r + k, normed);
            row(r, count, expanded.around(r, count));
        }
    }
};

inline void add_to(std::vector<double>& total, const std::vector<double>& part) {
    for (size_t i = 0; i < total.size(); i++) total[i] += part[i];
}

inline void write(const std::vector<double>& values, float* to) {
    for (size_t i = 0; i < values.size(); i++) to[i] = (float)values[i];
}

// Gradients of an Expansion's weights, summed in double.
struct ExpansionGrad {
    std::vector<double> norm_weight, norm_bias, expand, depthwise;
    explicit ExpansionGrad(const Expansion& l)
        : norm_weight(l.c), norm_bias(l.c), expand((size_t)l.e * l.c), depthwise((size_t)l.e * 9) {}

    void add(const ExpansionGrad& part) {
        add_to(norm_weight, part.norm_weight);
        add_to(norm_bias, part.norm_bias);
        add_to(expand, part.expand);
        add_to(depthwise, part.depthwise);
    }

    // `grads` has a pointer of each name.
    template <class Grads>
    void write_to(const Grads& grads) const {
        write(norm_weight, grads.norm_weight);
        write(norm_bias, grads.norm_bias);
        write(expand, grads.expand);
        write(depthwise, grads.depthwise);
    }
};

// forward:  z[p] = sum over t of w[t] x[p shifted by tap t]
// backward: dw[t] += sum over p of dz[p] x[p shifted by tap t], here for the pixels of two rows
//
// dz is shifted instead of x: ten loads instead of 18. The tails of x and dz are zero.
inline void depthwise_rows_grad(
    const FourRows& x, int channel, const float* dz_upper, const float* dz_lower, double* dw
) {
    const float* rows[4] = {(*x.above)[channel], (*x.upper)[channel], (*x.lower)[channel], (*x.below)[channel]};
    const long nv = x.upper->nv;
    // Half of the two rows at a time: the float32 sums have as many terms as those of one row.
    for (long first = 0, half = (nv + 1) / 2; first < nv; first += half) {
        vec s[9] = {};
        for (long v = first; v < std::min(first + half, nv); v++) {
            const float *upper = dz_upper + v * LANES, *lower = dz_lower + v * LANES;
            const vec d[2][3] = {
                {load_once(upper + 1), load_once(upper), load_once(upper - 1)},
                {load_once(lower + 1), load_once(lower), load_once(lower - 1)},
            };
            for (int i = 0; i < 4; i++) {
                const vec row = load_once(rows[i] + v * LANES);
                for (int j = 0; j < 3; j++) {
                    if (i < 3) s[i * 3 + j] += d[0][j] * row;
                    if (i > 0) s[(i - 1) * 3 + j] += d[1][j] * row;
                }
            }
        }
        for (int t = 0; t < 9; t++) dw[t] += sum_lanes(s[t]);
    }
}

// The backward pipeline of one thread. It computes the forward rows again and follows them with the gradients:
//
//     forward:  x -> normed -> expanded -> z          y = x + (...)
//     backward: dx <- dnormed <- dexpanded <- dz      dx = dy + the pipeline's gradient
struct BackwardRows {
    ForwardRows forward;
    const Expansion& layer;
    Packed expand_transposed;
    floats flipped;     // the depthwise windows, rotated by 180 degrees
    floats transposed;  // a row of `normed`: (width, c)
    ImageRows dy;
    Ring normed, dz;
    RowBuffer dexpanded;  // two rows of one channel
    RowBuffer dx;         // first the gradient of the normalised row, then of the input
    RowBuffer zeros;      // a row of one channel
    Band band;            // of which it computes the gradients now
    long ld;              // of `transposed`
    ExpansionGrad grad;

    BackwardRows(const Expansion& l, long height, long width)
        : forward(l, height, width), layer(l), expand_transposed(l.expand, l.c, l.e, l.c, true),
          flipped((size_t)l.e * 9), dy(l.c, height, width), normed(l.c + 2, width), dz(l.e, width), dexpanded(2, width),
          dx(l.c, width), zeros(1, width), ld(vectors(l.c) * LANES), grad(l) {
        transposed.resize(width * ld);
        zeros.zero();
        for (int i = 0; i < l.e; i++)
            for (int t = 0; t < 9; t++) flipped[i * 9 + t] = l.depthwise[i * 9 + 8 - t];
    }

    // Write a band's rows of dx, and add the gradients of its weights to `grad`. input(r) returns row r of x and keeps
    // the last four in input.rows. dy_image is the gradient of this half's output, dx_image that of its input.
    //
    // row(r, expanded rows r - 1 to r + 2) writes rows r and r + 1 of `dz`, the gradient of the depthwise convolution's
    // output, with zeros in the tail, from those of `dy`. It calls depthwise_grad for every channel, as soon as it has
    // written it: the rows are still in the cache. It also gets the row before and the row after the band, which the
    // neighbouring bands compute too. Gradients of weights must not be summed there: `inside` is false.
    //
    // done(r, dx row) is called when row r of dx is complete.
    template <class Input, class Row, class Done>
    void run(Input& input, const Band& rows, const float* dy_image, float* dx_image, Row row, Done done) {
        band = rows;
        dy.image = dy_image;
        forward.fill(input, band.first - 2, normed[band.first - 2]);
        forward.fill(input, band.first - 1, normed[band.first - 1]);
        for (long r = band.first - 1; r <= band.last; r += 2) {
            const long count = std::min(2L, band.last + 1 - r);
            for (long k = r; k < r + 2; k++) {
                // Row k + 1 overwrites row k - 3 of `normed` and `expanded`, which is no longer needed.
                if (k < r + count) forward.fill(input, k + 1, normed[k + 1]);
                if (k < r + count && exists(k))
                    dy(k);
                else
                    dy.rows[k].zero();
            }
            row(r, forward.expanded.around(r, count));
            for (long k = r; k < r + count; k++)
                if (!exists(k)) dz[k].zero();
            if (r < band.first) continue;
            input_rows_grad(r - 1, count);
            for (long k = r - 1; k < r - 1 + count; k++) {
                input_row_grad(input, k, dz[k - 1]);
                dx.write(dx_image + k * forward.width, forward.plane, layer.c);
                done(k, dx);
            }
        }
    }

    bool exists(long r) const { return r >= 0 && r < forward.height; }
    bool inside(long r) const { return r >= band.first && r < band.last; }

    // Adds what rows r and r + 1 contribute to the gradient of a channel's window, if they are inside the band.
    void depthwise_grad(const FourRows& expanded, long r, int channel) {
        depthwise_rows_grad(
            expanded, channel, inside(r) ? dz[r][channel] : zeros[0], inside(r + 1) ? dz[r + 1][channel] : zeros[0],
            &grad.depthwise[channel * 9]
        );
    }

    // Rows r and r + 1 of dexpanded, from rows r - 1 to r + 2 of dz:
    //
    // forward:  z = correlation of each channel of `expanded` with its window
    // backward: dexpanded = correlation of dz with the flipped windows
    //
    // They overwrite rows r - 1 and r of dz, which are no longer needed: these are in the cache, other memory is not.
    void input_rows_grad(long r, long count) {
        const FourRows around = dz.around(r, count);
        for (int i = 0; i < layer.e; i++) {
            around.correlate(i, &flipped[i * 9], dexpanded[0], dexpanded[1]);
            for (int k = 0; k < 2; k++) {
                dexpanded.clear_tail(k);
                std::memcpy(dz[r - 1 + k][i], dexpanded[k], dexpanded.nv * LANES * sizeof(float));
            }
        }
    }

    // Row r of dx:
    //
    // forward:  expanded = W normed
    // backward: dW = dexpanded normed^T,  dnormed = W^T dexpanded
    template <class Input>
    void input_row_grad(Input& input, long r, RowBuffer& dexpanded) {
        transpose(normed[r][0], normed[r].stride, layer.c, forward.width, transposed.data(), ld);
        outer_add(
            dexpanded[0], dexpanded.stride, layer.e, forward.width, transposed.data(), ld, layer.c, grad.expand.data()
        );
        gemm(expand_transposed, dexpanded.matrix(), forward.width, dx[0], dx.stride);
        norm_grad(input.rows[r], normed[r], dy.rows[r]);
    }

    // Per pixel, with hat = (x - mean) * scale, means over its c channels, and g = dnormed * weight:
    //
    // forward:  normed = hat * weight + bias
    // backward: dx = dy + scale * (g - mean(g) - hat * mean(g * hat))
    //           dweight = sum over pixels of dnormed * hat,  dbias = sum over pixels of dnormed
    //
    // dnormed is in `dx`, which becomes dx.
    void norm_grad(RowBuffer& x, RowBuffer& norm, RowBuffer& dy_row) {
        int c = layer.c;
        std::vector<vec, AlignedAllocator<vec>> dweight(c, vec{}), dbias(c, vec{});
        for (long v = 0; v < x.nv; v++) {
            const NormStatistics s{load(norm[c] + v * LANES), load(norm[c + 1] + v * LANES)};
            vec mean_g{}, mean_g_hat{};
            for (int i = 0; i < c; i++) {
                vec hat = (load(x[i] + v * LANES) - s.mean) * s.scale, d = load(dx[i] + v * LANES);
                dweight[i] += d * hat;
                dbias[i] += d;
                mean_g += d * layer.norm_weight[i];
                mean_g_hat += d * layer.norm_weight[i] * hat;
            }
            mean_g *= 1.0f / c;
            mean_g_hat *= 1.0f / c;
            for (int i = 0; i < c; i++) {
                vec hat = (load(x[i] + v * LANES) - s.mean) * s.scale, d = load(dx[i] + v * LANES);
                vec through = s.scale * (d * layer.norm_weight[i] - mean_g - hat * mean_g_hat);
                store(dx[i] + v * LANES, load(dy_row[i] + v * LANES) + through);
            }
        }
        for (int i = 0; i < c; i++) {
            grad.norm_weight[i] += sum_lanes(dweight[i]);
            grad.norm_bias[i] += sum_lanes(dbias[i]);
        }
    }
};

}  // namespace film
