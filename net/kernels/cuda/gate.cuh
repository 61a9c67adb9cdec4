// A depthwise 3x3 convolution and the GELU gate in one pass: what lies between is the largest array of the network, and
// is neither written nor read. ../feedforward.h computes the same on the CPU.
#pragma once
# include "conv.cuh"

namespace film {
namespace gpu {

// Phi(z), the distribution function of the standard normal distribution.
FILM_BODY float normal_below(float z) { return 0.5f * (1 + erff(z * 0.70710678f)); }

// x (b, 2 hidden, height, width), weight (2 hidden, 9) -> z as x, the depthwise convolution of x, in halves z1 and z2.
struct Halves {
    Plane plane;
    long hidden;
    const float *x, *weight;
    // Where z1 (part 0) or z2 (part 1) is in z, for element `index` of an array (b, hidden, height, width).
    FILM_BODY long at(long index, int part) const {
        const long block = hidden * plane.size();
        return index + (index / block + part) * block;
    }
    FILM_BODY float z(long index, int part) const {
        const long place = at(index, part), start = place / plane.size();
        const float* window = weight + start % (2 * hidden) * 9;
        return correlate(plane, x + start * plane.size(), place % plane.size(), window, 3, false);
    }
};

// y (b, hidden, height, width) = gelu(z1) * z2, gelu(z) = z Phi(z). For every element of y.
struct DepthwiseGate {
    Halves halves;
    float* y;
    FILM_BODY void operator()(long index) const {
        const float z1 = halves.z(index, 0);
        y[index] = z1 * normal_below(z1) * halves.z(index, 1);
    }
};

// dz as x, for every element of dy; the gradient of the convolution follows from it (conv.cuh).
//
// forward:  y = gelu(z1) * z2
// backward: dz1 = dy * z2 * gelu'(z1),  dz2 = dy * gelu(z1),  gelu'(z) = Phi(z) + z phi(z)
struct DepthwiseGateBackward {
    Halves halves;
    const float* dy;
    float* dz;
    FILM_BODY void operator()(long index) const {
        const float z1 = halves.z(index, 0), below = normal_below(z1), density = 0.39894228f * expf(-0.5f * z1 * z1);
        dz[halves.at(index, 0)] = dy[index] * halves.z(index, 1) * (below + z1 * density);
        dz[halves.at(index, 1)] = dy[index] * z1 * below;
    }
};

}  // namespace gpu
}  // namespace film
