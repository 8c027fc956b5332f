// SPDX-License-Identifier: Apache-2.0
// Cosines and sines of rotary positions, as many as the model's requests have needed so far.
#pragma once

#include <ATen/core/Tensor.h>

#include "hybridgen/core/model_config.h"

namespace hybridgen {

/// [positions, D / 2] each, float32, on the model's device; undefined for learned positions.
struct RopeTable {
  at::Tensor cosines;
  at::Tensor sines;
};

/// Angles are computed in float32 in the order transformers does (inverse frequencies, llama3
/// scaling, then position times frequency), so that far positions round the same way.
RopeTable build_rope_table(const ModelConfig& config, std::int64_t positions, at::Device device);

}  // namespace hybridgen
