// Text cross-attention, averaged over its queries: text positions are the queries, image tokens are keys and values. As
// torch.nn.MultiheadAttention computes it, followed by a mean over the queries. derivations.md derives both passes.
//
// Per image and head, for the queries l and the tokens m, with scale = 1 / sqrt(dim):
//
//     q_l = scale (Wq text_l + bq),  k_m = Wk token_m      the head's rows of Wq and Wk
//     S[l][m] = q_l k_m
//     P[l][m] = softmax over m of S[l][m]
//     mean[m] = mean over l of P[l][m]
//     pooled = sum over m of mean[m] token_m               (embed)
//     values[j] = Wv[j] pooled + bv[j]                     for the head's rows j of Wv
// and then, for all heads together,
//     y = Wo values + bo
//
// The mean over the queries is taken before the value and output projections, which are linear: they see one vector per
// head instead of every token or every query.
#pragma once
# include "gemm.h"
# include "rows.h"

namespace film {

struct TextShape {
    long batch, queries, tokens;
    int embed, heads;  // embed: width of text positions and tokens
    long ldk;          // floats in a row of `keys`, at least vectors(tokens) * LANES
    int dim() const { return embed / heads; }
};

struct TextWeights {
    const float *in_weight, *in_bias, *out_weight, *out_bias;  // (3 embed, embed), (3 embed), (embed, embed), (embed)
    const float* query(int embed) const { return in_weight; }
    const float* key(int embed) const { return in_weight + (long)embed * embed; }
    const float* value(int embed) const { return in_weight + 2L * embed * embed; }
};

// Tokens that are processed at a time: their keys of one head and their scores fit the second-level cache. A multiple
// of TILE vectors.
constexpr long TOKEN_CHUNK = 576;

// Tokens that a thread takes at a time, a multiple of TILE vectors and at most TOKEN_CHUNK: with many threads fewer, so
// that each gets as many.
inline long thread_chunk(long tokens) {
    const long threads = omp_get_max_threads(), tile = TILE * LANES;
    const long each = (tokens + threads * TOKEN_CHUNK - 1) / (threads * TOKEN_CHUNK);  // chunks of a thread
    return ((tokens + threads * each - 1) / (threads * each) + tile - 1) / tile * tile;
}

// A matrix (rows, columns) whose rows fill complete vectors, as outer_add reads them: the array itself if they do,
// otherwise a copy padded with zeros.
struct PaddedRows {
    long ld;
    floats copy;
    const float* p;

    PaddedRows(const float* from, long rows, long columns) : ld(vectors(columns) * LANES), p(from) {
        if (ld == columns) return;
        copy.resize(rows * ld);
        for (long i = 0; i < rows; i++) std::memcpy(&copy[i * ld], from + i * columns, columns * sizeof(float));
        p = copy.data();
    }
    PaddedRows(const PaddedRows&) = delete;
    const float* operator[](long row) const { return p + row * ld; }
};

// The scaled queries and the keys of one image, transposed: a row for each of the `embed` channels.
struct QueriesAndKeys {
    long ldq;        // of complete vectors
    floats q;        // (embed, ldq)
    const float* k;  // (embed, TextShape::ldk)

    explicit QueriesAndKeys(const TextShape& s) : ldq(vectors(s.queries) * LANES), q(s.embed * ldq) {}

