// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

namespace hybridgen {

/// softmax((logit + noise) / tau) of one row, from its softmax weights: ln(weight) is the logit up
/// to a constant, which softmax ignores. A weight of 0 scores 0. `scores` comes in as the noise and
/// goes out as the scores; sizes are equal.
void keyformer_scores(std::span<const float> weights, double tau, std::span<float> scores);

}  // namespace hybridgen
