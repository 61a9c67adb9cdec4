// The first half of a transformer block, x + MDTA(norm(x)), forward and backward. Its attention is channel attention:
// per head, every channel of q attends to every channel of k, so the attention is a (dim, dim) matrix for the complete
// image. derivations.md derives the backward pass.
#pragma once
# include "rows.h"

namespace film {

inline double bounded_norm(double square) {
    const double lower = MIN_NORM;
    return std::max(std::sqrt(square), lower);
}

struct ChannelAttention {
    Expansion expansion;  // c -> q, k, v of c channels each
    int heads;
    const float *temperature, *project;  // (heads), (c, c)
    int c() const { return expansion.c; }
    int dim() const { return expansion.c / heads; }  // channels of a head
};

// Sums over an image's pixels from which the attention follows: q k^T per head (heads, dim, dim), then ||q||^2 and
// ||k||^2 of every channel (c).
struct Scores {
    int heads, dim;
    std::vector<double> products, q_squares, k_squares;
    Scores(int heads_, int dim_)
        : heads(heads_), dim(dim_), products(heads_ * dim_ * dim_), q_squares(heads_ * dim_),
          k_squares(heads_ * dim_) {}

    // As one list of numbers, in which the forward pass hands them to the backward pass.
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

    void add(const Scores& part) {
        for (size_t i = 0; i < products.size(); i++) products[i] += part.products[i];
        for (size_t i = 0; i < q_squares.size(); i++) {
            q_squares[i] += part.q_squares[i];
            k_squares[i] += part.k_squares[i];
        }
    }

    // Add the pixels of a row. Channels 0 to c of `qk` are q, channels c to 2c are k; their tails are zero.
    void add_row(RowBuffer& qk) {
        const int c = heads * dim;
        for (int head = 0; head < heads; head++)
            for (int i = 0; i < dim; i++) {
                float* q = qk[head * dim + i];
                for (int j = 0; j < dim; j += 4) {
                    vec s[4] = {};
                    for (long v = 0; v < qk.nv; v++)
                        for (int l = 0; l < 4; l++) {
                            const float* k = qk[c + head * dim + std::min(j + l, dim - 1)];
                            s[l] += load(q + v * LANES) * load(k + v * LANES);
                        }
                    for (int l = 0; l < 4 && j + l < dim; l++)
                        products[(head * dim + i) * dim + j + l] += sum_lanes(s[l]);
                }
            }
        for (int channel = 0; channel < c; channel++) {
            vec q_sum{}, k_sum{};
            for (long v = 0; v < qk.nv; v++) {
                vec q = load(qk[channel] + v * LANES), k = load(qk[c + channel] + v * LANES);
                q_sum += q * q;
                k_sum += k * k;
            }
            q_squares[channel] += sum_lanes(q_sum);
            k_squares[channel] += sum_lanes(k_sum);
        }
    }

    double q_norm(int channel) const { return bounded_norm(q_squares[channel]); }
    double k_norm(int channel) const { return bounded_norm(k_squares[channel]); }
    // Of q's channel i and k's channel j of a head.
    double cosine(int head, int i, int j) const {
        return products[(head * dim + i) * dim + j] / (q_norm(head * dim + i) * k_norm(head * dim + j));
    }

    // A (heads, dim, dim): softmax over j of cosine(i, j) * temperature
    std::vector<double> attention(const float* temperature) const {
        std::vector<double> a(products.size());
        for (int head = 0; head < heads; head++)
            for (int i = 0; i < dim; i++) {
                double* row = &a[(head * dim + i) * dim];
                double top = -1e300, sum = 0;  // no infinity: -Ofast assumes finite numbers
                for (int j = 0; j < dim; j++) top = std::max(top, row[j] = cosine(head, i, j) * temperature[head]);
                for (int j = 0; j < dim; j++) sum += row[j] = std::exp(row[j] - top);
                for (int j = 0; j < dim; j++) row[j] /= sum;
            }
        return a;
    }
};

// M (c, c) = project times the block-diagonal matrix of the heads' attention. The attention's output is project (A v) =
// M v: one product with a small matrix.
inline floats projected_attention(const ChannelAttention& layer, const std::vector<double>& attention) {
    const int c = layer.c(), dim = layer.dim();
    floats m(c * c);
    for (int o = 0; o < c; o++)
        for (int head = 0; head < layer.heads; head++)
            for (int j = 0; j < dim; j++) {
                double s = 0;
                for (int i = 0; i < dim; i++)
                    s += layer.project[o * c + head * dim + i] * attention[(head * dim + i) * dim + j];
                m[o * c + head * dim + j] = (float)s;
            }
    return m;
}

// The first pass: the scores of each image, and v (batch, c, height, width), which the second pass and the backward
// pass read.
inline std::vector<Scores> channel_attention_scores(
    const ChannelAttention& layer, const float* x, long batch, long height, long width, float* v_out
) {
    const int c = layer.c();
    const long plane = height * width;
    const Patches patches(batch, height, width);
    std::vector<Scores> parts(patches.all.size(), Scores(layer.heads, layer.dim()));
#pragma omp parallel
    {
        ForwardRows rows(layer.expansion, height, patches.window);
        ImageRows input(c, height, width, patches.window);
        RowBuffer z[2] = {{3 * c, patches.window}, {3 * c, patches.window}};  // q, k, v
#pragma omp for schedule(dynamic)
        for (size_t k = 0; k < parts.size(); k++) {
            const Patch& patch = patches.all[k];
            const long offset = patch.band.image * c * plane;
            input.image = x + offset + patch.start;
            rows.run(input, patch.band, [&](long first_row, long count, const FourRows& expanded) {
                for (int i = 0; i < 3 * c; i++)
                    expanded.correlate(i, layer.expansion.depthwise + i * 9, z[0][i], z[1][i]);
                for (int row = 0; row < count; row++) {
                    for (int i = 0; i < 3 * c; i++) z[row].keep(i, patch.first(), patch.last());
                    parts[k].add_row(z[row]);
                    float* v = v_out + offset + (first_row + row) * width + patch.left;
                    for (int i = 0; i < c; i++)
                        write_out(v + i * plane, z[row][2 * c + i] + patch.first(), patch.right - patch.left);
                }
            });
        }
    }
    std::vector<Scores> scores(batch, Scores(layer.heads, layer.dim()));
    for (size_t k = 0; k < parts.size(); k++) scores[patches.all[k].band.image].add(parts[k]);
    return scores;
}

// The output of this half of the block, x + M v. It is never written to memory, but computed a row at a time.
struct AttentionOutput {
    const float *x, *v;  // (batch, c, height, width)
    long height, width;
    int c;
    std::vector<Packed> m;  // of each image

