// The attention of a text to the tokens of an image, averaged over the text, and what it guides. ../text.h and
// ../elementwise.h compute the same on the CPU; ../derivations.md derives the gradients.
#pragma once
# include <cfloat>
# include "launch.cuh"

namespace film {
namespace gpu {

// Sums over the tokens seen so far, of exp(score - largest) and of that times a weight. One pass finds them and the
// largest score (Milakov & Gimelshein 2018, arXiv 1805.02867).
struct OnlineSoftmax {
    float largest, sum, weighted;
    FILM_BODY static OnlineSoftmax none() { return {-FLT_MAX, 0, 0}; }
    FILM_BODY void add(const OnlineSoftmax& other) {
        const float difference = largest - other.largest, factor = expf(-fabsf(difference));
        const float own = difference < 0 ? factor : 1, others = difference < 0 ? 1 : factor;
        largest = difference < 0 ? other.largest : largest;
        sum = own * sum + others * other.sum;
        weighted = own * weighted + others * other.weighted;
    }
};

// scores (n, queries, tokens) -> y (n, tokens), the mean of the attention over the queries, and `rows` (n, queries, 2):
//
// h_l = max over m of scores_lm, w_l = 1 / (queries * sum over m of exp(scores_lm - h_l))
// y_m = sum over l of exp(scores_lm - h_l) w_l
//
// First h and w, for every row (n, queries).
struct MeanAttentionRows {
    long queries, tokens;
    const float* scores;
    float* rows;
    FILM_BODY void operator()(long row, const Block& block) const {
        const float* s = scores + row * tokens;
        const auto add = [&](long m, OnlineSoftmax& all) { all.add({s[m], 1, 0}); };
        const OnlineSoftmax all = block.total<OnlineSoftmax>(tokens, add);
        block.each(2, [&](long k) { rows[2 * row + k] = k == 0 ? all.largest : 1 / (queries * all.sum); });
    }
};

// Then y, for every element.
struct MeanAttention {
    long queries, tokens;
    const float *scores, *rows;
    float* y;
    FILM_BODY void operator()(long index) const {
        const long first = index / tokens * queries, m = index % tokens;
        float sum = 0;
        for (long row = first; row < first + queries; row++)
            sum += expf(scores[row * tokens + m] - rows[2 * row]) * rows[2 * row + 1];
        y[index] = sum;
    }
};

// forward:  y_m = mean over l of P_lm, with P_l = softmax(scores_l)
// backward: dscores_lm = P_lm / queries (dy_m - sum over m' of P_lm' dy_m')
//
// For every row. It is read from memory once, and once more from the cache.
struct MeanAttentionBackward {
    long queries, tokens;
    const float *scores, *dy;
    float* dscores;
    FILM_BODY void operator()(long row, const Block& block) const {
        const float *s = scores + row * tokens, *dmean = dy + row / queries * tokens;
        const auto add = [&](long m, OnlineSoftmax& all) { all.add({s[m], 1, dmean[m]}); };
        const OnlineSoftmax all = block.total<OnlineSoftmax>(tokens, add);
        const float weight = 1 / (queries * all.sum), mean = all.weighted / all.sum;
        block.each(tokens, [&](long m) {
            dscores[row * tokens + m] = expf(s[m] - all.largest) * weight * (dmean[m] - mean);
        });
    }
};

// tokens (b, count, width) times scale (b, width), for every element.
struct ScaleTokens {
    long count, width;
    const float *tokens, *scale;
    float* y;
    FILM_BODY void operator()(long index) const {
        y[index] = tokens[index] * scale[index / width / count * width + index % width];
    }
};

// forward:  y[m] = tokens[m] * scale
// backward: dtokens[m] = dy[m] * scale,  dscale = sum over m of dy[m] * tokens[m]
//
// For every element of `parts` (step, b, width): part k is the sum over every `step`-th token from k. Total adds them.
struct ScaleTokensBackward {
    long step, images, count, width;
    const float *tokens, *scale, *dy;
    float *dtokens, *parts;
    FILM_BODY void operator()(long index) const {
        const long channel = index % (images * width), start = channel / width * count * width + channel % width;
        float sum = 0;
        for (long m = index / (images * width); m < count; m += step) {
            const long at = start + m * width;
            sum += dy[at] * tokens[at];
            dtokens[at] = dy[at] * scale[channel];
        }
        parts[index] = sum;
    }
};

}  // namespace gpu
}  // namespace film
