// The small numbers of the normalisations, for the CPU and for CUDA. `net/ops/reference.py` has the same.
#pragma once

namespace film {

// Added to the variance in a layer norm.
constexpr float LAYER_NORM_EPS = 1e-5f;
// The lower bound of a norm in a normalisation: q / max(||q||, MIN_NORM).
constexpr double MIN_NORM = 1e-12;

}  // namespace film
