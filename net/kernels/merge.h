// The end of a guidance stage in one pass over the pixels: features f and guided features g -> y. Both convolutions are
// 1x1.
//
//     inner = W2 g + bias2
//     stacked = [f, prelu2(inner) + f]      (2c channels)
//     outer = W3 stacked + bias3
//     y = prelu3(outer)
#pragma once
# include "conv.h"

namespace film {

struct Merge {
    int c;  // channels of f, g and y
    const float *weight2, *bias2, *slope2, *weight3, *bias3, *slope3;  // weights (c, c) and (c, 2c)
};

inline vec prelu_vec(vec x, float slope) { return x > 0.0f ? x : slope * x; }

// Buffers of one thread. `forward` fills them for a chunk of pixels.
struct MergeRows {
    const Merge& layer;
    Packed weight2, weight3;
    RowBuffer g, inner, stacked, outer;

    explicit MergeRows(const Merge& m)
        : layer(m), weight2(m.weight2, m.c, m.c, m.c), weight3(m.weight3, m.c, 2 * m.c, 2 * m.c), g(m.c, PIXEL_CHUNK),
          inner(m.c, PIXEL_CHUNK), stacked(2 * m.c, PIXEL_CHUNK), outer(m.c, PIXEL_CHUNK) {}

    void forward(const float* f, const float* guided, long plane, long count) {
        const int c = layer.c;
        const float slope2 = *layer.slope2;
        read_chunk(stacked, f, plane, c, count);
        read_chunk(g, guided, plane, c, count);
        gemm(weight2, g.matrix(), count, inner[0], inner.stride, false, layer.bias2);
        for (int i = 0; i < c; i++) {
            const float *inner_row = inner[i], *f_row = stacked[i];
            float* to = stacked[c + i];
            for (long v = 0; v < vectors(count); v++)
                store(to + v * LANES, prelu_vec(load(inner_row + v * LANES), slope2) + load(f_row + v * LANES));
        }
        gemm(weight3, stacked.matrix(), count, outer[0], outer.stride, false, layer.bias3);
    }
};

// f, g and y (batch, c, plane)
inline void merge(const Merge& layer, const float* f, const float* g, long batch, long plane, float* y) {
    const int c = layer.c;
#pragma omp parallel
    {
        MergeRows rows(layer);
        const float slope3 = *layer.slope3;
        for_chunks(batch, plane, [&](long b, long first, long count) {
            const long at = b * c * plane + first;
            rows.forward(f + at, g + at, plane, count);
            for (int i = 0; i < c; i++) {
                float* row = rows.outer[i];
                for (long p = 0; p < count; p++) row[p] = row[p] > 0.0f ? row[p] : slope3 * row[p];
                write_out(y + at + i * plane, row, count);
            }
        });
    }
}

struct MergeGrads {
    float *f, *g, *weight2, *bias2, *slope2, *weight3, *bias3, *slope3;
};

// One thread's sums over its pixels.
struct MergeSums {
    std::vector<double> weight2, bias2, slope2, weight3, bias3, slope3;
    explicit MergeSums(int c) : weight2(c * c), bias2(c), slope2(1), weight3(2 * c * c), bias3(c), slope3(1) {}

