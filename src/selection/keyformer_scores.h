// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

namespace hybridgen {

/// softmax((logit + noise) / tau) of one row, from its softmax weights: ln(weight) is the logit up
/// to a constant, which softmax ignores. It is `scores` times the factor that is returned. A weight
/// of 0 scores 0; with a NaN among the weights the factor is NaN. `exponentials` holds e^-noise, or
/// nothing: no noise; else sizes are equal, and `scores` may be the same memory.
float keyformer_scores(std::span<const float> weights,
                       std::span<const float> exponentials,
                       double tau,
                       std::span<float> scores);

}  // namespace hybridgen
