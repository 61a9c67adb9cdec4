// Text attention pooled over its queries: text positions ask, image tokens answer, the answers are averaged.
#pragma once
# include "gemm.h"
# include "rows.h"

namespace film {

struct TextShape {
    long batch, queries, tokens;
    int width, heads;
    int dim() const { return width / heads; }
};

struct TextWeights {
    const float *in_weight, *in_bias, *out_weight, *out_bias;
    const float* query(int e) const { return in_weight; }
    const float* key(int e) const { return in_weight + (long)e * e; }
    const float* value(int e) const { return in_weight + 2L * e * e; }
};

// Tokens handled at a time: their keys for one head and their scores fit the second-level cache; a whole number
// of tiles.
constexpr long BLOCK = 576;

// Rows that fill whole vectors, as `outer_add` reads them: the matrix itself where they do, else a copy with zeros.
struct WholeRows {
    long ld;
    floats copy;
    const float* p;

    WholeRows(const float* a, long count, long width) : ld(vectors(width) * LANES), p(a) {
        if (ld == width) return;
        copy.resize(count * ld);
        for (long i = 0; i < count; i++) std::memcpy(&copy[i * ld], a + i * width, width * sizeof(float));
        p = copy.data();
    }
    WholeRows(const WholeRows&) = delete;
    const float* operator[](long row) const { return p + row * ld; }
};

// What one image's attention needs of the whole: scaled queries and keys, transposed (channels in rows).
struct QueriesAndKeys {
    long ldq, ldk;
    floats q;        // (width, ldq)
    unset_floats k;  // (width, ldk)

    QueriesAndKeys(const TextShape& s)
        : ldq(vectors(s.queries) * LANES), ldk((vectors(s.tokens) | 1) * LANES), q(s.width * ldq), k(s.width * ldk) {}

    // text (queries, width), tokens (tokens, width). The keys' bias shifts all scores of a query alike, which the
    // softmax does not see: it is left out.
    void project(const TextShape& s, const TextWeights& w, const float* text, const float* tokens) {
        const int e = s.width;
        const float scale = 1.0f / std::sqrt((float)s.dim());
        floats turned(e * ldq);
        transpose(text, e, s.queries, e, turned.data(), ldq);
        Packed query(w.query(e), e, e, e), key(w.key(e), e, e, e);
        gemm(query, Strided{turned.data(), ldq}, s.queries, q.data(), ldq, false, w.in_bias);
        for (int i = 0; i < e; i++)
            for (long l = 0; l < ldq; l++) q[i * ldq + l] = l < s.queries ? q[i * ldq + l] * scale : 0.0f;
#pragma omp parallel
        {
            const long ld = BLOCK + LANES;
            floats block(e * ld);
#pragma omp for schedule(static)
            for (long t = 0; t < s.tokens; t += BLOCK) {
                long n = std::min(BLOCK, s.tokens - t);
                transpose(tokens + t * e, e, n, e, block.data(), ld);
                gemm(key, Strided{block.data(), ld}, n, &k[t], ldk);
            }
        }
    }
};

// One head's attention for some of the queries, in rows: exp(score - top of its block), and per block and query the
// weight that makes it a probability.
struct HeadAttention {
    long blocks, ld;
    unset_floats e;              // (room, ld)
    std::vector<double> weight;  // (room, blocks)

    // For up to `room` queries at a time.
    HeadAttention(const TextShape& s, long room)
        : blocks((s.tokens + BLOCK - 1) / BLOCK), ld((vectors(s.tokens) | 1) * LANES), e(room * ld),
          weight(room * blocks) {}