    // q of text (queries, embed).
    void project_queries(const TextShape& s, const TextWeights& weights, const float* text) {
        const int embed = s.embed;
        const float scale = 1.0f / std::sqrt((float)s.dim());
        floats text_transposed(embed * ldq);
#pragma omp parallel
        {
#pragma omp for schedule(static)
            for (int i = 0; i < embed; i += LANES)
                transpose(text + i, embed, s.queries, std::min(LANES, embed - i), &text_transposed[i * ldq], ldq, false);
#pragma omp for schedule(static)
            for (int i = 0; i < embed; i += PANEL) {
                Packed query_weight(weights.query(embed) + (long)i * embed, std::min(PANEL, embed - i), embed, embed);
                float* rows = &q[i * ldq];
                gemm(
                    query_weight, Strided{text_transposed.data(), ldq}, s.queries, rows, ldq, false, weights.in_bias + i
                );
                for (int r = 0; r < query_weight.rows; r++)
                    for (long query = 0; query < ldq; query++)
                        rows[r * ldq + query] = query < s.queries ? rows[r * ldq + query] * scale : 0.0f;
            }
        }
    }
};

// keys (embed, ldk) of one image's tokens (tokens, embed). Their bias is left out: it adds the same number to all
// scores of a query, which does not change the softmax. Its gradient is zero.
inline void project_keys(const TextShape& s, const TextWeights& weights, const float* tokens, float* keys) {
    const int embed = s.embed;
    const long size = thread_chunk(s.tokens);
    Packed key_weight;
    key_weight.reserve(embed, embed);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int p = 0; p < key_weight.panels; p++) key_weight.pack_panel(p, weights.key(embed), embed);
        const long ld = TOKEN_CHUNK + LANES;
        unset_floats chunk(embed * ld);
#pragma omp for schedule(static)
        for (long start = 0; start < s.tokens; start += size) {
            long n = std::min(size, s.tokens - start);
            transpose(tokens + start * embed, embed, n, embed, chunk.data, ld);
            gemm(key_weight, Strided{chunk.data, ld}, n, keys + start, s.ldk);
        }
    }
}

// The attention P of one head for some of the queries, in two factors: with the chunk that holds the token,
//
//     P[query][token] = exps[query][token] * weight[query][chunk]
//     exps = exp(score - highest score of the chunk)
//     weight = exp(highest of the chunk - highest of all) / sum over all tokens of exp(score - highest of all)
//
// So a chunk of scores is exponentiated while it is in the cache, before the highest score of all is known.
struct HeadAttention {
    long chunks, ld;
    unset_floats exps;           // (room, ld)
    std::vector<double> weight;  // (room, chunks)

    // Has room for this many queries.
    HeadAttention(const TextShape& s, long room)
        : chunks((s.tokens + TOKEN_CHUNK - 1) / TOKEN_CHUNK), ld((vectors(s.tokens) | 1) * LANES), exps(room * ld),
          weight(room * chunks) {}

    // Rows `row` and following of `exps` and `weight`, for `count` queries, at most a panel: their scores stay in the
    // second-level cache until they are used.
    void compute(const TextShape& s, const QueriesAndKeys& qk, int head, long first_query, long count, long row = 0) {
        const int dim = s.dim();
        const Packed queries(&qk.q[(long)head * dim * qk.ldq + first_query], (int)count, dim, qk.ldq, true);
        std::vector<double> tops(count * chunks);
        for (long chunk = 0; chunk < chunks; chunk++) {
            const long start = chunk * TOKEN_CHUNK, n = std::min(TOKEN_CHUNK, s.tokens - start);
            float* scores = &exps[row * ld + start];
            gemm(queries, Streamed{&qk.k[(long)head * dim * s.ldk + start], s.ldk}, n, scores, ld);
            vec highest[PANEL];
            highest_scores(scores, count, n, highest);
            for (long i = 0; i < count; i++)
                tops[i * chunks + chunk] =
                    exponentiate(scores + i * ld, n, highest[i], weight[(row + i) * chunks + chunk]);
        }
        for (long query = 0; query < count; query++) {
            double *factor = &tops[query * chunks], *w = &weight[(row + query) * chunks], sum = 0;
            const double top = *std::max_element(factor, factor + chunks);
            for (long chunk = 0; chunk < chunks; chunk++)
                sum += w[chunk] * (factor[chunk] = std::exp(factor[chunk] - top));
            for (long chunk = 0; chunk < chunks; chunk++) w[chunk] = factor[chunk] / sum;
        }
    }

    // The highest of each row's complete vectors, lane by lane. All rows at once, because a comparison waits for the one
    // before it in the same row.
    void highest_scores(const float* scores, long count, long n, vec* highest) const {
        const float* rows[PANEL];
        for (long i = 0; i < PANEL; i++) {
            rows[i] = scores + std::min(i, count - 1) * ld;
            highest[i] = splat(rows[i][0]);
        }
        for (long v = 0; v < n / LANES; v++)
#pragma GCC unroll 8
            for (int i = 0; i < PANEL; i++) {
                const vec x = load(rows[i] + v * LANES);
                highest[i] = x > highest[i] ? x : highest[i];
            }
    }

