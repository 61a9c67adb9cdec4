// Nearest-neighbour resizing by tables of source rows and columns, forward and backward.
#pragma once
#include <algorithm>
#include <cstring>

namespace film {

struct ResizeShape {
    long planes, height, width, out_height, out_width;
};

inline void nearest_resize(const ResizeShape& s, const float* x, const int* rows, const int* columns, float* y) {
#pragma omp parallel for schedule(static)
    for (long p = 0; p < s.planes; p++)
        for (long r = 0; r < s.out_height; r++) {
            const float* from = x + (p * s.height + rows[r]) * s.width;
            float* to = y + (p * s.out_height + r) * s.out_width;
            for (long j = 0; j < s.out_width; j++) to[j] = from[columns[j]];
        }
}

inline void nearest_resize_backward(const ResizeShape& s, const float* dy, const int* rows, const int* columns, float* dx) {
#pragma omp parallel for schedule(static)
    for (long p = 0; p < s.planes; p++) {
        std::fill(dx + p * s.height * s.width, dx + (p + 1) * s.height * s.width, 0.0f);
        for (long r = 0; r < s.out_height; r++) {
            float* to = dx + (p * s.height + rows[r]) * s.width;
            const float* from = dy + (p * s.out_height + r) * s.out_width;
            for (long j = 0; j < s.out_width; j++) to[columns[j]] += from[j];
        }
    }
}

}  // namespace film
