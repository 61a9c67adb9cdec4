// Attention between the channels of a head, and its gradient. ../attention.h computes the same on the CPU, and derives
// the gradient.
//
// x (b, 3 c, plane) holds q, k and v; a head has dim consecutive channels. Arrays (b, c, dim) hold a row i of
// dim numbers for each channel i, one for each channel j of the same head.
//
// forward:  scores[i][j] = q_i . k_j            norms[i] = q_i . q_i, norms[c + j] = k_j . k_j
//           cosine[i][j] = scores[i][j] / (|q_i| |k_j|)
//           attention[i] = softmax over j of temperature * cosine[i][j]
//           y_i = sum over j of attention[i][j] v_j
#pragma once
# include "../constants.h"
# include "launch.cuh"

namespace film {
namespace gpu {

struct Heads {
    long c, dim, plane;
    // The first channel of the head of `channel`.
    FILM_BODY long first(long channel) const { return channel / dim * dim; }
    // Channel `channel` of part 0 (q), 1 (k) or 2 (v) of image b.
    FILM_BODY const float* part(const float* x, long b, long part, long channel) const {
        return x + ((3 * b + part) * c + channel) * plane;
    }
};

FILM_BODY float length(float square) {
    const float root = sqrtf(square);
    return root > (float)MIN_NORM ? root : (float)MIN_NORM;
}

// scores: groups are the entries of (b, c, dim), items the pixels.
struct Scores {
    Heads heads;
    const float* x;
    float* scores;
    FILM_BODY void operator()(long group, long p, float* sums) const {
        const long row = group / heads.dim, b = row / heads.c, i = row % heads.c;
        const long j = heads.first(i) + group % heads.dim;
        sums[0] += heads.part(x, b, 0, i)[p] * heads.part(x, b, 1, j)[p];
    }
    FILM_BODY void write(long group, int, float total) const { scores[group] = total; }
};

// norms: groups are the entries of (b, 2 c), items the pixels.
struct Norms {
    Heads heads;
    const float* x;
    float* norms;
    FILM_BODY void operator()(long group, long p, float* sums) const {
        const long b = group / (2 * heads.c), channel = group % (2 * heads.c);
        const float value = heads.part(x, b, 0, channel)[p];
        sums[0] += value * value;
    }
    FILM_BODY void write(long group, int, float total) const { norms[group] = total; }
};

// What the small arrays say about the pair (i, j) of row `row` = b * c + i.
struct Pairs {
    Heads heads;
    const float *temperature, *scores, *norms;
    FILM_BODY float scale(long row) const { return temperature[row % heads.c / heads.dim]; }
    FILM_BODY float lengths(long row, long j) const {
        const long b = row / heads.c, i = row % heads.c, k = heads.c + heads.first(i) + j;
        return length(norms[2 * b * heads.c + i]) * length(norms[2 * b * heads.c + k]);
    }
    FILM_BODY float cosine(long row, long j) const { return scores[row * heads.dim + j] / lengths(row, j); }
};

// For every row.
struct Softmax {
    Pairs pairs;
    float* attention;
    FILM_BODY void operator()(long row) const {
        const long dim = pairs.heads.dim;
        float *out = attention + row * dim, largest = -INFINITY, sum = 0;
        for (long j = 0; j < dim; j++) {
            out[j] = pairs.scale(row) * pairs.cosine(row, j);
            largest = out[j] > largest ? out[j] : largest;
        }
        for (long j = 0; j < dim; j++) sum += out[j] = expf(out[j] - largest);
        for (long j = 0; j < dim; j++) out[j] /= sum;
    }
};

// For every element of y.
struct Mix {
    Heads heads;
    const float *x, *attention;
    float* y;
    FILM_BODY void operator()(long index) const {
        const long row = index / heads.plane, p = index % heads.plane;
        const float* v = heads.part(x, row / heads.c, 2, heads.first(row % heads.c));
        float sum = 0;
        for (long j = 0; j < heads.dim; j++) sum += attention[row * heads.dim + j] * v[j * heads.plane + p];
        y[index] = sum;
    }
};

// forward:  y_i = sum over j of attention[i][j] v_j
// backward: dattention[i][j] = dy_i . v_j
//
// Groups are the entries of (b, c, dim), items the pixels.
struct AttentionGrad {
    Heads heads;
    const float *x, *dy;
    float* dattention;
    FILM_BODY void operator()(long group, long p, float* sums) const {
        const long row = group / heads.dim, b = row / heads.c;
        const long j = heads.first(row % heads.c) + group % heads.dim;
        sums[0] += dy[row * heads.plane + p] * heads.part(x, b, 2, j)[p];
    }
    FILM_BODY void write(long group, int, float total) const { dattention[group] = total; }
};

// forward:  attention[i] = softmax(z[i])
// backward: dz[i][j] = attention[i][j] (dattention[i][j] - sum over k of attention[i][k] dattention[i][k])
//
// For every row.
struct SoftmaxGrad {
    long dim;
    const float *attention, *dattention;
    float* dz;
    FILM_BODY void operator()(long row) const {
        const float *a = attention + row * dim, *da = dattention + row * dim;
        float mean = 0;
        for (long j = 0; j < dim; j++) mean += a[j] * da[j];
        for (long j = 0; j < dim; j++) dz[row * dim + j] = a[j] * (da[j] - mean);
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
        const long dim = pairs.heads.dim, i = item / dim % dim, j = item % dim;
        const long row = item / dim / dim * pairs.heads.c + head * dim + i;
        sums[0] += dz[row * dim + j] * pairs.cosine(row, j);
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
        const long p = index % heads.plane, b = index / heads.plane / (3 * heads.c);
        const long channel = index / heads.plane % heads.c, part = index / heads.plane / heads.c % 3;
        const long first = heads.first(channel), own = channel - first;
        float sum = 0, shrink = 0;
        for (long other = 0; other < heads.dim; other++) {
            // The pair has the channel as i (part 0) or as j (parts 1 and 2).
            const long row = b * heads.c + (part == 0 ? channel : first + other), j = part == 0 ? other : own;
            if (part == 2) {
                sum += attention[row * heads.dim + j] * dy[row * heads.plane + p];
                continue;
            }
            const float pull = pairs.scale(row) * dz[row * heads.dim + j] / pairs.lengths(row, j);
            sum += pull * heads.part(x, b, 1 - part, first + other)[p];
            shrink += pull * pairs.scores[row * heads.dim + j];
        }
        if (part < 2) {
            const float square = pairs.norms[(2 * b + part) * heads.c + channel];
            // A norm below MIN_NORM is a constant.
            if (sqrtf(square) > (float)MIN_NORM) sum -= shrink / square * x[index];
        }
        dx[index] = sum;
    }
};

}  // namespace gpu
}  // namespace film