    AttentionOutput(
        const ChannelAttention& layer, const float* x_, const float* v_, const std::vector<Scores>& scores,
        long height_, long width_
    )
        : x(x_), v(v_), height(height_), width(width_), c(layer.c()) {
        for (auto& s : scores)
            m.emplace_back(projected_attention(layer, s.attention(layer.temperature)).data(), c, c, c);
    }
};

// The rows of that output in one image, as input of the second half's pipeline, or `window` pixels of each from column
// `start`. The last four are kept.
struct AttentionOutputRows {
    const AttentionOutput& all;
    long image = 0, start = 0;
    Ring rows;
    RowBuffer v_row;
    explicit AttentionOutputRows(const AttentionOutput& a) : AttentionOutputRows(a, a.width) {}
    AttentionOutputRows(const AttentionOutput& a, long window) : all(a), rows(a.c, window), v_row(a.c, window) {}

    RowBuffer& operator()(long r) {
        const long plane = all.height * all.width, at = image * all.c * plane + r * all.width + start;
        RowBuffer& row = rows[r];
        row.read(all.x + at, plane, all.c);
        v_row.read(all.v + at, plane, all.c);
        gemm(all.m[image], v_row.matrix(), row.width, row[0], row.stride, true);
        return row;
    }
};

struct ChannelAttentionGrads {
    float *x, *norm_weight, *norm_bias, *expand, *depthwise, *temperature, *project;
};

// The backward pass from y to q, k and v of one image, as products with small matrices. With P = project, S = q k^T and
// cosine C of a head:
//
// forward:  C[i][j] = S[i][j] / (||q_i|| ||k_j||)      backward: dM = dy v^T (sum over pixels),  dv = M^T dy
//           A = softmax over j of C * temperature                dP = dM A^T,  dA = P^T dM (its blocks on the diagonal)
//           M = P A                                              G[i][j] = A[i][j] (dA[i][j] - sum over j of A dA)
//           y = x + M v                                          dtemperature = sum of G C,  dC = G * temperature
//
//           dq_i = sum over j of dC[i][j] / (||q_i|| ||k_j||) k_j  -  (sum over j of dC[i][j] C[i][j]) / ||q_i||^2 q_i
//           dk_j = sum over i of dC[i][j] / (||q_i|| ||k_j||) q_i  -  (sum over i of dC[i][j] C[i][j]) / ||k_j||^2 k_j
//
// So dq and dk of a head are each a matrix (dim, 2 dim) times the head's channels of q above those of k.
struct AttentionBackward {
    std::vector<double> project, temperature;  // gradients
    std::vector<Packed> q_matrix, k_matrix;    // of each head: (dim, 2 dim), times q above k
    Packed v_matrix;                           // M^T (c, c), times dy

