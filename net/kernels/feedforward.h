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
        RowBuffer gated[2] = {{hidden, window}, {hidden, window}}, result(c, window);
        const long nv = result.nv;
#pragma omp for schedule(dynamic)
        for (size_t k = 0; k < patches.all.size(); k++) {
            const Patch& patch = patches.all[k];
            float* target = y + patch.band.image * c * plane + patch.start;
            input.image = patch.band.image;
            input.start = patch.start;
            rows.run(input, patch.band, [&](long first_row, long count, const FourRows& expanded) {
                const float* w = layer.expansion.depthwise;
                for (int i = 0; i < hidden; i++) {
                    float* to[2] = {gated[0][i], gated[1][i]};  // first z1
                    expanded.correlate(i, w + i * 9, to[0], to[1]);
                    const Window second = expanded.window(i + hidden, w + (i + hidden) * 9);
                    for (long v = 0; v < nv; v++) {
                        const TwoVectors z2 = second.at(v);
                        for (int row = 0; row < 2; row++) {
                            const vec z1 = load(to[row] + v * LANES);
                            store(to[row] + v * LANES, gelu(z1, normal(z1)) * z2.row[row]);
                        }
                    }
                }
                for (int row = 0; row < count; row++) {
                    const long r = first_row + row;
                    gemm(contract, gated[row].matrix(), window, result[0], result.stride);
                    for (int i = 0; i < c; i++) {
                        const float* from = input.rows[r][i];
                        float* sum = result[i];
                        for (long p = 0; p < window; p++) sum[p] += from[p];
                        const long first = patch.first();
                        write_out(target + i * plane + r * width + first, sum + first, patch.last() - first);
                    }
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
        RowBuffer gated[2] = {{hidden, width}, {hidden, width}};  // first dgated
        RowBuffer z1(2, width), z2(2, width);                     // two rows of one channel
        floats transposed(width * ld);
        const long nv = gated[0].nv;
#pragma omp for schedule(dynamic)
        for (size_t k = 0; k < all.size(); k++) {
            const long offset = all[k].image * c * plane;
            rows.grad = ExpansionGrad(expansion);
            input.image = all[k].image;
            auto two_rows = [&](long first_row, const FourRows& expanded) {
                const float* w = expansion.depthwise;
                for (int row = 0; row < 2; row++) {
                    RowBuffer& dy_row = rows.dy.rows[first_row + row];
                    gemm(contract_transposed, dy_row.matrix(), width, gated[row][0], gated[row].stride);
                }
                for (int i = 0; i < hidden; i++) {
                    expanded.correlate(i, w + i * 9, z1[0], z1[1]);
                    expanded.correlate(i + hidden, w + (i + hidden) * 9, z2[0], z2[1]);
                    for (int row = 0; row < 2; row++) {
                        const float *from_z1 = z1[row], *from_z2 = z2[row];
                        float* to = gated[row][i];
                        float *to_dz1 = rows.dz[first_row + row][i], *to_dz2 = rows.dz[first_row + row][i + hidden];
                        for (long v = 0; v < nv; v++) {
                            const vec a = load(from_z1 + v * LANES), b = load(from_z2 + v * LANES);
                            const vec d = load(to + v * LANES);
                            const Normal n = normal(a);
                            store(to + v * LANES, gelu(a, n) * b);
                            store(to_dz1 + v * LANES, d * b * gelu_slope(a, n));
                            store(to_dz2 + v * LANES, d * gelu(a, n));
                        }
                    }
                    rows.depthwise_grad(expanded, first_row, i);
                    rows.depthwise_grad(expanded, first_row, i + hidden);
                }
                for (int row = 0; row < 2; row++) {
                    if (!rows.inside(first_row + row)) continue;
                    RowBuffer& dy_row = rows.dy.rows[first_row + row];
                    transpose(dy_row[0], dy_row.stride, c, width, transposed.data(), ld);
                    outer_add(
                        gated[row][0], gated[row].stride, hidden, width, transposed.data(), ld, c,
                        contract_parts[k].data()
                    );
                }
            };
            auto done = [&](long r, RowBuffer& dx) {
                transpose(x.v + offset + r * width, plane, c, width, transposed.data(), ld);
                outer_add(dx[0], dx.stride, c, width, transposed.data(), ld, c, dm_parts[k].data());
            };
            rows.run(input, all[k], dy + offset, grads.x + offset, two_rows, done);
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
