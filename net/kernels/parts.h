// The parts of a transformer block by themselves, for networks whose blocks are not FILM's (biases, bias-free norms).
#pragma once
# include "attention.h"
# include "conv.h"

namespace film {

// y = 3x3 cross-correlation of every channel with its own window, zero padding 1; `turned` turns the windows round, as
// the backward pass needs. weight (channels, 9), bias (channels) or null.
inline void depthwise_conv3x3(
    const ConvShape& s, const float* x, const float* weight, const float* bias, float* y, bool turned = false
) {
    const long plane = s.plane();
#pragma omp parallel
    {
        WindowRows window(1, s.height, s.width);
        RowBuffer out(1, s.width);
#pragma omp for schedule(static)
        for (long p = 0; p < s.batch * s.in; p++) {
            const int c = p % s.in;
            const float shift = bias ? bias[c] : 0.0f;
            float w[9];
            for (int t = 0; t < 9; t++) w[t] = weight[c * 9 + (turned ? 8 - t : t)];
            window.run(x + p * plane, {p, 0, s.height}, [&](long r) {
                window.rows.around(r).correlate(0, w, out[0]);
                const float* from = out[0];
                float* to = y + p * plane + r * s.width;
                for (long i = 0; i < s.width; i++) to[i] = from[i] + shift;
            });
        }
    }
}

// dweight (channels, 9) and, unless null, dbias (channels).
inline void depthwise_conv3x3_weights(
    const ConvShape& s, const float* x, const float* dout, float* dweight, float* dbias
) {
    const long plane = s.plane();
#pragma omp parallel
    {
        WindowRows window(1, s.height, s.width);
        RowBuffer d(1, s.width);
#pragma omp for schedule(static)
        for (int c = 0; c < s.in; c++) {
            double sums[9] = {}, shift = 0;
            for (long b = 0; b < s.batch; b++) {
                const long at = (b * s.in + c) * plane;
                window.run(x + at, {b, 0, s.height}, [&](long r) {
                    d.read(dout + at + r * s.width, plane, 1);
                    shift += depthwise_row_grad(window.rows.around(r), 0, d[0], d.nv, sums);
                });
            }
            for (int t = 0; t < 9; t++) dweight[c * 9 + t] = (float)sums[t];
            if (dbias) dbias[c] = (float)shift;
        }
    }
}

// Chunks of the two halves x1, x2 of each image: body(offset in x of x1's chunk, of x2's, of the result's, count).
template <class Body>
inline void for_gates(long batch, long half, Body body) {
#pragma omp parallel
    for_chunks(batch, half, [&](long b, long first, long count) {
        body(2 * b * half + first, (2 * b + 1) * half + first, b * half + first, count);
    });
}

struct Gate {  // gelu(a) b and its slopes, for one chunk padded to whole vectors
    float first[CHUNK], second[CHUNK], d[CHUNK];
};

inline void gated_gelu(const float* x, long batch, long half, float* y) {
    for_gates(batch, half, [&](long a, long b, long to, long count) {
        Gate gate = {};
        std::memcpy(gate.first, x + a, count * sizeof(float));
        std::memcpy(gate.second, x + b, count * sizeof(float));
        for (long v = 0; v < vectors(count); v++) {
            vec z = load(gate.first + v * LANES);
            store(gate.first + v * LANES, gelu(z, normal(z)) * load(gate.second + v * LANES));
        }
        std::memcpy(y + to, gate.first, count * sizeof(float));
    });
}

inline void gated_gelu_backward(const float* x, const float* dout, long batch, long half, float* dx) {
    for_gates(batch, half, [&](long a, long b, long from, long count) {
        Gate gate = {};
        std::memcpy(gate.first, x + a, count * sizeof(float));
        std::memcpy(gate.second, x + b, count * sizeof(float));
        std::memcpy(gate.d, dout + from, count * sizeof(float));
        for (long v = 0; v < vectors(count); v++) {
            vec z = load(gate.first + v * LANES), g = load(gate.d + v * LANES);
            Normal n = normal(z);
            store(gate.first + v * LANES, g * load(gate.second + v * LANES) * gelu_slope(z, n));
            store(gate.second + v * LANES, g * gelu(z, n));
        }
        std::memcpy(dx + a, gate.first, count * sizeof(float));
        std::memcpy(dx + b, gate.second, count * sizeof(float));
    });
}

// Layer norm over the channels of each pixel; without bias the mean is not subtracted (but is within the variance).
inline void channel_layer_norm(
    const ConvShape& s, const float* x, const float* weight, const float* bias, float* y
) {
    const long plane = s.plane();
#pragma omp parallel
    {
        RowBuffer in(s.in, CHUNK);
        for_chunks(s.batch, plane, [&](long b, long first, long count) {
            const long at = b * s.in * plane + first;
            read_chunk(in, x + at, plane, s.in, count);
            for (long v = 0; v < vectors(count); v++) {
                Mean m = channel_mean(in, s.in, v);
                for (int c = 0; c < s.in; c++) {
                    vec value = load(in[c] + v * LANES);
                    value = bias ? (value - m.mu) * m.scale * weight[c] + bias[c] : value * m.scale * weight[c];
                    store(in[c] + v * LANES, value);
                }
            }
            for (int c = 0; c < s.in; c++) std::memcpy(y + at + c * plane, in[c], count * sizeof(float));
        });
    }
}

inline void channel_layer_norm_backward(
    const ConvShape& s, const float* x, const float* weight, bool with_bias, const float* dout, float* dx,
    float* dweight, float* dbias
) {
    const long plane = s.plane();
    const int n = s.in, threads = omp_get_max_threads();
    std::vector<std::vector<double>> dw(threads, std::vector<double>(n)), db(threads, std::vector<double>(n));
#pragma omp parallel
    {
        RowBuffer in(n, CHUNK), d(n, CHUNK);
        auto &by_weight = dw[omp_get_thread_num()], &by_bias = db[omp_get_thread_num()];
        std::vector<vec, AlignedAllocator<vec>> sum_w(n), sum_b(n);
        for_chunks(s.batch, plane, [&](long b, long first, long count) {
            const long at = b * n * plane + first;
            read_chunk(in, x + at, plane, n, count);
            read_chunk(d, dout + at, plane, n, count);
            std::fill(sum_w.begin(), sum_w.end(), vec{});
            std::fill(sum_b.begin(), sum_b.end(), vec{});
            for (long v = 0; v < vectors(count); v++) {
                Mean m = channel_mean(in, n, v);
                vec along{}, mean{};
                for (int c = 0; c < n; c++) {
                    vec value = load(in[c] + v * LANES), g = load(d[c] + v * LANES);
                    vec normed = (with_bias ? value - m.mu : value) * m.scale;
                    sum_w[c] += g * normed;
                    sum_b[c] += g;
                    along += g * weight[c] * normed;
                    mean += g * weight[c];
                }
                along *= 1.0f / n;
                mean = with_bias ? mean * (1.0f / n) : vec{};
                for (int c = 0; c < n; c++) {
                    vec hat = (load(in[c] + v * LANES) - m.mu) * m.scale, g = load(d[c] + v * LANES);
                    store(d[c] + v * LANES, m.scale * (g * weight[c] - mean - hat * along));
                }
            }
            for (int c = 0; c < n; c++) {
                by_weight[c] += sum_lanes(sum_w[c]);
                by_bias[c] += sum_lanes(sum_b[c]);
                std::memcpy(dx + at + c * plane, d[c], count * sizeof(float));
            }
        });
    }
    for (int t = 1; t < threads; t++) {
        add_to(dw[0], dw[t]);
        add_to(db[0], db[t]);
    }
    write(dw[0], dweight);
    write(db[0], dbias);
}

// Attention between channels without the layers around it.
struct ChannelMixing {
    floats identity;  // in place of the projection behind the attention
    ChannelAttention attention;

