// Convolutions with zero padding and their gradients: 3x3, depthwise and dense, and with one window for all planes.
// ../conv.h and ../rows.h compute the 3x3 ones on the CPU and derive the gradients.
#pragma once
# include "launch.cuh"

namespace film {
namespace gpu {

struct Plane {
    long height, width;
    FILM_BODY long size() const { return height * width; }
    FILM_BODY bool holds(long row, long column) const {
        return row >= 0 && row < height && column >= 0 && column < width;
    }
};

// The cross-correlation with x at pixel p of a window (n, n), n odd. With `flipped` it is rotated by 180 degrees.
FILM_BODY float correlate(const Plane& plane, const float* x, long p, const float* window, int n, bool flipped) {
    const long p_row = p / plane.width, p_column = p % plane.width;
    float sum = 0;
    for (int t = 0; t < n * n; t++) {
        const long row = p_row + t / n - n / 2, column = p_column + t % n - n / 2;
        if (plane.holds(row, column)) sum += x[row * plane.width + column] * window[flipped ? n * n - 1 - t : t];
    }
    return sum;
}

// Pixel p's part of the window's gradient: sums[t] += dy * x[p shifted by tap t], where dy is the gradient at p.
FILM_BODY void add_window_grad(const Plane& plane, const float* x, long p, float dy, float* sums) {
    const long p_row = p / plane.width, p_column = p % plane.width;
    for (int t = 0; t < 9; t++) {
        const long row = p_row + t / 3 - 1, column = p_column + t % 3 - 1;
        if (plane.holds(row, column)) sums[t] += dy * x[row * plane.width + column];
    }
}

// x (planes, height, width) -> y as x, with one window (n, n) for all. For every element of y.
//
// forward:  y = correlation of each plane of x with the window
// backward: dx = correlation of each plane of dy with the window, `flipped`
struct Correlate {
    Plane plane;
    long n;
    const float *x, *window;
    bool flipped;
    float* y;
    FILM_BODY void operator()(long index) const {
        const long p = index % plane.size();
        y[index] = correlate(plane, x + index - p, p, window, n, flipped);
    }
};

// x (b, c, height, width), weight (c, 9) -> y as x. For every element of y.
//
// forward:  y = correlation of each channel of x with its window
// backward: dx = correlation of each channel of dy with its window, `flipped`
struct Depthwise {
    Plane plane;
    long c;
    const float *x, *weight;
    bool flipped;
    float* y;
    FILM_BODY void operator()(long index) const {
        const long start = index / plane.size(), channel = start % c;  // start: of the plane, in planes
        y[index] = correlate(plane, x + start * plane.size(), index % plane.size(), weight + channel * 9, 3, flipped);
    }
};

// The gradient of the windows, dweight (c, 9). Groups are channels, items the pixels of all images.
//
// forward:  y[p] = sum over t of w[t] x[p shifted by tap t]
// backward: dw[t] = sum over p of dy[p] x[p shifted by tap t]
struct DepthwiseWeights {
    Plane plane;
    long c;
    const float *x, *dy;
    float* dweight;
    FILM_BODY void operator()(long channel, long item, float* sums) const {
        const long p = item % plane.size(), start = (item / plane.size() * c + channel) * plane.size();
        add_window_grad(plane, x + start, p, dy[start + p], sums);
    }
    FILM_BODY void write(long channel, int t, float total) const { dweight[channel * 9 + t] = total; }
};

// x (b, in, height, width), weight (out, in, 9) -> y (b, out, height, width). For every element of y.
//
// forward:  y[o] = sum over i of the correlation of x[i] with W[o][i]
// backward: dx[i] = sum over o of the correlation of dy[o] with W[o][i], flipped
//
// With `backward`, x is dy and y is dx: `in` are then the channels of dy, and weight is (in, out, 9).
struct Conv3x3 {
    Plane plane;
    long in, out;
    const float *x, *weight;
    bool backward;
    float* y;
    FILM_BODY void operator()(long index) const {
        const long p = index % plane.size(), b = index / plane.size() / out, o = index / plane.size() % out;
        float sum = 0;
        for (long i = 0; i < in; i++) {
            const float* window = weight + 9 * (backward ? i * out + o : o * in + i);
            sum += correlate(plane, x + (b * in + i) * plane.size(), p, window, 3, backward);
        }
        y[index] = sum;
    }
};

// The gradient of the windows, dweight (out, in, 9). Groups are pairs (o, i) of channels, items the pixels of
// all images.
//
// forward:  y[o][p] = sum over i, t of W[o][i][t] x[i][p shifted by tap t]
// backward: dW[o][i][t] = sum over p of dy[o][p] x[i][p shifted by tap t]
struct Conv3x3Weights {
    Plane plane;
    long in, out;
    const float *x, *dy;
    float* dweight;
    FILM_BODY void operator()(long group, long item, float* sums) const {
        const long b = item / plane.size(), p = item % plane.size(), o = group / in, i = group % in;
        const float dy_here = dy[(b * out + o) * plane.size() + p];
        add_window_grad(plane, x + (b * in + i) * plane.size(), p, dy_here, sums);
    }
    FILM_BODY void write(long group, int t, float total) const { dweight[group * 9 + t] = total; }
};

}  // namespace gpu
}  // namespace film
