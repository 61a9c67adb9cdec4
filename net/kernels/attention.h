// The first half of a transformer block, x + MDTA(norm(x)), forward and backward: attention between channels.
#pragma once
# include "rows.h"

namespace film {

struct ChannelAttention {
    Expansion expansion;  // c -> q, k, v of c channels each
    int heads;
    const float *temperature, *project;  // (heads), (c, c)
    int c() const { return expansion.c; }
    int dim() const { return expansion.c / heads; }
};

// Sums over an image's pixels from which the attention follows: q k^T per head (heads, dim, dim), then |q|^2 and |k|^2
// of every channel.
struct Scores {
    int heads, dim;
    std::vector<double> products, q_squares, k_squares;
    Scores(int h, int d) : heads(h), dim(d), products(h * d * d), q_squares(h * d), k_squares(h * d) {}

    // As one list of numbers: what the backward pass needs of the forward pass.
    long size() const { return (long)heads * dim * (dim + 2); }
    void write(double* to) const {
        for (auto* part : {&products, &q_squares, &k_squares}) to = std::copy(part->begin(), part->end(), to);
    }
    void read(const double* from) {
        for (auto* part : {&products, &q_squares, &k_squares}) {
            std::copy(from, from + part->size(), part->begin());
            from += part->size();
        }
    }

    void add(const Scores& o) {
        for (size_t i = 0; i < products.size(); i++) products[i] += o.products[i];
        for (size_t i = 0; i < q_squares.size(); i++) {
            q_squares[i] += o.q_squares[i];
            k_squares[i] += o.k_squares[i];
        }
    }

    // Rows of q are channels 0..c of `qk`, rows of k the c behind them; their tails are zero.
    void add_row(RowBuffer& qk) {
        const int c = heads * dim;
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < dim; i++) {
                float* q = qk[h * dim + i];
                for (int j = 0; j < dim; j += 4) {
                    vec s[4] = {};
                    for (long v = 0; v < qk.nv; v++)
                        for (int l = 0; l < 4; l++)
                            s[l] += load(q + v * LANES) * load(qk[c + h * dim + std::min(j + l, dim - 1)] + v * LANES);
                    for (int l = 0; l < 4 && j + l < dim; l++)
                        products[(h * dim + i) * dim + j + l] += sum_lanes(s[l]);
                }
            }
        for (int i = 0; i < c; i++) {
            vec s{}, t{};
            for (long v = 0; v < qk.nv; v++) {
                vec q = load(qk[i] + v * LANES), k = load(qk[c + i] + v * LANES);
                s += q * q;
                t += k * k;
            }
            q_squares[i] += sum_lanes(s);
            k_squares[i] += sum_lanes(t);
        }
    }

    double q_norm(int channel) const { return std::max(std::sqrt(q_squares[channel]), 1e-12); }
    double k_norm(int channel) const { return std::max(std::sqrt(k_squares[channel]), 1e-12); }
    double cosine(int h, int i, int j) const {
        return products[(h * dim + i) * dim + j] / (q_norm(h * dim + i) * k_norm(h * dim + j));
    }

    // softmax(cosine * temperature) over j, (heads, dim, dim)
    std::vector<double> attention(const float* temperature) const {
        std::vector<double> a(products.size());
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < dim; i++) {
                double* row = &a[(h * dim + i) * dim];
                double top = -1e300, sum = 0;
                for (int j = 0; j < dim; j++) top = std::max(top, row[j] = cosine(h, i, j) * temperature[h]);
                for (int j = 0; j < dim; j++) sum += row[j] = std::exp(row[j] - top);
                for (int j = 0; j < dim; j++) row[j] /= sum;
            }
        return a;
    }
};

// project (c, c) times the block-diagonal attention: what v is multiplied with.
inline floats mixing(const ChannelAttention& layer, const std::vector<double>& attention) {
    const int c = layer.c(), dim = layer.dim();
    floats m(c * c);
    for (int o = 0; o < c; o++)
        for (int h = 0; h < layer.heads; h++)
            for (int j = 0; j < dim; j++) {
                double s = 0;
                for (int i = 0; i < dim; i++)
                    s += layer.project[o * c + h * dim + i] * attention[(h * dim + i) * dim + j];
                m[o * c + h * dim + j] = (float)s;
            }
    return m;
}

