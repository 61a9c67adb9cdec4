// 3x3 cross-correlations with zero padding 1, of each channel by itself or of all, and their gradients.
#pragma once
# include "launch.cuh"

namespace film {
namespace gpu {

struct Plane {
    long height, width;
    FILM_BODY long size() const { return height * width; }
    FILM_BODY bool holds(long y, long x) const { return y >= 0 && y < height && x >= 0 && x < width; }
};

// The 3x3 neighbours of pixel p times the window, summed; `flipped` turns the window by half a turn (the gradient with
// respect to the input is the correlation of the output's gradient with that).
FILM_BODY float correlate(const Plane& plane, const float* x, long p, const float* window, bool flipped) {
    const long row = p / plane.width, column = p % plane.width;
    float sum = 0;
    for (int k = 0; k < 9; k++) {
        const long i = row + k / 3 - 1, j = column + k % 3 - 1;
        if (plane.holds(i, j)) sum += x[i * plane.width + j] * window[flipped ? 8 - k : k];
    }
    return sum;
}

// sums[k] += g * (neighbour k of pixel p): a pixel's part of the window's gradient.
FILM_BODY void add_neighbours(const Plane& plane, const float* x, long p, float g, float* sums) {
    const long row = p / plane.width, column = p % plane.width;
    for (int k = 0; k < 9; k++) {
        const long i = row + k / 3 - 1, j = column + k % 3 - 1;
        if (plane.holds(i, j)) sums[k] += g * x[i * plane.width + j];
    }
}

// x (b, c, H, W), weight (c, 9) -> y as x. For every element of y.
struct Depthwise {
    Plane plane;
    long channels;
    const float *x, *weight;
    bool flipped;
    float* y;
    FILM_BODY void operator()(long i) const {
        const long image = i / plane.size(), c = image % channels;
        y[i] = correlate(plane, x + image * plane.size(), i % plane.size(), weight + c * 9, flipped);
    }
};

// Gradient of a channel's window, dweight (c, 9): groups are channels, items the pixels of all images.
struct DepthwiseWeights {
    Plane plane;
    long channels;
    const float *x, *dy;
    float* dweight;
    FILM_BODY void operator()(long c, long item, float* sums) const {
        const long p = item % plane.size(), start = (item / plane.size() * channels + c) * plane.size();
        add_neighbours(plane, x + start, p, dy[start + p], sums);
    }
    FILM_BODY void write(long c, int k, float total) const { dweight[c * 9 + k] = total; }
};

// x (b, inputs, H, W), weight (outputs, inputs, 9) -> y (b, outputs, H, W). With `backward` x is the gradient of the
// output and y that of the input: weight is then (inputs, outputs, 9), and its windows are flipped.
struct Conv3x3 {
    Plane plane;
    long inputs, outputs;
    const float *x, *weight;
    bool backward;
    float* y;
    FILM_BODY void operator()(long i) const {
        const long p = i % plane.size(), image = i / plane.size() / outputs, o = i / plane.size() % outputs;
        float sum = 0;
        for (long c = 0; c < inputs; c++) {
            const float* window = weight + 9 * (backward ? c * outputs + o : o * inputs + c);
            sum += correlate(plane, x + (image * inputs + c) * plane.size(), p, window, backward);
        }
        y[i] = sum;
    }
};

// Gradient of the windows, dweight (outputs, inputs, 9): groups are pairs (output, input) of channels, items the pixels
// of all images.
struct Conv3x3Weights {
    Plane plane;
    long inputs, outputs;
    const float *x, *dy;
    float* dweight;
    FILM_BODY void operator()(long group, long item, float* sums) const {
        const long image = item / plane.size(), p = item % plane.size(), o = group / inputs, c = group % inputs;
        const float g = dy[(image * outputs + o) * plane.size() + p];
        add_neighbours(plane, x + (image * inputs + c) * plane.size(), p, g, sums);
    }
    FILM_BODY void write(long group, int k, float total) const { dweight[group * 9 + k] = total; }
};

}  // namespace gpu
}  // namespace film