    // row = exp(row - its highest value) for n values, zeros after them to the end of the vector. `top` is from
    // highest_scores. Returns the highest value; `total` becomes the sum of the row.
    static float exponentiate(float* row, long n, vec top, double& total) {
        const long complete = n / LANES, end = vectors(n) * LANES;
        float highest = max_lanes(top);
        for (long i = complete * LANES; i < n; i++) highest = std::max(highest, row[i]);
        vec sum{};
        for (long v = 0; v < complete; v++) {
            vec x = exp_negative(load(row + v * LANES) - highest);
            store(row + v * LANES, x);
            sum += x;
        }
        total = sum_lanes(sum);
        for (long i = complete * LANES; i < end; i++) total += row[i] = i < n ? std::exp(row[i] - highest) : 0.0f;
        return highest;
    }

    // mean[token] += sum over `count` queries of P[query][token] / queries, for at most a panel of rows from `row` on.
    void add_mean(const TextShape& s, long count, float* mean, long row = 0) const {
        for (long chunk = 0; chunk < chunks; chunk++) {
            const long start = chunk * TOKEN_CHUNK, n = std::min(TOKEN_CHUNK, s.tokens - start);
            float w[PANEL];
            const float* rows[PANEL];
            for (long i = 0; i < PANEL; i++) {
                const long query = row + std::min(i, count - 1);
                w[i] = i < count ? (float)(weight[query * chunks + chunk] / s.queries) : 0.0f;
                rows[i] = &exps[query * ld + start];
            }
            for (long v = 0; v < vectors(n); v++) {
                vec sum = load(mean + start + v * LANES);
#pragma GCC unroll 8
                for (int i = 0; i < PANEL; i++) sum += w[i] * load(rows[i] + v * LANES);
                store(mean + start + v * LANES, sum);
            }
        }
    }

    // Row `row` of `exps` becomes a row of dS = P / queries (dmean - along), along = sum over tokens of P dmean.
    void differentiate(const TextShape& s, const float* dmean, long row) {
        const double* w = &weight[row * chunks];
        double along = 0;
        for (long chunk = 0; chunk < chunks; chunk++) {
            const long start = chunk * TOKEN_CHUNK, n = std::min(TOKEN_CHUNK, s.tokens - start);
            const float *p = &exps[row * ld + start], *dm = dmean + start;
            float sum = 0;
            for (long i = 0; i < n; i++) sum += p[i] * dm[i];
            along += w[chunk] * sum;
        }
        for (long chunk = 0; chunk < chunks; chunk++) {
            const long start = chunk * TOKEN_CHUNK, n = std::min(TOKEN_CHUNK, s.tokens - start);
            const float factor = (float)(w[chunk] / s.queries), mid = (float)along, *dm = dmean + start;
            float* p = &exps[row * ld + start];
            for (long i = 0; i < n; i++) p[i] *= factor * (dm[i] - mid);
        }
    }
};

// The pooled tokens (heads, embed) = mean tokens, and their values (embed), in double.
struct Pooled {
    std::vector<double> tokens, values;

    // mean (heads, ldm)
    Pooled(const TextShape& s, const TextWeights& weights, const PaddedRows& rows, const float* mean, long ldm)
        : tokens((long)s.heads * s.embed), values(s.embed) {
        const long size = thread_chunk(s.tokens);
        // One partial sum per thread, added in the order of the threads: the same sum in every run.
        std::vector<std::vector<double>> parts(omp_get_max_threads());
#pragma omp parallel
        {
            std::vector<double>& part = parts[omp_get_thread_num()];
            part.resize(tokens.size());
#pragma omp for schedule(static)
            for (long start = 0; start < s.tokens; start += size)
                outer_add(
                    mean + start, ldm, s.heads, std::min(size, s.tokens - start), rows[start], rows.ld, s.embed,
                    part.data()
                );
#pragma omp for schedule(static)
            for (size_t i = 0; i < tokens.size(); i++)
                for (auto& each : parts) tokens[i] += each[i];
#pragma omp for schedule(static)
            for (int j = 0; j < s.embed; j++) {
                const float* weight = weights.value(s.embed) + (long)j * s.embed;
                const double* head_tokens = &tokens[(long)(j / s.dim()) * s.embed];
                double sum = weights.in_bias[2 * s.embed + j];
                for (int i = 0; i < s.embed; i++) sum += weight[i] * head_tokens[i];
                values[j] = sum;
            }
        }
    }
};