    void compute(const TextShape& s, const QueriesAndKeys& qk, int head, long first, long count) {
        const int d = s.dim();
        // A panel of queries at a time, so that its scores are still in the first-level cache when exp needs them.
        std::vector<Packed> panels;
        for (long l = 0; l < count; l += PANEL)
            panels.emplace_back(
                &qk.q[(long)head * d * qk.ldq + first + l], (int)std::min<long>(PANEL, count - l), d, qk.ldq, true
            );
        std::vector<double> tops(count * blocks);
        for (long b = 0; b < blocks; b++) {
            const long t = b * BLOCK, n = std::min(BLOCK, s.tokens - t);
            for (size_t p = 0; p < panels.size(); p++) {
                float* rows = &e[p * PANEL * ld + t];
                gemm(panels[p], Strided{&qk.k[(long)head * d * qk.ldk + t], qk.ldk}, n, rows, ld);
                for (int i = 0; i < panels[p].m; i++) {
                    const long at = (p * PANEL + i) * blocks + b;
                    tops[at] = exponentiate(rows + i * ld, n, weight[at]);
                }
            }
        }
        for (long l = 0; l < count; l++) {
            double *to_top = &tops[l * blocks], *w = &weight[l * blocks], sum = 0;
            const double top = *std::max_element(to_top, to_top + blocks);
            for (long b = 0; b < blocks; b++) sum += w[b] * (to_top[b] = std::exp(to_top[b] - top));
            for (long b = 0; b < blocks; b++) w[b] = to_top[b] / sum;
        }
    }

    // row = exp(row - its highest value), zero behind its n values; gives the highest, and the sum in `total`.
    static float exponentiate(float* row, long n, double& total) {
        const long whole = n / LANES, end = vectors(n) * LANES;
        float highest = row[0];
        for (long i = whole * LANES; i < n; i++) highest = std::max(highest, row[i]);
        vec top = splat(highest), sum{};
        for (long v = 0; v < whole; v++) {
            vec x = load(row + v * LANES);
            top = x > top ? x : top;
        }
        highest = max_lanes(top);
        for (long v = 0; v < whole; v++) {
            vec x = exp_negative(load(row + v * LANES) - highest);
            store(row + v * LANES, x);
            sum += x;
        }
        total = sum_lanes(sum);
        for (long i = whole * LANES; i < end; i++) total += row[i] = i < n ? std::exp(row[i] - highest) : 0.0f;
        return highest;
    }

    // mean[tokens] += what the `count` queries add to the mean over all of them; a panel of rows is read at once
    void add_mean(const TextShape& s, long count, float* mean) const {
        for (long b = 0; b < blocks; b++) {
            const long t = b * BLOCK, n = std::min(BLOCK, s.tokens - t);
            for (long p = 0; p < count; p += PANEL) {
                float w[PANEL];
                const float* rows[PANEL];
                for (long i = 0; i < PANEL; i++) {
                    const long l = std::min(p + i, count - 1);
                    w[i] = p + i < count ? (float)(weight[l * blocks + b] / s.queries) : 0.0f;
                    rows[i] = &e[l * ld + t];
                }
                for (long v = 0; v < vectors(n); v++) {
                    vec m = load(mean + t + v * LANES);
#pragma GCC unroll 8
                    for (int i = 0; i < PANEL; i++) m += w[i] * load(rows[i] + v * LANES);
                    store(mean + t + v * LANES, m);
                }
            }
        }
    }
};

// What the small projections behind the attention need, in double: pooled (heads, width), values (width).
struct Pooled {
    std::vector<double> tokens, values;

