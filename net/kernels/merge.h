// The end of a guidance stage: features f and guided features g -> prelu3(conv3([f, prelu2(conv2(g)) + f])), both
// convolutions 1x1, without the five images in between.
#pragma once
# include "conv.h"

namespace film {

struct Merge {
    int c;  // channels of f, g and the result
    const float *weight2, *bias2, *slope2, *weight3, *bias3, *slope3;
};

inline vec prelu_vec(vec x, float slope) { return x > 0.0f ? x : slope * x; }

// Buffers of one thread, and the rows up to the result's last activation for one chunk of pixels.
struct MergeRows {
    const Merge& layer;
    Packed conv2, conv3;
    RowBuffer g, inner, stacked, outer;  // stacked: f above prelu2(inner) + f

    explicit MergeRows(const Merge& m)
        : layer(m), conv2(m.weight2, m.c, m.c, m.c), conv3(m.weight3, m.c, 2 * m.c, 2 * m.c), g(m.c, CHUNK),
          inner(m.c, CHUNK), stacked(2 * m.c, CHUNK), outer(m.c, CHUNK) {}

    void forward(const float* f, const float* guided, long plane, long count) {
        const int c = layer.c;
        const float slope2 = *layer.slope2;
        read_chunk(stacked, f, plane, c, count);
        read_chunk(g, guided, plane, c, count);
        gemm(conv2, g.matrix(), count, inner[0], inner.stride, false, layer.bias2);
        for (int k = 0; k < c; k++) {
            const float *a = inner[k], *b = stacked[k];
            float* to = stacked[c + k];
            for (long v = 0; v < vectors(count); v++)
                store(to + v * LANES, prelu_vec(load(a + v * LANES), slope2) + load(b + v * LANES));
        }
        gemm(conv3, stacked.matrix(), count, outer[0], outer.stride, false, layer.bias3);
    }
};

inline void merge(const Merge& layer, const float* f, const float* g, long batch, long plane, float* y) {
    const int c = layer.c;
#pragma omp parallel
    {
        MergeRows rows(layer);
        const float slope3 = *layer.slope3;
        for_chunks(batch, plane, [&](long b, long first, long count) {
            const long at = b * c * plane + first;
            rows.forward(f + at, g + at, plane, count);
            for (int k = 0; k < c; k++) {
                const float* from = rows.outer[k];
                float* to = y + at + k * plane;
                for (long i = 0; i < count; i++) to[i] = from[i] > 0.0f ? from[i] : slope3 * from[i];
            }
        });
    }
}

struct MergeGrads {
    float *f, *g, *weight2, *bias2, *slope2, *weight3, *bias3, *slope3;
};

// Sums over pixels that a thread keeps for itself.
struct MergeSums {
    std::vector<double> weight2, bias2, slope2, weight3, bias3, slope3;
    explicit MergeSums(int c) : weight2(c * c), bias2(c), slope2(1), weight3(2 * c * c), bias3(c), slope3(1) {}

    void add(const MergeSums& o) {
        add_to(weight2, o.weight2);
        add_to(bias2, o.bias2);
        add_to(slope2, o.slope2);
        add_to(weight3, o.weight3);
        add_to(bias3, o.bias3);
        add_to(slope3, o.slope3);
    }
};

// d *= prelu'(x), in place; counts the slope's and the bias's gradient. The tail of d is zero.
inline void prelu_grad(RowBuffer& x, RowBuffer& d, int c, float slope, long count, double& dslope, double* dbias) {
    for (int k = 0; k < c; k++) {
        const float* from = x[k];
        float* to = d[k];
        vec by_slope{}, by_bias{};
        for (long v = 0; v < vectors(count); v++) {
            vec a = load(from + v * LANES), g = load(to + v * LANES);
            by_slope += a > 0.0f ? vec{} : a * g;
            g = a > 0.0f ? g : slope * g;
            by_bias += g;
            store(to + v * LANES, g);
        }
        dslope += sum_lanes(by_slope);
        dbias[k] += sum_lanes(by_bias);
    }
}

inline void merge_backward(
    const Merge& layer, const float* f, const float* g, const float* dout, long batch, long plane, MergeGrads out
) {
    const int c = layer.c, threads = omp_get_max_threads();
    const long ld = vectors(c) * LANES, ld2 = vectors(2 * c) * LANES;
    std::vector<MergeSums> parts(threads, MergeSums(c));
#pragma omp parallel
    {
        MergeRows rows(layer);
        MergeSums& sums = parts[omp_get_thread_num()];
        Packed back2(layer.weight2, c, c, c, true), back3(layer.weight3, 2 * c, c, 2 * c, true);
        RowBuffer d(c, CHUNK), dstacked(2 * c, CHUNK), dinner(c, CHUNK), dg(c, CHUNK);
        floats turned(CHUNK * ld), turned2(CHUNK * ld2);
        for_chunks(batch, plane, [&](long b, long first, long count) {
            const long at = b * c * plane + first;
            rows.forward(f + at, g + at, plane, count);
            read_chunk(d, dout + at, plane, c, count);
            prelu_grad(rows.outer, d, c, *layer.slope3, count, sums.slope3[0], sums.bias3.data());
            transpose(rows.stacked[0], rows.stacked.stride, 2 * c, count, turned2.data(), ld2);
            outer_add(d[0], d.stride, c, count, turned2.data(), ld2, 2 * c, sums.weight3.data());
            gemm(back3, d.matrix(), count, dstacked[0], dstacked.stride);
            for (int k = 0; k < c; k++) {
                const float *top = dstacked[k], *low = dstacked[c + k];
                float *df = out.f + at + k * plane, *copy = dinner[k];
                for (long i = 0; i < count; i++) df[i] = top[i] + low[i];
                std::memcpy(copy, low, vectors(count) * LANES * sizeof(float));
            }
            prelu_grad(rows.inner, dinner, c, *layer.slope2, count, sums.slope2[0], sums.bias2.data());
            transpose(rows.g[0], rows.g.stride, c, count, turned.data(), ld);
            outer_add(dinner[0], dinner.stride, c, count, turned.data(), ld, c, sums.weight2.data());
            gemm(back2, dinner.matrix(), count, dg[0], dg.stride);
            for (int k = 0; k < c; k++) std::memcpy(out.g + at + k * plane, dg[k], count * sizeof(float));
        });
    }
    for (int t = 1; t < threads; t++) parts[0].add(parts[t]);
    write(parts[0].weight2, out.weight2);
    write(parts[0].bias2, out.bias2);
    write(parts[0].slope2, out.slope2);
    write(parts[0].weight3, out.weight3);
    write(parts[0].bias3, out.bias3);
    write(parts[0].slope3, out.slope3);
}

}  // namespace film
