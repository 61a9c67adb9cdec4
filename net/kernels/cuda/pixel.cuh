// What is computed pixel by pixel: PReLU, sums, layer norm over channels, nearest-neighbour resizing. ../conv.h,
// ../rows.h and ../resize.h compute the same on the CPU.
#pragma once
# include "../constants.h"
# include "launch.cuh"

namespace film {
namespace gpu {

// z = x + bias of the channel; `bias` may be null.
struct Biased {
    long c, plane;
    const float *x, *bias;
    FILM_BODY float z(long index) const { return x[index] + (bias ? bias[index / plane % c] : 0); }
};

// y = z where z > 0, else slope * z. For every element.
struct Prelu {
    Biased input;
    const float* slope;
    float* y;
    FILM_BODY void operator()(long index) const {
        const float z = input.z(index);
        y[index] = z > 0 ? z : *slope * z;
    }
};

// Sums over the pixels of a channel are taken of parts of planes, `size` pixels each: a GPU needs more groups than
// there are channels. Groups are (parts, planes), of which there are (b, c); Total adds the parts.
struct Part {
    long planes, plane, size;
    // Where item `item` of the group is in an array (planes, plane); -1 if the plane ends before it.
    FILM_BODY long at(long group, long item) const {
        const long p = group / planes * size + item;
        return p < plane ? group % planes * plane + p : -1;
    }
};

// forward:  y = z where z > 0, else slope * z
// backward: dx = dz = dy where z > 0, else slope * dy
//           dslope = sum of z dy where z <= 0 (sum 0),  dbias = sum of dz (sum 1)
//
// The terms of dslope are millions, of either sign: to add them to one number in turn, as Jittor does, loses digits.
struct PreluBackward {
    Biased input;
    Part part;
    const float *slope, *dy;
    float *dx, *parts;
    FILM_BODY void operator()(long group, long item, float* sums) const {
        const long at = part.at(group, item);
        if (at < 0) return;
        const float z = input.z(at);
        if (!(z > 0)) sums[0] += z * dy[at];
        sums[1] += dx[at] = z > 0 ? dy[at] : *slope * dy[at];
    }
    FILM_BODY void write(long group, int k, float total) const { parts[2 * group + k] = total; }
};

// The sums of the parts of x.
struct PartSums {
    Part part;
    const float* x;
    float* parts;
    FILM_BODY void operator()(long group, long item, float* sums) const {
        const long at = part.at(group, item);
        if (at >= 0) sums[0] += x[at];
    }
    FILM_BODY void write(long group, int, float total) const { parts[group] = total; }
};

// The index of a pixel's first channel in an array (b, c, height, width); its next channel is `plane` further.
FILM_BODY long first_channel(long pixel, long c, long plane) {
    return pixel / plane * c * plane + pixel % plane;
}

// x (b, c, height, width), weight and bias (c) -> y as x. For every pixel of every image:
// y = (x - mean) * scale * weight + bias, with scale = 1 / sqrt(variance + LAYER_NORM_EPS).
struct LayerNorm {
    long c, plane;
    const float *x, *weight, *bias;
    float* y;
    FILM_BODY void operator()(long pixel) const {
        const long start = first_channel(pixel, c, plane);
        float mean = 0, squares = 0;
        for (long i = 0; i < c; i++) mean += x[start + i * plane];
        mean /= c;
        for (long i = 0; i < c; i++) {
            const float centred = x[start + i * plane] - mean;
            squares += centred * centred;
        }
        const float scale = 1 / sqrtf(squares / c + LAYER_NORM_EPS);
        for (long i = 0; i < c; i++) {
            const long at = start + i * plane;
            y[at] = (x[at] - mean) * scale * weight[i] + bias[i];
        }
    }
};

// For every pixel: dx, and `statistics` (2, pixels), its mean and scale, for LayerNormWeights. With hat = (x - mean) *
// scale, means over the channels, and g = dy * weight:
//
// forward:  y = hat * weight + bias
// backward: dx = scale * (g - mean(g) - hat * mean(g * hat))
//              = scale * (g - mean(g) - (x - mean) * scale^2 * mean(g * (x - mean)))
struct LayerNormBackward {
    long c, plane, pixels;
    const float *x, *weight, *dy;
    float *dx, *statistics;
    FILM_BODY void operator()(long pixel) const {
        const long start = first_channel(pixel, c, plane);
        float mean = 0, squares = 0, sum_g = 0, sum_gx = 0;
        for (long i = 0; i < c; i++) mean += x[start + i * plane];
        mean /= c;
        for (long i = 0; i < c; i++) {
            const long at = start + i * plane;
            const float centred = x[at] - mean, g = dy[at] * weight[i];
            squares += centred * centred;
            sum_g += g;
            sum_gx += g * centred;
        }
        const float scale = 1 / sqrtf(squares / c + LAYER_NORM_EPS);
        const float mean_g = sum_g / c, along = scale * scale * sum_gx / c;
        for (long i = 0; i < c; i++) {
            const long at = start + i * plane;
            dx[at] = scale * (dy[at] * weight[i] - mean_g - (x[at] - mean) * along);
        }
        statistics[pixel] = mean;
        statistics[pixels + pixel] = scale;
    }
};

// Groups are channels, items the pixels of all images.
//
// forward:  y = hat * weight + bias
// backward: dweight = sum over pixels of dy * hat (sum 0),  dbias = sum over pixels of dy (sum 1)
struct LayerNormWeights {
    long c, plane, pixels;
    const float *x, *dy, *statistics;
    float *dweight, *dbias;
    FILM_BODY void operator()(long channel, long pixel, float* sums) const {
        const long at = first_channel(pixel, c, plane) + channel * plane;
        sums[0] += dy[at] * (x[at] - statistics[pixel]) * statistics[pixels + pixel];
        sums[1] += dy[at];
    }
    FILM_BODY void write(long channel, int k, float total) const { (k == 0 ? dweight : dbias)[channel] = total; }
};

// x (planes, height, width) -> y (planes, out_height, out_width). For every element: y[r][p] = x[rows[r]][columns[p]].
struct NearestResize {
    long height, width, out_height, out_width;
    const float* x;
    const int *rows, *columns;
    float* y;
    FILM_BODY void operator()(long index) const {
        const long p = index % out_width, r = index / out_width % out_height, plane = index / out_width / out_height;
        y[index] = x[(plane * height + rows[r]) * width + columns[p]];
    }
};

// The position of the first of n ascending entries that is not below `value`.
FILM_BODY long first_not_below(const int* entries, long n, long value) {
    long low = 0;
    while (low < n) {
        const long middle = (low + n) / 2;
        if (entries[middle] < value) low = middle + 1;
        else n = middle;
    }
    return low;
}

// forward:  y[r][p] = x[rows[r]][columns[p]]
// backward: dx[row][column] = sum of dy[r][p] over the r with rows[r] = row and the p with columns[p] = column
//
// The tables ascend, so these r and p form a rectangle, which each pixel of x finds by binary search.
struct NearestResizeBackward {
    long height, width, out_height, out_width;
    const float* dy;
    const int *rows, *columns;
    float* dx;
    FILM_BODY void operator()(long index) const {
        const long column = index % width, row = index / width % height, plane = index / width / height;
        const long left = first_not_below(columns, out_width, column);
        const long right = first_not_below(columns, out_width, column + 1);
        const long bottom = first_not_below(rows, out_height, row + 1);
        float sum = 0;
        for (long r = first_not_below(rows, out_height, row); r < bottom; r++)
            for (long p = left; p < right; p++) sum += dy[(plane * out_height + r) * out_width + p];
        dx[index] = sum;
    }
};

}  // namespace gpu
}  // namespace film
