// Runs every CPU kernel, forward and backward, on arrays of exactly the required size: a sanitizer reports accesses
// outside them. Arguments: batch, height, width, channels, heads, queries. Prints the values of every array, inputs too:
// a weighted sum, and the sum of the magnitudes. So builds for two processors can be compared.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "block.h"
#include "elementwise.h"
#include "merge.h"
#include "resize.h"
#include "text.h"
using namespace film;

inline double varied(long i) { return (i * 7919 % 2003) / 1001.0 - 1; }  // in -1..1

// An array of varied values.
template <class T = float>
struct Array {
    long n;
    T* p;
    explicit Array(long n_, double scale = 1) : n(n_), p((T*)malloc(n * sizeof(T))) {
        for (long i = 0; i < n; i++) p[i] = (T)(scale * varied(i));
    }
    Array(const Array&) = delete;
    ~Array() {
        double sum = 0, size = 0;
        for (long i = 0; i < n; i++) sum += p[i] * varied(i + 1), size += std::fabs((double)p[i]);
        printf("%.9g %.9g\n", sum, size);
        free(p);
    }
    operator T*() const { return p; }
};

static void run(long batch, long height, long width, int c, int heads, int queries) {
    const int hidden = 4 * c, out = c + 3;
    const long plane = height * width, image = batch * plane;
    Array<> x(image * c), y(image * c), dx(image * c), dy(image * c), v(image * c), between(image * c);
    Array<> norm(c), norm_bias(c), dnorm(c), dnorm_bias(c);
    {
        Array<> qkv(3 * c * c), windows(3 * c * 9), temperature(heads), project(c * c);
        Array<> dqkv(3 * c * c), dwindows(3 * c * 9), dtemperature(heads), dproject(c * c);
        Array<> norm2(c), bias2(c), expand(2 * hidden * c), windows2(2 * hidden * 9), contract(c * hidden);
        Array<> dnorm2(c), dbias2(c), dexpand(2 * hidden * c), dwindows2(2 * hidden * 9), dcontract(c * hidden);
        Array<double> saved(batch * heads * (c / heads) * (c / heads + 2));
        TransformerBlock block{
            {{c, 3 * c, norm, norm_bias, qkv, windows}, heads, temperature, project},
            {{c, 2 * hidden, norm2, bias2, expand, windows2}, contract}
        };
        transformer_block(block, x, batch, height, width, y, v, saved);
        transformer_block_backward(
            block, x, v, saved, dy, batch, height, width,
            {dx, dnorm, dnorm_bias, dqkv, dwindows, dtemperature, dproject},
            {between, dnorm2, dbias2, dexpand, dwindows2, dcontract}
        );
    }
    {
        ConvShape s{c, out, batch, height, width}, back{out, c, batch, height, width};
        Array<> wide(image * out), w1(out * c), w3(out * c * 9), bias(out), d1(out * c), d3(out * c * 9), dbias(out);
        pointwise_conv(s, x, w1, bias, wide);
        pointwise_conv(back, wide, w1, nullptr, dx, true);
        pointwise_conv_weights(s, x, wide, d1, dbias);
        conv3x3(s, x, w3, wide);
        conv3x3_input(s, wide, w3, dx);
        conv3x3_weights(s, x, wide, d3);
    }
    {
        Array<> dslope(1);
        prelu(x, 0.25f, image * c, y);
        prelu_backward(x, 0.25f, dy, image * c, dx, dslope);
    }
    {
        Array<> g(image * c), dg(image * c), w2(c * c), b2(c), s2(1), w3(2 * c * c), b3(c), s3(1);
        Array<> dw2(c * c), db2(c), ds2(1), dw3(2 * c * c), db3(c), ds3(1);
        Merge m{c, w2, b2, s2, w3, b3, s3};
        merge(m, x, g, batch, plane, y);
        merge_backward(m, x, g, dy, batch, plane, {dx, dg, dw2, db2, ds2, dw3, db3, ds3});
    }
    {
        const int e = 8 * c;
        Array<> text(batch * queries * e), tokens(image * e), in(3 * e * e, 0.1), in_bias(3 * e), w(e * e), b(e);
        Array<> pooled(batch * e);
        Array<> dtext(batch * queries * e), dtokens(image * e), din(3 * e * e), din_bias(3 * e), dw(e * e), db(e);
        const long length = 16 * ((plane + 15) / 16 | 1);
        Array<> keys(batch * e * length);
        TextShape s{batch, queries, plane, e, heads, length};
        TextWeights weights{in, in_bias, w, b};
        pooled_text_attention(s, weights, text, tokens, pooled, keys);
        pooled_text_attention_backward(s, weights, text, tokens, keys, pooled, {dtext, dtokens, din, din_bias, dw, db});
        Array<> guided(image * e), dpooled(batch * e);
        guide(tokens, pooled, batch, plane, e, guided);
        guide_backward(tokens, pooled, guided, batch, plane, e, dtokens, dpooled);
    }
    {
        Array<> both(2 * image * c);
        concat_channels(x, y, batch, c, plane, both);
        split_channels(both, batch, c, plane, dx, dy);
    }
    {
        const long h = height / 2 + 1, w = width * 3 / 2 + 1;
        Array<> small(batch * h * w);
        Array<int> rows(h), columns(w);
        for (long i = 0; i < h; i++) rows[i] = i * height / h;
        for (long i = 0; i < w; i++) columns[i] = i * width / w;
        nearest_resize({batch, height, width, h, w}, x, rows, columns, small);
        nearest_resize_backward({batch, height, width, h, w}, small, rows, columns, dx);
    }
}

int main(int, char** a) {
    run(atol(a[1]), atol(a[2]), atol(a[3]), atoi(a[4]), atoi(a[5]), atoi(a[6]));
    puts("whole");
}
