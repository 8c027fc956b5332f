// SPDX-License-Identifier: Apache-2.0
// Inverse frequencies of rotary positions, scaled as ModelConfig::rope_scaling says: the arithmetic
// of transformers' modeling_rope_utils.py in its order and in float32, so that far positions round
// the same way.
#pragma once

#include <ATen/core/Tensor.h>

#include "hybridgen/core/model_config.h"

namespace hybridgen {

/// Float32 [N, D / 2], or [1, D / 2] where all are the same: row n for a pass that sees lengths[n]
/// tokens (its last position plus one). lengths: int64 [N]; all on the host.
at::Tensor inverse_frequencies(const ModelConfig& config, const at::Tensor& lengths);

}  // namespace hybridgen
