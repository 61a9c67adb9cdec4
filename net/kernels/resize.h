// Nearest-neighbour resizing by tables of source rows and columns, forward and backward.
#pragma once
#include <algorithm>
#include <cstring>

namespace film {

struct ResizeShape {
    long planes, height, width, out_height, out_width;  // planes: batch * channels
};

// y[r][p] = x[rows[r]][columns[p]] in every plane; rows (out_height), columns (out_width).
inline void nearest_resize(const ResizeShape& s, const float* x, const int* rows, const int* columns, float* y) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < s.planes; i++)
        for (long r = 0; r < s.out_height; r++) {
            const float* from = x + (i * s.height + rows[r]) * s.width;
            float* to = y + (i * s.out_height + r) * s.out_width;
            for (long p = 0; p < s.out_width; p++) to[p] = from[columns[p]];
        }
}

// forward:  y[r][p] = x[rows[r]][columns[p]]
// backward: dx[rows[r]][columns[p]] += dy[r][p]: a pixel of x gets the sum of the gradients of all its copies
inline void nearest_resize_backward(
    const ResizeShape& s, const float* dy, const int* rows, const int* columns, float* dx
) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < s.planes; i++) {
        std::fill(dx + i * s.height * s.width, dx + (i + 1) * s.height * s.width, 0.0f);
        for (long r = 0; r < s.out_height; r++) {
            float* to = dx + (i * s.height + rows[r]) * s.width;
            const float* from = dy + (i * s.out_height + r) * s.out_width;
            for (long p = 0; p < s.out_width; p++) to[columns[p]] += from[p];
        }
    }
}

}  // namespace film