    ChannelMixing(int c, int heads, const float* temperature) : identity(c * c), attention{} {
        for (int i = 0; i < c; i++) identity[i * c + i] = 1.0f;
        attention.expansion.c = c;
        attention.heads = heads;
        attention.temperature = temperature;
        attention.project = identity.data();
    }
};

// qkv (batch, 3 c, height, width) -> (batch, c, height, width); `saved` (batch, Scores::size()) is for the backward pass.
inline void channel_mixing(
    const ChannelMixing& layer, const float* qkv, long batch, long height, long width, float* y, double* saved
) {
    const int c = layer.attention.c();
    const long plane = height * width;
    auto all = bands(batch, height);
    std::vector<Scores> parts(all.size(), Scores(layer.attention.heads, layer.attention.dim()));
    std::vector<Scores> scores(batch, parts[0]);
#pragma omp parallel
    {
        ImageRows qk(2 * c, height, width);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < all.size(); i++) {
            qk.image = qkv + all[i].image * 3 * c * plane;
            for (long r = all[i].first; r < all[i].last; r++) parts[i].add_row(qk(r));
        }
    }
    for (size_t i = 0; i < all.size(); i++) scores[all[i].image].add(parts[i]);
    std::vector<Packed> mix;
    for (long b = 0; b < batch; b++) {
        scores[b].write(saved + b * scores[b].size());
        mix.emplace_back(
            mixing(layer.attention, scores[b].attention(layer.attention.temperature)).data(), c, c, c
        );
    }
#pragma omp parallel
    {
        ImageRows v(c, height, width);
        RowBuffer mixed(c, width);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < all.size(); i++) {
            const long b = all[i].image;
            v.image = qkv + (b * 3 + 2) * c * plane;
            for (long r = all[i].first; r < all[i].last; r++) {
                gemm(mix[b], v(r).matrix(), width, mixed[0], mixed.stride);
                mixed.write(y + b * c * plane + r * width, plane, c);
            }
        }
    }
}

inline void channel_mixing_backward(
    const ChannelMixing& layer, const float* qkv, const double* saved, const float* dout, long batch, long height,
    long width, float* dqkv, float* dtemperature
) {
    const int c = layer.attention.c();
    const long plane = height * width;
    std::vector<AttentionBackward> backward;
    std::vector<double> temperature(layer.attention.heads);
    Scores scores(layer.attention.heads, layer.attention.dim());
    for (long b = 0; b < batch; b++) {
        scores.read(saved + b * scores.size());
        auto dm = outer_product(dout + b * c * plane, qkv + (b * 3 + 2) * c * plane, c, height, width);
        backward.emplace_back(layer.attention, scores, dm);
        add_to(temperature, backward.back().temperature);
    }
    write(temperature, dtemperature);
    auto all = bands(batch, height);
#pragma omp parallel
    {
        ImageRows qk(2 * c, height, width), d(c, height, width);
        RowBuffer result(3 * c, width);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < all.size(); i++) {
            const long b = all[i].image;
            qk.image = qkv + b * 3 * c * plane;
            d.image = dout + b * c * plane;
            for (long r = all[i].first; r < all[i].last; r++) {
                backward[b].row(qk(r), d(r), result);
                result.write(dqkv + b * 3 * c * plane + r * width, plane, 3 * c);
            }
        }
    }
}

}  // namespace film