    void add(const MergeSums& part) {
        add_to(weight2, part.weight2);
        add_to(bias2, part.bias2);
        add_to(slope2, part.slope2);
        add_to(weight3, part.weight3);
        add_to(bias3, part.bias3);
        add_to(slope3, part.slope3);
    }
};

// forward:  y = prelu(x),  x = W u + bias
// backward: dx = dy where x > 0, else slope * dy;  dslope += sum of x dy where x <= 0;  dbias += sum of dx
//
// In place: d is dy, whose tail is zero, and becomes dx.
inline void prelu_grad(RowBuffer& x, RowBuffer& d, int c, float slope, long count, double& dslope, double* dbias) {
    for (int i = 0; i < c; i++) {
        const float* from = x[i];
        float* to = d[i];
        vec slope_sum{}, bias_sum{};
        for (long v = 0; v < vectors(count); v++) {
            vec value = load(from + v * LANES), dy = load(to + v * LANES);
            slope_sum += value > 0.0f ? vec{} : value * dy;
            vec dx = value > 0.0f ? dy : slope * dy;
            bias_sum += dx;
            store(to + v * LANES, dx);
        }
        dslope += sum_lanes(slope_sum);
        dbias[i] += sum_lanes(bias_sum);
    }
}

// forward:  inner = W2 g + bias2,  stacked = [f, prelu2(inner) + f],  outer = W3 stacked + bias3,  y = prelu3(outer)
// backward: douter = prelu3'(outer) dy,  dW3 = douter stacked^T,  dstacked = W3^T douter = [upper, lower]
//           df = upper + lower
//           dinner = prelu2'(inner) lower,  dW2 = dinner g^T,  dg = W2^T dinner
inline void merge_backward(
    const Merge& layer, const float* f, const float* g, const float* dy, long batch, long plane, MergeGrads grads
) {
    const int c = layer.c, threads = omp_get_max_threads();
    const long ld = vectors(c) * LANES, ld2 = vectors(2 * c) * LANES;
    std::vector<MergeSums> parts(threads, MergeSums(c));
#pragma omp parallel
    {
        MergeRows rows(layer);
        MergeSums& sums = parts[omp_get_thread_num()];
        Packed weight2_transposed(layer.weight2, c, c, c, true);
        Packed weight3_transposed(layer.weight3, 2 * c, c, 2 * c, true);
        RowBuffer douter(c, PIXEL_CHUNK), dstacked(2 * c, PIXEL_CHUNK), dinner(c, PIXEL_CHUNK), dg(c, PIXEL_CHUNK);
        floats g_transposed(PIXEL_CHUNK * ld), stacked_transposed(PIXEL_CHUNK * ld2);
        for_chunks(batch, plane, [&](long b, long first, long count) {
            const long at = b * c * plane + first;
            rows.forward(f + at, g + at, plane, count);
            read_chunk(douter, dy + at, plane, c, count);
            prelu_grad(rows.outer, douter, c, *layer.slope3, count, sums.slope3[0], sums.bias3.data());
            transpose(rows.stacked[0], rows.stacked.stride, 2 * c, count, stacked_transposed.data(), ld2);
            outer_add(
                douter[0], douter.stride, c, count, stacked_transposed.data(), ld2, 2 * c, sums.weight3.data()
            );
            gemm(weight3_transposed, douter.matrix(), count, dstacked[0], dstacked.stride);
            for (int i = 0; i < c; i++) {
                const float* lower = dstacked[c + i];
                float *df = dstacked[i], *copy = dinner[i];
                for (long p = 0; p < count; p++) df[p] += lower[p];
                write_out(grads.f + at + i * plane, df, count);
                std::memcpy(copy, lower, vectors(count) * LANES * sizeof(float));
            }
            prelu_grad(rows.inner, dinner, c, *layer.slope2, count, sums.slope2[0], sums.bias2.data());
            transpose(rows.g[0], rows.g.stride, c, count, g_transposed.data(), ld);
            outer_add(dinner[0], dinner.stride, c, count, g_transposed.data(), ld, c, sums.weight2.data());
            gemm(weight2_transposed, dinner.matrix(), count, dg[0], dg.stride);
            for (int i = 0; i < c; i++) write_out(grads.g + at + i * plane, dg[i], count);
        });
    }
    for (int thread = 1; thread < threads; thread++) parts[0].add(parts[thread]);
    write(parts[0].weight2, grads.weight2);
    write(parts[0].bias2, grads.bias2);
    write(parts[0].slope2, grads.slope2);
    write(parts[0].weight3, grads.weight3);
    write(parts[0].bias3, grads.bias3);
    write(parts[0].slope3, grads.slope3);
}

}  // namespace film