    AttentionBackward(const ChannelAttention& layer, const Scores& s, const std::vector<double>& dm)
        : project(layer.c() * layer.c()), temperature(layer.heads) {
        const int c = layer.c(), dim = layer.dim();
        auto a = s.attention(layer.temperature);
        floats m = projected_attention(layer, a);
        v_matrix.pack(m.data(), c, c, c, true);
        for (int head = 0; head < layer.heads; head++) {
            const double* a_head = &a[head * dim * dim];
            const double tau = layer.temperature[head];
            std::vector<double> da(dim * dim);
            for (int i = 0; i < dim; i++)
                for (int j = 0; j < dim; j++)
                    for (int o = 0; o < c; o++) {
                        da[i * dim + j] += layer.project[o * c + head * dim + i] * dm[o * c + head * dim + j];
                        project[o * c + head * dim + i] += dm[o * c + head * dim + j] * a_head[i * dim + j];
                    }
            floats to_dq(dim * 2 * dim), to_dk(dim * 2 * dim);
            std::vector<double> along_q(dim), along_k(dim);
            for (int i = 0; i < dim; i++) {
                double mean = 0;  // of dA, weighted by A
                for (int j = 0; j < dim; j++) mean += a_head[i * dim + j] * da[i * dim + j];
                for (int j = 0; j < dim; j++) {
                    double g = a_head[i * dim + j] * (da[i * dim + j] - mean), cosine = s.cosine(head, i, j);
                    temperature[head] += g * cosine;
                    along_q[i] += tau * g * cosine;
                    along_k[j] += tau * g * cosine;
                    double cross = tau * g / (s.q_norm(head * dim + i) * s.k_norm(head * dim + j));
                    to_dq[i * 2 * dim + dim + j] = (float)cross;
                    to_dk[j * 2 * dim + i] = (float)cross;
                }
            }
            // The part along q itself, which the normalisation removes: a longer q has the same direction. Where the
            // norm is held at its lower bound, it is a constant and nothing is removed.
            constexpr double least = MIN_NORM * MIN_NORM;
            for (int i = 0; i < dim; i++) {
                double q2 = s.q_squares[head * dim + i], k2 = s.k_squares[head * dim + i];
                to_dq[i * 2 * dim + i] = q2 > least ? (float)(-along_q[i] / q2) : 0.0f;
                to_dk[i * 2 * dim + dim + i] = k2 > least ? (float)(-along_k[i] / k2) : 0.0f;
            }
            q_matrix.emplace_back(to_dq.data(), dim, 2 * dim, 2 * dim);
            k_matrix.emplace_back(to_dk.data(), dim, 2 * dim, 2 * dim);
        }
    }

    // A row of dz, the gradient of q, k and v (3c channels), from that row of q and k (2c channels) and of dy (c).
    void row(RowBuffer& qk, RowBuffer& dy, RowBuffer& dz) const {
        const int c = v_matrix.rows, heads = q_matrix.size(), dim = c / heads;
        std::vector<const float*> q_above_k(2 * dim);
        for (int head = 0; head < heads; head++) {
            for (int i = 0; i < dim; i++) {
                q_above_k[i] = qk[head * dim + i];
                q_above_k[dim + i] = qk[c + head * dim + i];
            }
            gemm(q_matrix[head], Scattered{q_above_k.data(), 0}, qk.width, dz[head * dim], dz.stride);
            gemm(k_matrix[head], Scattered{q_above_k.data(), 0}, qk.width, dz[c + head * dim], dz.stride);
        }
        gemm(v_matrix, dy.matrix(), qk.width, dz[2 * c], dz.stride);
    }
};

// The backward pass of y = x + M v: dx = dy + the pipeline's gradient. dm is the gradient of M (c, c) for each image.
inline void channel_attention_backward(
    const ChannelAttention& layer, const float* x, const std::vector<Scores>& scores,
    const std::vector<std::vector<double>>& dm, const float* dy, long height, long width, ChannelAttentionGrads grads
) {
    const Expansion& expansion = layer.expansion;
    const int c = layer.c();
    const long batch = scores.size(), plane = height * width;
    std::vector<double> project(c * c), temperature(layer.heads);
    std::vector<AttentionBackward> backward;
    for (long b = 0; b < batch; b++) {
        backward.emplace_back(layer, scores[b], dm[b]);
        add_to(project, backward.back().project);
        add_to(temperature, backward.back().temperature);
    }
    write(project, grads.project);
    write(temperature, grads.temperature);

    auto all = bands(batch, height);
    std::vector<ExpansionGrad> parts(all.size(), ExpansionGrad(expansion));
#pragma omp parallel
    {
        BackwardRows rows(expansion, height, width);
        ImageRows input(c, height, width);
        RowBuffer qk[2] = {{2 * c, width}, {2 * c, width}};
#pragma omp for schedule(dynamic)
        for (size_t k = 0; k < all.size(); k++) {
            const long offset = all[k].image * c * plane;
            rows.grad = ExpansionGrad(expansion);
            input.image = x + offset;
            auto two_rows = [&](long first_row, const FourRows& expanded) {
                for (int i = 0; i < 2 * c; i++)
                    expanded.correlate(i, expansion.depthwise + i * 9, qk[0][i], qk[1][i]);
                for (int row = 0; row < 2; row++) {
                    for (int i = 0; i < 2 * c; i++) qk[row].clear_tail(i);
                    backward[all[k].image].row(qk[row], rows.dy.rows[first_row + row], rows.dz[first_row + row]);
                }
                for (int i = 0; i < expansion.e; i++) rows.depthwise_grad(expanded, first_row, i);
            };
            rows.run(input, all[k], dy + offset, grads.x + offset, two_rows, [](long, RowBuffer&) {});
            parts[k] = rows.grad;
        }
    }
    for (size_t k = 1; k < all.size(); k++) parts[0].add(parts[k]);
    parts[0].write_to(grads);
}

}  // namespace film