// Scores of each image, and v (batch, c, height, width), which the second pass and the backward pass read.
inline std::vector<Scores> channel_attention_scores(
    const ChannelAttention& layer, const float* x, long batch, long height, long width, float* v_out
) {
    const int c = layer.c();
    const long plane = height * width;
    auto all = bands(batch, height);
    std::vector<Scores> parts(all.size(), Scores(layer.heads, layer.dim()));
#pragma omp parallel
    {
        ForwardRows rows(layer.expansion, height, width);
        ImageRows input(c, height, width);
        RowBuffer qkv(3 * c, width);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < all.size(); i++) {
            const long offset = all[i].image * c * plane;
            input.image = x + offset;
            rows.run(input, all[i], [&](long r, const Triple& h) {
                for (int k = 0; k < 3 * c; k++) {
                    h.correlate(k, layer.expansion.depthwise + k * 9, qkv[k]);
                    qkv.clear_tail(k);
                }
                parts[i].add_row(qkv);
                for (int k = 0; k < c; k++)
                    std::memcpy(v_out + offset + k * plane + r * width, qkv[2 * c + k], width * sizeof(float));
            });
        }
    }
    std::vector<Scores> scores(batch, Scores(layer.heads, layer.dim()));
    for (size_t i = 0; i < all.size(); i++) scores[all[i].image].add(parts[i]);
    return scores;
}

// What this half of the block gives, x + project (attention v): never written, but computed a row at a time.
struct Attended {
    const float *x, *v;  // (batch, c, height, width)
    long height, width;
    int c;
    std::vector<Packed> mix;  // per image

    Attended(const ChannelAttention& layer, const float* x_, const float* v_, const std::vector<Scores>& scores, long h, long w)
        : x(x_), v(v_), height(h), width(w), c(layer.c()) {
        for (auto& s : scores) mix.emplace_back(mixing(layer, s.attention(layer.temperature)).data(), c, c, c);
    }
};

// Its rows in one image, the last three of which are kept.
struct AttendedRows {
    const Attended& all;
    long image = 0;
    Ring rows;
    RowBuffer values;
    explicit AttendedRows(const Attended& a) : all(a), rows(a.c, a.width), values(a.c, a.width) {}

    RowBuffer& operator()(long r) {
        const long plane = all.height * all.width, at = image * all.c * plane + r * all.width;
        RowBuffer& row = rows[r];
        row.read(all.x + at, plane, all.c);
        values.read(all.v + at, plane, all.c);
        gemm(all.mix[image], values.matrix(), all.width, row[0], row.stride, true);
        return row;
    }
};

struct ChannelAttentionGrads {
    float *x, *norm_weight, *norm_bias, *expand, *depthwise, *temperature, *project;
};

// The gradient behind the attention as products with small matrices, from dM = sum over pixels of dout v^T.
struct AttentionBackward {
    std::vector<double> project, temperature;
    std::vector<Packed> dq, dk;  // per head (dim, 2 dim), applied to the head's rows of q and k
    Packed dv;                   // (c, c), applied to dout

    AttentionBackward(const ChannelAttention& layer, const Scores& s, const std::vector<double>& dm)
        : project(layer.c() * layer.c()), temperature(layer.heads) {
        const int c = layer.c(), d = layer.dim();
        auto a = s.attention(layer.temperature);
        floats m = mixing(layer, a);
        dv.pack(m.data(), c, c, c, true);
        for (int h = 0; h < layer.heads; h++) {
            const double* ah = &a[h * d * d];
            const double t = layer.temperature[h];
            std::vector<double> da(d * d);
            for (int i = 0; i < d; i++)
                for (int j = 0; j < d; j++)
                    for (int o = 0; o < c; o++) {
                        da[i * d + j] += layer.project[o * c + h * d + i] * dm[o * c + h * d + j];
                        project[o * c + h * d + i] += dm[o * c + h * d + j] * ah[i * d + j];
                    }
            floats q_part(d * 2 * d), k_part(d * 2 * d);
            std::vector<double> q_along(d), k_along(d);
            for (int i = 0; i < d; i++) {
                double mean = 0;
                for (int j = 0; j < d; j++) mean += ah[i * d + j] * da[i * d + j];
                for (int j = 0; j < d; j++) {
                    double g = ah[i * d + j] * (da[i * d + j] - mean), cosine = s.cosine(h, i, j);
                    temperature[h] += g * cosine;
                    q_along[i] += t * g * cosine;
                    k_along[j] += t * g * cosine;
                    double cross = t * g / (s.q_norm(h * d + i) * s.k_norm(h * d + j));
                    q_part[i * 2 * d + d + j] = (float)cross;
                    k_part[j * 2 * d + i] = (float)cross;
                }
            }
            // The part along q itself, which normalisation removes; a norm held at 1e-12 removes nothing.
            for (int i = 0; i < d; i++) {
                double q2 = s.q_squares[h * d + i], k2 = s.k_squares[h * d + i];
                q_part[i * 2 * d + i] = q2 > 1e-24 ? (float)(-q_along[i] / q2) : 0.0f;
                k_part[i * 2 * d + d + i] = k2 > 1e-24 ? (float)(-k_along[i] / k2) : 0.0f;
            }
            dq.emplace_back(q_part.data(), d, 2 * d, 2 * d);
            dk.emplace_back(k_part.data(), d, 2 * d, 2 * d);
        }
    }

