// A step of Adam (utils/training/optim.py) for many parameters in one launch.
#pragma once
# include "launch.cuh"

namespace film {
namespace gpu {

// A parameter of `size` numbers with its gradient and moments, and where the new values go.
struct Parameter {
    const float *p, *g, *m, *v;
    float *new_p, *new_m, *new_v;
    long size;
};

// For every number of all parameters, one after the other. COUNT parameters and the rest fit into the 4 KB of arguments
// that a kernel may have.
template <int COUNT>
struct Adam {
    Parameter parameters[COUNT];
    const float *step_size, *root_correction;
    float rate1, beta2, rate2, eps;  // rate: 1 - beta, which as a difference of floats would be inexact
    FILM_BODY void operator()(long index) const {
        const Parameter* of = parameters;
        while (index >= of->size) index -= (of++)->size;
        const float g = of->g[index];
        const float m = of->m[index] + (g - of->m[index]) * rate1;
        const float v = beta2 * of->v[index] + rate2 * g * g;
        of->new_m[index] = m;
        of->new_v[index] = v;
        of->new_p[index] = of->p[index] - *step_size * m / (sqrtf(v) / *root_correction + eps);
    }
};

}  // namespace gpu
}  // namespace film
