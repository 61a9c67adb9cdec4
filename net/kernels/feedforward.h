// The second half of a transformer block, x + GDFN(norm(x)), forward and backward, where x is what the first half gives.
#pragma once
# include "attention.h"

namespace film {

struct FeedForward {
    Expansion expansion;    // c -> 2 hidden
    const float* contract;  // (c, hidden)
    int hidden() const { return expansion.e / 2; }
};

inline void feed_forward(const FeedForward& layer, const Attended& x, float* out) {
    const int c = layer.expansion.c, hidden = layer.hidden();
    const long height = x.height, width = x.width, batch = x.mix.size(), plane = height * width;
    auto all = bands(batch, height);
#pragma omp parallel
    {
        ForwardRows rows(layer.expansion, height, width);
        AttendedRows input(x);
        Packed contract(layer.contract, c, hidden, hidden);
        RowBuffer gated(hidden, width), result(c, width);
        const long nv = gated.nv;
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < all.size(); i++) {
            float* target = out + all[i].image * c * plane;
            input.image = all[i].image;
            rows.run(input, all[i], [&](long r, const Triple& h) {
                const float* w = layer.expansion.depthwise;
                for (int k = 0; k < hidden; k++) {
                    const Window first = h.window(k, w + k * 9), second = h.window(k + hidden, w + (k + hidden) * 9);
                    float* to = gated[k];
                    for (long v = 0; v < nv; v++) {
                        vec a = first.at(v);
                        store(to + v * LANES, gelu(a, normal(a)) * second.at(v));
                    }
                }
                gemm(contract, gated.matrix(), width, result[0], result.stride);
                for (int k = 0; k < c; k++) {
                    const float *from = input.rows[r][k], *add = result[k];
                    float* to = target + k * plane + r * width;
                    for (long j = 0; j < width; j++) to[j] = from[j] + add[j];
                }
            });
        }
    }
}

struct FeedForwardGrads {
    float *x, *norm_weight, *norm_bias, *expand, *depthwise, *contract;
};

inline void feed_forward_backward(const FeedForward& layer, const Attended& x, const float* dout, FeedForwardGrads out) {
    const Expansion& expansion = layer.expansion;
    const int c = expansion.c, hidden = layer.hidden();
    const long height = x.height, width = x.width, batch = x.mix.size(), plane = height * width;
    const long ld = vectors(c) * LANES;
    auto all = bands(batch, height);
    std::memcpy(out.x, dout, batch * c * plane * sizeof(float));
    std::vector<ExpansionGrad> parts(all.size(), ExpansionGrad(expansion));
    std::vector<std::vector<double>> contract_parts(all.size(), std::vector<double>((size_t)hidden * c));
#pragma omp parallel
    {
        BackwardRows rows(expansion, height, width);
        AttendedRows input(x);
        Packed spread(layer.contract, hidden, c, hidden, true);
        RowBuffer d(c, width), dgated(hidden, width), gated(hidden, width);
        floats transposed(width * ld);
        const long nv = d.nv;
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < all.size(); i++) {
            const long offset = all[i].image * c * plane;
            rows.grad = ExpansionGrad(expansion);
            input.image = all[i].image;
            rows.run(input, all[i], out.x + offset, [&](long r, const Triple& h, RowBuffer& dz, bool inside) {
                const float* w = expansion.depthwise;
                d.read(dout + offset + r * width, plane, c);
                gemm(spread, d.matrix(), width, dgated[0], dgated.stride);
                for (int k = 0; k < hidden; k++) {
                    const Window first = h.window(k, w + k * 9), second = h.window(k + hidden, w + (k + hidden) * 9);
                    const float* from = dgated[k];
                    float *to = gated[k], *to_first = dz[k], *to_second = dz[k + hidden];
                    for (long v = 0; v < nv; v++) {
                        vec a = first.at(v), b = second.at(v), g = load(from + v * LANES);
                        Normal n = normal(a);
                        store(to + v * LANES, gelu(a, n) * b);
                        store(to_first + v * LANES, g * b * gelu_slope(a, n));
                        store(to_second + v * LANES, g * gelu(a, n));
                    }
                }
                if (!inside) return;
                transpose(d[0], d.stride, c, width, transposed.data(), ld);
                outer_add(gated[0], gated.stride, hidden, width, transposed.data(), ld, c, contract_parts[i].data());
            });
            parts[i] = rows.grad;
        }
    }
    ExpansionGrad total(expansion);
    std::vector<double> contract((size_t)hidden * c);
    for (size_t i = 0; i < all.size(); i++) {
        total.add(parts[i]);
        add_to(contract, contract_parts[i]);
    }
    total.write_to(out);
    for (int k = 0; k < hidden; k++)
        for (int j = 0; j < c; j++) out.contract[j * hidden + k] = (float)contract[(size_t)k * c + j];
}

}  // namespace film
