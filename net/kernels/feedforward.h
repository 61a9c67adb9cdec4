// The second half of a transformer block, x + GDFN(norm(x)), forward and backward. Here x is the first half's output.
#pragma once
# include "attention.h"

namespace film {

struct FeedForward {
    Expansion expansion;    // c -> z1 and z2 of `hidden` channels each
    const float* contract;  // (c, hidden)
    int hidden() const { return expansion.e / 2; }
};

// y = x + contract gated,  gated = gelu(z1) * z2
inline void feed_forward(const FeedForward& layer, const AttentionOutput& x, float* y) {
    const int c = layer.expansion.c, hidden = layer.hidden();
    const long height = x.height, width = x.width, batch = x.m.size(), plane = height * width;
    const Patches patches(batch, height, width);
    const long window = patches.window;
#pragma omp parallel
    {
        ForwardRows rows(layer.expansion, height, window);
        AttentionOutputRows input(x, window);
        Packed contract(layer.contract, c, hidden, hidden);
        RowBuffer gated(hidden, window), result(c, window);
        const long nv = gated.nv;
#pragma omp for schedule(dynamic)
        for (size_t k = 0; k < patches.all.size(); k++) {
            const Patch& patch = patches.all[k];
            float* target = y + patch.band.image * c * plane + patch.start;
            input.image = patch.band.image;
            input.start = patch.start;
            rows.run(input, patch.band, [&](long r, const ThreeRows& expanded) {
                const float* w = layer.expansion.depthwise;
                for (int i = 0; i < hidden; i++) {
                    const Window first = expanded.window(i, w + i * 9);
                    const Window second = expanded.window(i + hidden, w + (i + hidden) * 9);
                    float* to = gated[i];
                    for (long v = 0; v < nv; v++) {
                        vec z1 = first.at(v);
                        store(to + v * LANES, gelu(z1, normal(z1)) * second.at(v));
                    }
                }
                gemm(contract, gated.matrix(), window, result[0], result.stride);
                for (int i = 0; i < c; i++) {
                    const float *from = input.rows[r][i], *add = result[i];
                    float* to = target + i * plane + r * width;
                    for (long p = patch.first(); p < patch.last(); p++) to[p] = from[p] + add[p];
                }
            });
        }
    }
}

struct FeedForwardGrads {
    float *x, *norm_weight, *norm_bias, *expand, *depthwise, *contract;
};

// forward:  gated = gelu(z1) * z2
//           y = x + contract gated
// backward: dgated = contract^T dy,  dcontract = sum over pixels of dy gated^T
//           dz1 = dgated * z2 * gelu'(z1),  dz2 = dgated * gelu(z1)
//           dx = dy + the pipeline's gradient
//
// Returns, for each image, dM (c, c) = sum over pixels of dx v^T, from which the backward pass of the attention starts.
inline std::vector<std::vector<double>> feed_forward_backward(
    const FeedForward& layer, const AttentionOutput& x, const float* dy, FeedForwardGrads grads
) {
    const Expansion& expansion = layer.expansion;
    const int c = expansion.c, hidden = layer.hidden();
    const long height = x.height, width = x.width, batch = x.m.size(), plane = height * width;
    const long ld = vectors(c) * LANES;
    auto all = bands(batch, height);
    std::vector<ExpansionGrad> parts(all.size(), ExpansionGrad(expansion));
    // dcontract transposed, (hidden, c)
    std::vector<std::vector<double>> contract_parts(all.size(), std::vector<double>((size_t)hidden * c));
    std::vector<std::vector<double>> dm_parts(all.size(), std::vector<double>(c * c));
#pragma omp parallel
    {
        BackwardRows rows(expansion, height, width);
        AttentionOutputRows input(x);
        Packed contract_transposed(layer.contract, hidden, c, hidden, true);
        RowBuffer dgated(hidden, width), gated(hidden, width);
        floats transposed(width * ld);
        const long nv = gated.nv;
#pragma omp for schedule(dynamic)
        for (size_t k = 0; k < all.size(); k++) {
            const long offset = all[k].image * c * plane;
            rows.grad = ExpansionGrad(expansion);
            input.image = all[k].image;
            auto row = [&](const ThreeRows& expanded, RowBuffer& dy_row, RowBuffer& dz, bool inside) {
                const float* w = expansion.depthwise;
                gemm(contract_transposed, dy_row.matrix(), width, dgated[0], dgated.stride);
                for (int i = 0; i < hidden; i++) {
                    const Window first = expanded.window(i, w + i * 9);
                    const Window second = expanded.window(i + hidden, w + (i + hidden) * 9);
                    const float* from = dgated[i];
                    float *to = gated[i], *to_dz1 = dz[i], *to_dz2 = dz[i + hidden];
                    for (long v = 0; v < nv; v++) {
                        vec z1 = first.at(v), z2 = second.at(v), d = load(from + v * LANES);
                        Normal n = normal(z1);
                        store(to + v * LANES, gelu(z1, n) * z2);
                        store(to_dz1 + v * LANES, d * z2 * gelu_slope(z1, n));
                        store(to_dz2 + v * LANES, d * gelu(z1, n));
                    }
                    if (!inside) continue;
                    rows.depthwise_grad(expanded, dz, i);
                    rows.depthwise_grad(expanded, dz, i + hidden);
                }
                if (!inside) return;
                transpose(dy_row[0], dy_row.stride, c, width, transposed.data(), ld);
                outer_add(gated[0], gated.stride, hidden, width, transposed.data(), ld, c, contract_parts[k].data());
            };
            auto done = [&](long r, RowBuffer& dx) {
                transpose(x.v + offset + r * width, plane, c, width, transposed.data(), ld);
                outer_add(dx[0], dx.stride, c, width, transposed.data(), ld, c, dm_parts[k].data());
            };
            rows.run(input, all[k], dy + offset, grads.x + offset, row, done);
            parts[k] = rows.grad;
        }
    }
    ExpansionGrad total(expansion);
    std::vector<double> contract((size_t)hidden * c);
    std::vector<std::vector<double>> dm(batch, std::vector<double>(c * c));
    for (size_t k = 0; k < all.size(); k++) {
        total.add(parts[k]);
        add_to(contract, contract_parts[k]);
        add_to(dm[all[k].image], dm_parts[k]);
    }
    total.write_to(grads);
    for (int i = 0; i < hidden; i++)
        for (int o = 0; o < c; o++) grads.contract[o * hidden + i] = (float)contract[(size_t)i * c + o];
    return dm;
}

}  // namespace film