    // Gradients of a row of q, k and v (3 c channels) from that row of q and k (2 c channels) and of the gradient behind.
    void row(RowBuffer& qk, RowBuffer& dout, RowBuffer& dqkv) const {
        const int c = dv.m, heads = dq.size(), d = c / heads;
        std::vector<const float*> head(2 * d);
        for (int k = 0; k < heads; k++) {
            for (int j = 0; j < d; j++) {
                head[j] = qk[k * d + j];
                head[d + j] = qk[c + k * d + j];
            }
            gemm(dq[k], Scattered{head.data(), 0}, qk.width, dqkv[k * d], dqkv.stride);
            gemm(dk[k], Scattered{head.data(), 0}, qk.width, dqkv[c + k * d], dqkv.stride);
        }
        gemm(dv, dout.matrix(), qk.width, dqkv[2 * c], dqkv.stride);
    }
};

// The sum over an image's pixels of dout v^T, both (c, height, width) -> (c, c).
inline std::vector<double> outer_product(const float* dout, const float* v, int c, long height, long width) {
    const long plane = height * width, ld = vectors(c) * LANES;
    // One partial sum a thread, joined in the order of the threads: the same sum every time.
    std::vector<std::vector<double>> parts(omp_get_max_threads(), std::vector<double>(c * c));
#pragma omp parallel
    {
        floats transposed(width * ld);
        std::vector<double>& part = parts[omp_get_thread_num()];
#pragma omp for schedule(static)
        for (long r = 0; r < height; r++) {
            transpose(v + r * width, plane, c, width, transposed.data(), ld);
            outer_add(dout + r * width, plane, c, width, transposed.data(), ld, c, part.data());
        }
    }
    for (size_t i = 1; i < parts.size(); i++) add_to(parts[0], parts[i]);
    return parts[0];
}

inline void channel_attention_backward(
    const ChannelAttention& layer, const float* x, const float* v, const std::vector<Scores>& scores, const float* dout,
    long height, long width, ChannelAttentionGrads out
) {
    const Expansion& expansion = layer.expansion;
    const int c = layer.c();
    const long batch = scores.size(), plane = height * width;
    std::memcpy(out.x, dout, batch * c * plane * sizeof(float));
    std::vector<double> project(c * c), temperature(layer.heads);
    std::vector<AttentionBackward> backward;
    for (long b = 0; b < batch; b++) {
        const long at = b * c * plane;
        backward.emplace_back(layer, scores[b], outer_product(dout + at, v + at, c, height, width));
        add_to(project, backward.back().project);
        add_to(temperature, backward.back().temperature);
    }
    write(project, out.project);
    write(temperature, out.temperature);

    auto all = bands(batch, height);
    std::vector<ExpansionGrad> parts(all.size(), ExpansionGrad(expansion));
#pragma omp parallel
    {
        BackwardRows rows(expansion, height, width);
        ImageRows input(c, height, width);
        RowBuffer dy(c, width), qk(2 * c, width);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < all.size(); i++) {
            const long offset = all[i].image * c * plane;
            rows.grad = ExpansionGrad(expansion);
            input.image = x + offset;
            rows.run(input, all[i], out.x + offset, [&](long r, const Triple& h, RowBuffer& dz, bool) {
                for (int k = 0; k < 2 * c; k++) {
                    h.correlate(k, expansion.depthwise + k * 9, qk[k]);
                    qk.clear_tail(k);
                }
                dy.read(dout + offset + r * width, plane, c);
                backward[all[i].image].row(qk, dy, dz);
            });
            parts[i] = rows.grad;
        }
    }
    for (size_t i = 1; i < all.size(); i++) parts[0].add(parts[i]);
    parts[0].write_to(out);
}

}  // namespace film