    Pooled(const TextShape& s, const TextWeights& w, const WholeRows& rows, const floats& mean, long ldm)
        : tokens((long)s.heads * s.width), values(s.width) {
        // One partial sum a thread, joined in the order of the threads: the same sum every time.
        std::vector<std::vector<double>> parts(omp_get_max_threads(), tokens);
#pragma omp parallel
        {
            std::vector<double>& part = parts[omp_get_thread_num()];
#pragma omp for schedule(static)
            for (long t = 0; t < s.tokens; t += BLOCK)
                outer_add(
                    &mean[t], ldm, s.heads, std::min(BLOCK, s.tokens - t), rows[t], rows.ld, s.width, part.data()
                );
        }
        for (auto& part : parts) add_to(tokens, part);
        for (int j = 0; j < s.width; j++) {
            values[j] = w.in_bias[2 * s.width + j];
            for (int i = 0; i < s.width; i++)
                values[j] += w.value(s.width)[(long)j * s.width + i] * tokens[(long)(j / s.dim()) * s.width + i];
        }
    }
};

// out (batch, 1, width); text (batch, queries, width), tokens (batch, tokens, width), weights as in
// torch.nn.MultiheadAttention.
inline void pooled_text_attention(
    const TextShape& s, const TextWeights& w, const float* text, const float* tokens, float* out
) {
    const long ldm = vectors(s.tokens) * LANES;
    QueriesAndKeys qk(s);
    floats mean(s.heads * ldm);
    for (long b = 0; b < s.batch; b++) {
        const float* image_tokens = tokens + b * s.tokens * s.width;
        std::fill(mean.begin(), mean.end(), 0.0f);
        qk.project(s, w, text + b * s.queries * s.width, image_tokens);
#pragma omp parallel
        {
            // A panel at a time: its scores for all tokens stay in the second-level cache until they are averaged.
            HeadAttention attention(s, PANEL);
#pragma omp for schedule(dynamic)
            for (int h = 0; h < s.heads; h++)
                for (long l = 0; l < s.queries; l += PANEL) {
                    const long count = std::min<long>(PANEL, s.queries - l);
                    attention.compute(s, qk, h, l, count);
                    attention.add_mean(s, count, &mean[h * ldm]);
                }
        }
        Pooled pooled(s, w, WholeRows(image_tokens, s.tokens, s.width), mean, ldm);
        for (int o = 0; o < s.width; o++) {
            double sum = w.out_bias[o];
            for (int i = 0; i < s.width; i++) sum += w.out_weight[(long)o * s.width + i] * pooled.values[i];
            out[b * s.width + o] = (float)sum;
        }
    }
}

struct TextGrads {
    float *text, *tokens, *in_weight, *in_bias, *out_weight, *out_bias;
};

inline void pooled_text_attention_backward(
    const TextShape& s, const TextWeights& w, const float* text, const float* tokens, const float* dout, TextGrads grads
) {
    const int e = s.width, d = s.dim();
    const long ldm = vectors(s.tokens) * LANES;
    const float scale = 1.0f / std::sqrt((float)d);
    QueriesAndKeys qk(s);
    floats mean(s.heads * ldm), dmean(s.heads * ldm), dk(e * qk.ldk), dq(e * qk.ldq);
    std::vector<double> in_weight(3L * e * e), in_bias(3 * e), out_weight((long)e * e), out_bias(e);
    for (long b = 0; b < s.batch; b++) {
        const float *image_text = text + b * s.queries * e, *image_tokens = tokens + b * s.tokens * e;
        float* dtokens = grads.tokens + b * s.tokens * e;
        const float* g = dout + b * e;
        std::fill(mean.begin(), mean.end(), 0.0f);
        qk.project(s, w, image_text, image_tokens);

        // Behind the pooled tokens everything is a matrix times one vector. Their gradient needs the values' only.
        std::vector<double> dvalues(e);
        for (int o = 0; o < e; o++)
            for (int i = 0; i < e; i++) dvalues[i] += w.out_weight[(long)o * e + i] * (double)g[o];
        floats dpooled((long)s.heads * e);
        for (int j = 0; j < e; j++)
            for (int i = 0; i < e; i++)
                dpooled[(long)(j / d) * e + i] += (float)(w.value(e)[(long)j * e + i] * dvalues[j]);

        // dmean (heads, tokens) = dpooled tokens^T
        Packed by_head(dpooled.data(), s.heads, e, e);
#pragma omp parallel
        {
            const long ld = BLOCK + LANES;
            floats block(e * ld), part(PANEL * ld * ((s.heads + PANEL - 1) / PANEL));
#pragma omp for schedule(static)
            for (long t = 0; t < s.tokens; t += BLOCK) {
                long n = std::min(BLOCK, s.tokens - t);
                transpose(image_tokens + t * e, e, n, e, block.data(), ld);
                gemm(by_head, Strided{block.data(), ld}, n, part.data(), ld);
                for (int h = 0; h < s.heads; h++) std::memcpy(&dmean[h * ldm + t], &part[h * ld], n * sizeof(float));
            }
        }
#pragma omp parallel
        {
            HeadAttention attention(s, s.queries);
            floats keys(s.tokens * vectors(d) * LANES);
#pragma omp for schedule(dynamic)
            for (int h = 0; h < s.heads; h++) {
                attention.compute(s, qk, h, 0, s.queries);
                attention.add_mean(s, s.queries, &mean[h * ldm]);
                // Softmax backward: ds = p (dmean - sum p dmean) / queries, in place of e.
                for (long l = 0; l < s.queries; l++) {
                    double along = 0;
                    for (long block = 0; block < attention.blocks; block++) {
                        const long t = block * BLOCK, n = std::min(BLOCK, s.tokens - t);
                        const float *row = &attention.e[l * attention.ld + t], *dm = &dmean[h * ldm + t];
                        float sum = 0;
                        for (long i = 0; i < n; i++) sum += row[i] * dm[i];
                        along += attention.weight[l * attention.blocks + block] * sum;
                    }
                    for (long block = 0; block < attention.blocks; block++) {
                        const long t = block * BLOCK, n = std::min(BLOCK, s.tokens - t);
                        const float p = (float)(attention.weight[l * attention.blocks + block] / s.queries), mid = (float)along;
                        float* row = &attention.e[l * attention.ld + t];
                        const float* dm = &dmean[h * ldm + t];
                        for (long i = 0; i < n; i++) row[i] *= p * (dm[i] - mid);
                    }
                }
                const float* head_keys = &qk.k[(long)h * d * qk.ldk];
                const long ld = vectors(d) * LANES;
                transpose(head_keys, qk.ldk, d, s.tokens, keys.data(), ld);
                std::vector<double> dq_head(s.queries * d);
                for (long t = 0; t < s.tokens; t += BLOCK)
                    outer_add(
                        &attention.e[t], attention.ld, s.queries, std::min(BLOCK, s.tokens - t), &keys[t * ld], ld, d,
                        dq_head.data()
                    );
                for (long l = 0; l < s.queries; l++)
                    for (int i = 0; i < d; i++) dq[(h * d + i) * qk.ldq + l] = (float)dq_head[l * d + i] * scale;
                Packed query(&qk.q[(long)h * d * qk.ldq], d, s.queries, qk.ldq);
                gemm(query, Strided{attention.e.data, attention.ld}, s.tokens, &dk[(long)h * d * qk.ldk], qk.ldk);
            }
        }
        const WholeRows token_rows(image_tokens, s.tokens, e), text_rows(image_text, s.queries, e);
        Pooled pooled(s, w, token_rows, mean, ldm);
        for (int j = 0; j < e; j++) {
            in_bias[2 * e + j] += dvalues[j];
            out_bias[j] += g[j];
            for (int i = 0; i < e; i++) {
                in_weight[(2L * e + j) * e + i] += dvalues[j] * pooled.tokens[(long)(j / d) * e + i];
                out_weight[(long)j * e + i] += g[j] * pooled.values[i];
            }
        }

        // Through the keys and through the pooled tokens, back to the tokens.
        Packed key_back(w.key(e), e, e, e, true), pooled_back(dpooled.data(), e, s.heads, e, true);
        std::vector<std::vector<double>> dkey(omp_get_max_threads(), std::vector<double>((long)e * e));
#pragma omp parallel
        {
            const long ld = BLOCK + LANES;
            floats block(e * ld);
            std::vector<double>& part = dkey[omp_get_thread_num()];
#pragma omp for schedule(static)
            for (long t = 0; t < s.tokens; t += BLOCK) {
                long n = std::min(BLOCK, s.tokens - t);
                gemm(key_back, Strided{&dk[t], qk.ldk}, n, block.data(), ld);
                gemm(pooled_back, Strided{&mean[t], ldm}, n, block.data(), ld, true);
                transpose(block.data(), ld, e, n, dtokens + t * e, e, false);
                outer_add(&dk[t], qk.ldk, e, n, token_rows[t], token_rows.ld, e, part.data());
            }
        }
        for (auto& part : dkey)
            for (long i = 0; i < (long)e * e; i++) in_weight[(long)e * e + i] += part[i];

        // Back to the text: dtext = Wq^T dq, a matrix of text positions.
        floats dtext(e * qk.ldq);
        gemm(Packed(w.query(e), e, e, e, true), Strided{dq.data(), qk.ldq}, s.queries, dtext.data(), qk.ldq);
        transpose(dtext.data(), qk.ldq, e, s.queries, grads.text + b * s.queries * e, e, false);
        outer_add(dq.data(), qk.ldq, e, s.queries, text_rows[0], text_rows.ld, e, in_weight.data());
        for (int j = 0; j < e; j++)
            for (long l = 0; l < s.queries; l++) in_bias[j] += dq[j * qk.ldq + l];
    }
    write(in_weight, grads.in_weight);
    write(in_bias, grads.in_bias);
    write(out_weight, grads.out_weight);
    write(out_bias, grads.out_bias);
}

}  // namespace film