// The work of the attention for the threads: the panels of queries of each head, in as many groups as make the slowest
// thread fastest. A group costs about a quarter of a panel, for its own part of the mean.
inline long query_groups(const TextShape& s) {
    const long threads = omp_get_max_threads(), panels = (s.queries + PANEL - 1) / PANEL;
    long best = 1;
    double least = 1e300;
    for (long groups = 1; groups <= panels; groups++) {
        const long units = (s.heads * groups + threads - 1) / threads, size = (panels + groups - 1) / groups;
        const double cost = units * (size + 0.25);
        if (cost < least) least = cost, best = groups;
    }
    return best;
}

// text (batch, queries, embed), tokens (batch, tokens, embed) -> y (batch, 1, embed). keys (batch, embed, ldk) are kept
// for the backward pass.
inline void pooled_text_attention(
    const TextShape& s, const TextWeights& weights, const float* text, const float* tokens, float* y, float* keys
) {
    const long ldm = vectors(s.tokens) * LANES, panels = (s.queries + PANEL - 1) / PANEL, groups = query_groups(s);
    QueriesAndKeys qk(s);
    unset_floats mean(groups * s.heads * ldm);  // of each group, then of all
    for (long b = 0; b < s.batch; b++) {
        const float* image_tokens = tokens + b * s.tokens * s.embed;
        float* image_keys = keys + b * s.embed * s.ldk;
        project_keys(s, weights, image_tokens, image_keys);
        qk.project_queries(s, weights, text + b * s.queries * s.embed);
        qk.k = image_keys;
#pragma omp parallel
        {
            // A panel of queries at a time: its scores for all tokens stay in the second-level cache until they are
            // averaged.
            HeadAttention attention(s, PANEL);
#pragma omp for schedule(dynamic)
            for (long unit = 0; unit < groups * s.heads; unit++) {
                const long group = unit / s.heads, head = unit % s.heads;
                float* part = &mean[unit * ldm];
                std::fill(part, part + ldm, 0.0f);
                const long end = std::min(s.queries, panels * (group + 1) / groups * PANEL);
                for (long query = panels * group / groups * PANEL; query < end; query += PANEL) {
                    const long count = std::min<long>(PANEL, end - query);
                    attention.compute(s, qk, head, query, count);
                    attention.add_mean(s, count, part);
                }
            }
#pragma omp for schedule(static)
            for (long start = 0; start < s.heads * ldm; start += LANES)
                for (long group = 1; group < groups; group++)
                    store(&mean[start], load(&mean[start]) + load(&mean[group * s.heads * ldm + start]));
        }
        Pooled pooled(s, weights, PaddedRows(image_tokens, s.tokens, s.embed), mean.data, ldm);
#pragma omp parallel for schedule(static)
        for (int o = 0; o < s.embed; o++) {
            double sum = weights.out_bias[o];
            for (int i = 0; i < s.embed; i++) sum += weights.out_weight[(long)o * s.embed + i] * pooled.values[i];
            y[b * s.embed + o] = (float)sum;
        }
    }
}

struct TextGrads {
    float *text, *tokens, *in_weight, *in_bias, *out_weight, *out_bias;
};

