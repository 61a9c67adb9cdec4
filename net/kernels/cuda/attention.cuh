// Attention between the channels of a head, and its gradient. ../attention.h computes the same on the CPU, and derives
// the gradient.
//
// x (b, 3 channels, plane) holds q, k and v; a head has d consecutive channels. Arrays (b, channels, d) hold a row i of
// d numbers for each channel i, one for each channel j of the same head.
//
// forward:  scores[i][j] = q_i . k_j            norms[i] = q_i . q_i, norms[channels + j] = k_j . k_j
//           cosine[i][j] = scores[i][j] / (|q_i| |k_j|)
//           attention[i] = softmax over j of temperature * cosine[i][j]
//           y_i = sum over j of attention[i][j] v_j
#pragma once
# include "../constants.h"
# include "launch.cuh"

namespace film {
namespace gpu {

struct Heads {
    long channels, d, plane;
    // The first channel of the head of `channel`.
    FILM_BODY long first(long channel) const { return channel / d * d; }
    // Channel `channel` of part 0 (q), 1 (k) or 2 (v) of image b.
    FILM_BODY const float* part(const float* x, long b, long part, long channel) const {
        return x + ((3 * b + part) * channels + channel) * plane;
    }
};

FILM_BODY float length(float square) {
    const float root = sqrtf(square);
    return root > (float)MIN_NORM ? root : (float)MIN_NORM;
}

// scores: groups are the entries of (b, channels, d), items the pixels.
struct Scores {
    Heads heads;
    const float* x;
    float* scores;
    FILM_BODY void operator()(long group, long p, float* sums) const {
        const long row = group / heads.d, b = row / heads.channels, i = row % heads.channels;
        const long j = heads.first(i) + group % heads.d;
        sums[0] += heads.part(x, b, 0, i)[p] * heads.part(x, b, 1, j)[p];
    }
    FILM_BODY void write(long group, int, float total) const { scores[group] = total; }
};

// norms: groups are the entries of (b, 2 channels), items the pixels.
struct Norms {
    Heads heads;
    const float* x;
    float* norms;
    FILM_BODY void operator()(long group, long p, float* sums) const {
        const long b = group / (2 * heads.channels), channel = group % (2 * heads.channels);
        const float value = heads.part(x, b, 0, channel)[p];
        sums[0] += value * value;
    }
    FILM_BODY void write(long group, int, float total) const { norms[group] = total; }
};

// What the small arrays say about the pair (i, j) of row `row` = b * channels + i.
struct Pairs {
    Heads heads;
    const float *temperature, *scores, *norms;
    FILM_BODY float scale(long row) const { return temperature[row % heads.channels / heads.d]; }
    FILM_BODY float lengths(long row, long j) const {
        const long b = row / heads.channels, i = row % heads.channels, k = heads.channels + heads.first(i) + j;
        return length(norms[2 * b * heads.channels + i]) * length(norms[2 * b * heads.channels + k]);
    }
    FILM_BODY float cosine(long row, long j) const { return scores[row * heads.d + j] / lengths(row, j); }
};

// For every row.
struct Softmax {
    Pairs pairs;
    float* attention;
    FILM_BODY void operator()(long row) const {
        const long d = pairs.heads.d;
        float *out = attention + row * d, largest = -INFINITY, sum = 0;
        for (long j = 0; j < d; j++) {
            out[j] = pairs.scale(row) * pairs.cosine(row, j);
            largest = out[j] > largest ? out[j] : largest;
        }
        for (long j = 0; j < d; j++) sum += out[j] = expf(out[j] - largest);
        for (long j = 0; j < d; j++) out[j] /= sum;
    }
};

// For every element of y.
struct Mix {
    Heads heads;
    const float *x, *attention;
    float* y;
    FILM_BODY void operator()(long index) const {
        const long row = index / heads.plane, p = index % heads.plane;
        const float* v = heads.part(x, row / heads.channels, 2, heads.first(row % heads.channels));
        float sum = 0;
        for (long j = 0; j < heads.d; j++) sum += attention[row * heads.d + j] * v[j * heads.plane + p];
        y[index] = sum;
    }
};

// forward:  y_i = sum over j of attention[i][j] v_j
// backward: dattention[i][j] = dy_i . v_j
//
// Groups are the entries of (b, channels, d), items the pixels.
struct AttentionGrad {
    Heads heads;
    const float *x, *dy;
    float* dattention;
    FILM_BODY void operator()(long group, long p, float* sums) const {
        const long row = group / heads.d, b = row / heads.channels;
        const long j = heads.first(row % heads.channels) + group % heads.d;
        sums[0] += dy[row * heads.plane + p] * heads.part(x, b, 2, j)[p];
    }
    FILM_BODY void write(long group, int, float total) const { dattention[group] = total; }
};

// forward:  attention[i] = softmax(z[i])
// backward: dz[i][j] = attention[i][j] (dattention[i][j] - sum over k of attention[i][k] dattention[i][k])
//
// For every row.
struct SoftmaxGrad {
    long d;
    const float *attention, *dattention;
    float* dz;
    FILM_BODY void operator()(long row) const {
        const float *a = attention + row * d, *da = dattention + row * d;
        float mean = 0;
        for (long j = 0; j < d; j++) mean += a[j] * da[j];
        for (long j = 0; j < d; j++) dz[row * d + j] = a[j] * (da[j] - mean);
    }
};

// forward:  z[i][j] = temperature * cosine[i][j]
// backward: dtemperature = sum over the rows i of the head, j, and the images of dz[i][j] cosine[i][j]
//
// Groups are heads, items the pairs of all images.
struct TemperatureGrad {
    Pairs pairs;
    const float* dz;
    float* dtemperature;
    FILM_BODY void operator()(long head, long item, float* sums) const {
        const long d = pairs.heads.d, j = item % d, row = item / d / d * pairs.heads.channels + head * d + item / d % d;
        sums[0] += dz[row * d + j] * pairs.cosine(row, j);
    }
    FILM_BODY void write(long head, int, float total) const { dtemperature[head] = total; }
};

// With pull[i][j] = temperature * dz[i][j] / (|q_i| |k_j|), the gradient of scores[i][j]:
//
// forward:  cosine[i][j] = q_i . k_j / (|q_i| |k_j|),  y_i = sum over j of attention[i][j] v_j
// backward: dq_i = sum over j of pull[i][j] (k_j - scores[i][j] / |q_i|^2 q_i)
//           dk_j = sum over i of pull[i][j] (q_i - scores[i][j] / |k_j|^2 k_j)
//           dv_j = sum over i of attention[i][j] dy_i
//
// For every element of dx.
struct QkvGrad {
    Pairs pairs;
    const float *x, *attention, *dz, *dy;
    float* dx;
    FILM_BODY void operator()(long index) const {
        const Heads& heads = pairs.heads;
        const long p = index % heads.plane, b = index / heads.plane / (3 * heads.channels);
        const long channel = index / heads.plane % heads.channels, part = index / heads.plane / heads.channels % 3;
        const long first = heads.first(channel), own = channel - first;
        float sum = 0, shrink = 0;
        for (long other = 0; other < heads.d; other++) {
            // The pair has the channel as i (part 0) or as j (parts 1 and 2).
            const long row = b * heads.channels + (part == 0 ? channel : first + other), j = part == 0 ? other : own;
            if (part == 2) {
                sum += attention[row * heads.d + j] * dy[row * heads.plane + p];
                continue;
            }
            const float pull = pairs.scale(row) * dz[row * heads.d + j] / pairs.lengths(row, j);
            sum += pull * heads.part(x, b, 1 - part, first + other)[p];
            shrink += pull * pairs.scores[row * heads.d + j];
        }
        if (part < 2) {
            const float square = pairs.norms[(2 * b + part) * heads.channels + channel];
            // A norm below MIN_NORM is a constant.
            if (sqrtf(square) > (float)MIN_NORM) sum -= shrink / square * x[index];
        }
        dx[index] = sum;
    }
};

}  // namespace gpu
}  // namespace film
