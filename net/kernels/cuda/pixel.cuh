// What is computed pixel by pixel: the norm over channels, the gated GELU, nearest resizing.
#pragma once
# include "launch.cuh"

namespace film {
namespace gpu {

constexpr float NORM_EPS = 1e-5f;

// Where pixel i of a (b, c, H, W) array has its first channel; the next one is `plane` further.
FILM_BODY long first_channel(long i, long channels, long plane) { return i / plane * channels * plane + i % plane; }

// x (b, c, H, W), weight and bias (c) -> y as x. One pixel a call.
struct LayerNorm {
    long channels, plane;
    const float *x, *weight, *bias;
    float* y;
    FILM_BODY void operator()(long i) const {
        const long start = first_channel(i, channels, plane);
        float mean = 0, square = 0;
        for (long c = 0; c < channels; c++) mean += x[start + c * plane];
        mean /= channels;
        for (long c = 0; c < channels; c++) {
            const float centred = x[start + c * plane] - mean;
            square += centred * centred;
        }
        const float scale = 1 / sqrtf(square / channels + NORM_EPS);
        for (long c = 0; c < channels; c++) {
            const long at = start + c * plane;
            y[at] = (x[at] - mean) * scale * weight[c] + bias[c];
        }
    }
};

// The gradient of x, and mean and scale of every pixel (2, pixels) for LayerNormWeights.
struct LayerNormBackward {
    long channels, plane, pixels;
    const float *x, *weight, *dy;
    float *dx, *statistics;
    FILM_BODY void operator()(long i) const {
        const long start = first_channel(i, channels, plane);
        float mean = 0, square = 0, of_g = 0, of_gx = 0;
        for (long c = 0; c < channels; c++) mean += x[start + c * plane];
        mean /= channels;
        for (long c = 0; c < channels; c++) {
            const long at = start + c * plane;
            const float centred = x[at] - mean, g = dy[at] * weight[c];
            square += centred * centred;
            of_g += g;
            of_gx += g * centred;
        }
        const float scale = 1 / sqrtf(square / channels + NORM_EPS);
        const float of_mean = of_g / channels, of_scale = scale * scale * of_gx / channels;
        for (long c = 0; c < channels; c++) {
            const long at = start + c * plane;
            dx[at] = scale * (dy[at] * weight[c] - of_mean - (x[at] - mean) * of_scale);
        }
        statistics[i] = mean;
        statistics[pixels + i] = scale;
    }
};

// Gradients of weight (sum 0) and bias (sum 1): groups are channels, items the pixels of all images.
struct LayerNormWeights {
    long channels, plane, pixels;
    const float *x, *dy, *statistics;
    float *dweight, *dbias;
    FILM_BODY void operator()(long c, long i, float* sums) const {
        const long at = first_channel(i, channels, plane) + c * plane;
        sums[0] += dy[at] * (x[at] - statistics[i]) * statistics[pixels + i];
        sums[1] += dy[at];
    }
    FILM_BODY void write(long c, int k, float total) const { (k == 0 ? dweight : dbias)[c] = total; }
};

FILM_BODY float normal_below(float z) { return 0.5f * (1 + erff(z * 0.70710678f)); }

// Halves x1, x2 of x (b, 2 half) -> y (b, half) = gelu(x1) * x2. For every element of y.
struct GatedGelu {
    long half;
    const float* x;
    float* y;
    FILM_BODY void operator()(long i) const {
        const long at = i + i / half * half;
        y[i] = x[at] * normal_below(x[at]) * x[at + half];
    }
};

struct GatedGeluBackward {
    long half;
    const float *x, *dy;
    float* dx;
    FILM_BODY void operator()(long i) const {
        const long at = i + i / half * half;
        const float z = x[at], below = normal_below(z), density = 0.39894228f * expf(-0.5f * z * z);
        dx[at] = dy[i] * x[at + half] * (below + z * density);
        dx[at + half] = dy[i] * z * below;
    }
};

// x (planes, height, width) -> y (planes, out_height, out_width); rows and columns say which pixel each takes.
struct NearestResize {
    long height, width, out_height, out_width;
    const float* x;
    const int *rows, *columns;
    float* y;
    FILM_BODY void operator()(long i) const {
        const long column = i % out_width, row = i / out_width % out_height, plane = i / out_width / out_height;
        y[i] = x[(plane * height + rows[row]) * width + columns[column]];
    }
};

// The first of n ascending entries that is not below `value`.
FILM_BODY long first_not_below(const int* entries, long n, long value) {
    long low = 0;
    while (low < n) {
        const long middle = (low + n) / 2;
        if (entries[middle] < value) low = middle + 1;
        else n = middle;
    }
    return low;
}

// For every pixel of the input the sum over the rectangle of outputs that took it.
struct NearestResizeBackward {
    long height, width, out_height, out_width;
    const float* dy;
    const int *rows, *columns;
    float* dx;
    FILM_BODY void operator()(long i) const {
        const long column = i % width, row = i / width % height, plane = i / width / height;
        const long left = first_not_below(columns, out_width, column);
        const long right = first_not_below(columns, out_width, column + 1);
        const long bottom = first_not_below(rows, out_height, row + 1);
        float sum = 0;
        for (long r = first_not_below(rows, out_height, row); r < bottom; r++)
            for (long c = left; c < right; c++) sum += dy[(plane * out_height + r) * out_width + c];
        dx[i] = sum;
    }
};

}  // namespace gpu
}  // namespace film