// dy (batch, 1, embed); keys as the forward pass wrote them. The attention is computed again.
//
// forward:  y = Wo values + bo
// backward: dWo = dy values^T,  dbo = dy,  dvalues = Wo^T dy
// forward:  values[j] = Wv[j] pooled + bv[j]
// backward: dWv[j] = dvalues[j] pooled^T,  dbv = dvalues,  dpooled = sum over the head's j of dvalues[j] Wv[j]
// forward:  pooled = sum over m of mean[m] token_m
// backward: dmean[m] = dpooled token_m,  dtoken_m += mean[m] dpooled
// forward:  mean[m] = sum over l of P[l][m] / queries,  P[l] = softmax of S[l]
// backward: dS[l][m] = P[l][m] / queries (dmean[m] - sum over m of P[l][m] dmean[m])
// forward:  S[l][m] = q_l k_m
// backward: dq_l = scale (sum over m of dS[l][m] k_m),  dk_m = sum over l of dS[l][m] q_l
// forward:  q_l = scale (Wq text_l + bq),  k_m = Wk token_m
// backward: dWq = sum over l of dq_l text_l^T,  dbq = sum over l of dq_l,  dtext_l = Wq^T dq_l    (dq_l has the scale)
//           dWk = sum over m of dk_m token_m^T,  dtoken_m += Wk^T dk_m
inline void pooled_text_attention_backward(
    const TextShape& s, const TextWeights& weights, const float* text, const float* tokens, const float* keys,
    const float* dy, TextGrads grads
) {
    const int embed = s.embed, dim = s.dim();
    const long ldm = vectors(s.tokens) * LANES;
    const float scale = 1.0f / std::sqrt((float)dim);
    QueriesAndKeys qk(s);
    floats mean(s.heads * ldm), dmean(s.heads * ldm), dq(embed * qk.ldq);
    unset_floats dk(embed * s.ldk);
    std::vector<double> in_weight(3L * embed * embed), in_bias(3 * embed);
    std::vector<double> out_weight((long)embed * embed), out_bias(embed);
    for (long b = 0; b < s.batch; b++) {
        const float *image_text = text + b * s.queries * embed, *image_tokens = tokens + b * s.tokens * embed;
        float* dtokens = grads.tokens + b * s.tokens * embed;
        const float* image_dy = dy + b * embed;
        std::fill(mean.begin(), mean.end(), 0.0f);
        qk.project_queries(s, weights, image_text);
        qk.k = keys + b * embed * s.ldk;

        // From y to the pooled tokens. Needs the weights only, not the attention.
        std::vector<double> dvalues(embed);
        for (int o = 0; o < embed; o++)
            for (int i = 0; i < embed; i++) dvalues[i] += weights.out_weight[(long)o * embed + i] * (double)image_dy[o];
        floats dpooled((long)s.heads * embed);
        for (int j = 0; j < embed; j++)
            for (int i = 0; i < embed; i++)
                dpooled[(long)(j / dim) * embed + i] += (float)(weights.value(embed)[(long)j * embed + i] * dvalues[j]);

        // dmean (heads, tokens) = dpooled tokens^T
        Packed dpooled_packed(dpooled.data(), s.heads, embed, embed);
#pragma omp parallel
        {
            const long ld = TOKEN_CHUNK + LANES;
            floats chunk(embed * ld), part(PANEL * ld * ((s.heads + PANEL - 1) / PANEL));
#pragma omp for schedule(static)
            for (long start = 0; start < s.tokens; start += TOKEN_CHUNK) {
                long n = std::min(TOKEN_CHUNK, s.tokens - start);
                transpose(image_tokens + start * embed, embed, n, embed, chunk.data(), ld);
                gemm(dpooled_packed, Strided{chunk.data(), ld}, n, part.data(), ld);
                for (int head = 0; head < s.heads; head++)
                    std::memcpy(&dmean[head * ldm + start], &part[head * ld], n * sizeof(float));
            }
        }

        // Through the softmax of each head, to its rows of dq and dk.
#pragma omp parallel
        {
            HeadAttention attention(s, s.queries);
            const long ldd = vectors(dim) * LANES;
            floats keys(TOKEN_CHUNK * ldd);  // of a head and a chunk, transposed
#pragma omp for schedule(dynamic)
            for (int head = 0; head < s.heads; head++) {
                for (long query = 0; query < s.queries; query += PANEL) {
                    const long count = std::min<long>(PANEL, s.queries - query);
                    attention.compute(s, qk, head, query, count, query);
                    attention.add_mean(s, count, &mean[head * ldm], query);
                    for (long i = 0; i < count; i++) attention.differentiate(s, &dmean[head * ldm], query + i);
                }
                // dq = scale dS k and dk = dS^T q, a chunk of dS at a time
                const float* head_keys = &qk.k[(long)head * dim * s.ldk];
                const Packed head_queries(&qk.q[(long)head * dim * qk.ldq], dim, s.queries, qk.ldq);
                std::vector<double> dq_head(s.queries * dim);
                for (long start = 0; start < s.tokens; start += TOKEN_CHUNK) {
                    const long n = std::min(TOKEN_CHUNK, s.tokens - start);
                    const float* ds = &attention.exps[start];
                    transpose(head_keys + start, s.ldk, dim, n, keys.data(), ldd);
                    outer_add(ds, attention.ld, s.queries, n, keys.data(), ldd, dim, dq_head.data());
                    gemm(head_queries, Strided{ds, attention.ld}, n, &dk[(long)head * dim * s.ldk + start], s.ldk);
                }
                for (long query = 0; query < s.queries; query++)
                    for (int i = 0; i < dim; i++)
                        dq[(head * dim + i) * qk.ldq + query] = (float)dq_head[query * dim + i] * scale;
            }
        }

        // The value and output projections' weights, for which the mean is needed.
        const PaddedRows token_rows(image_tokens, s.tokens, embed), text_rows(image_text, s.queries, embed);
        Pooled pooled(s, weights, token_rows, mean.data(), ldm);
        for (int j = 0; j < embed; j++) {
            in_bias[2 * embed + j] += dvalues[j];
            out_bias[j] += image_dy[j];
            for (int i = 0; i < embed; i++) {
                in_weight[(2L * embed + j) * embed + i] += dvalues[j] * pooled.tokens[(long)(j / dim) * embed + i];
                out_weight[(long)j * embed + i] += image_dy[j] * pooled.values[i];
            }
        }

        // To the tokens, through the keys and through the pooled tokens; and the keys' weight.
        Packed key_transposed(weights.key(embed), embed, embed, embed, true);
        Packed dpooled_transposed(dpooled.data(), embed, s.heads, embed, true);
        std::vector<std::vector<double>> dkey(omp_get_max_threads(), std::vector<double>((long)embed * embed));
#pragma omp parallel
        {
            const long ld = TOKEN_CHUNK + LANES;
            floats chunk(embed * ld);
            std::vector<double>& part = dkey[omp_get_thread_num()];
#pragma omp for schedule(static)
            for (long start = 0; start < s.tokens; start += TOKEN_CHUNK) {
                long n = std::min(TOKEN_CHUNK, s.tokens - start);
                gemm(key_transposed, Strided{&dk[start], s.ldk}, n, chunk.data(), ld);
                gemm(dpooled_transposed, Strided{&mean[start], ldm}, n, chunk.data(), ld, true);
                transpose(chunk.data(), ld, embed, n, dtokens + start * embed, embed, false);
                outer_add(&dk[start], s.ldk, embed, n, token_rows[start], token_rows.ld, embed, part.data());
            }
        }
        for (auto& part : dkey)
            for (long i = 0; i < (long)embed * embed; i++) in_weight[(long)embed * embed + i] += part[i];

        // To the text, and the queries' weight and bias.
        floats dtext(embed * qk.ldq);
        Packed query_transposed(weights.query(embed), embed, embed, embed, true);
        gemm(query_transposed, Strided{dq.data(), qk.ldq}, s.queries, dtext.data(), qk.ldq);
        transpose(dtext.data(), qk.ldq, embed, s.queries, grads.text + b * s.queries * embed, embed, false);
        outer_add(dq.data(), qk.ldq, embed, s.queries, text_rows[0], text_rows.ld, embed, in_weight.data());
        for (int j = 0; j < embed; j++)
            for (long query = 0; query < s.queries; query++) in_bias[j] += dq[j * qk.ldq + query];
    }
    write(in_weight, grads.in_weight);
    write(in_bias, grads.in_bias);
    write(out_weight, grads.out_weight);
    write(out_bias, grads.out_bias);
}

}  // namespace film
