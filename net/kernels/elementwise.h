// Operations with little arithmetic, forward and backward. Jittor's own operators would compute them on one thread.
#pragma once
# include "rows.h"

namespace film {

// pooled / max(sum of |pooled|, MIN_NORM) for each image: the factors by which `guide` multiplies its tokens.
struct Guidance {
    std::vector<double> norms;  // (batch): what the pooled values are divided by
    floats factors;             // (batch, embed)

    Guidance(const float* pooled, long batch, int embed) : norms(batch), factors(batch * embed) {
        for (long b = 0; b < batch; b++) {
            double sum = 0;
            for (int i = 0; i < embed; i++) sum += std::fabs(pooled[b * embed + i]);
            norms[b] = sum > MIN_NORM ? sum : MIN_NORM;
            for (int i = 0; i < embed; i++) factors[b * embed + i] = (float)(pooled[b * embed + i] / norms[b]);
        }
    }
};

// y = token * guidance for every token (batch, tokens, embed); pooled (batch, embed)
inline void guide(const float* x, const float* pooled, long batch, long tokens, int embed, float* y) {
    const Guidance guidance(pooled, batch, embed);
#pragma omp parallel for schedule(static)
    for (long token = 0; token < batch * tokens; token++) {
        const float *from = x + token * embed, *factors = &guidance.factors[token / tokens * embed];
        float* to = y + token * embed;
        for (int i = 0; i < embed; i++) to[i] = from[i] * factors[i];
    }
}

// forward:  y_m = x_m g for the tokens m,  g = pooled / norm,  norm = max(sum of |pooled|, MIN_NORM)
// backward: dx_m = dy_m g,  dg = sum over m of dy_m x_m
//           dpooled = (dg - sign(pooled) * sum of dg g) / norm, or dg / norm where the norm is held at its lower bound
inline void guide_backward(
    const float* x, const float* pooled, const float* dy, long batch, long tokens, int embed, float* dx, float* dpooled
) {
    const Guidance guidance(pooled, batch, embed);
    // One partial sum per thread, added in the order of the threads: the same sum in every run.
    std::vector<std::vector<double>> parts(omp_get_max_threads(), std::vector<double>(batch * embed));
#pragma omp parallel
    {
        std::vector<double>& part = parts[omp_get_thread_num()];
#pragma omp for schedule(static)
        for (long token = 0; token < batch * tokens; token++) {
            const float *from = x + token * embed, *d = dy + token * embed;
            const float* factors = &guidance.factors[token / tokens * embed];
            double* sums = &part[token / tokens * embed];
            float* to = dx + token * embed;
            for (int i = 0; i < embed; i++) {
                to[i] = d[i] * factors[i];
                sums[i] += (double)d[i] * from[i];
            }
        }
    }
    for (size_t thread = 1; thread < parts.size(); thread++) add_to(parts[0], parts[thread]);
    for (long b = 0; b < batch; b++) {
        const float *values = pooled + b * embed, *factors = &guidance.factors[b * embed];
        const double *dg = &parts[0][b * embed], norm = guidance.norms[b];
        double along = 0;
        if (norm > MIN_NORM)
            for (int i = 0; i < embed; i++) along += dg[i] * factors[i];
        for (int i = 0; i < embed; i++) {
            const double sign = values[i] > 0.0f ? 1 : values[i] < 0.0f ? -1 : 0;
            dpooled[b * embed + i] = (float)((dg[i] - sign * along) / norm);
        }
    }
}

// y (batch, 2c, plane) = the channels of `first`, then those of `second`, both (batch, c, plane)
inline void concat_channels(const float* first, const float* second, long batch, long c, long plane, float* y) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < 2 * batch * c; i++) {
        const long b = i / (2 * c), channel = i % (2 * c);
        const float* image = channel < c ? first : second;
        std::memcpy(y + i * plane, image + (b * c + channel % c) * plane, plane * sizeof(float));
    }
}

// The backward pass of concat_channels: each channel of dy goes back to where it came from.
inline void split_channels(const float* dy, long batch, long c, long plane, float* dfirst, float* dsecond) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < 2 * batch * c; i++) {
        const long b = i / (2 * c), channel = i % (2 * c);
        float* image = channel < c ? dfirst : dsecond;
        std::memcpy(image + (b * c + channel % c) * plane, dy + i * plane, plane * sizeof(float));
    }
}

}  // namespace film
