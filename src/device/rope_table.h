// SPDX-License-Identifier: Apache-2.0
// Cosines and sines of rotary positions. Where the rotation depends on how long the pass is that a
// token comes with (dynamic and longrope scaling), a decode step and a prompt have tables of their
// own: a token keeps the rotation that it got, as in transformers with a KV cache.
#pragma once

#include <ATen/core/Tensor.h>

#include "hybridgen/core/model_config.h"

namespace hybridgen {

/// Float32 [rows, D / 2] each, on the model's device, multiplied by RopeScaling::attention_factor;
/// undefined for learned positions.
struct RopeTable {
  at::Tensor cosines;
  at::Tensor sines;
};

/// Row p: of the token at position p in a pass that ends with it, as a decode step does.
RopeTable build_rope_table(const ModelConfig& config, std::int64_t positions, at::Device device);

/// Row i: of the token at position first + i in a pass that sees `length` tokens in all.
RopeTable build_prompt_rope_table(const ModelConfig& config,
                                  std::int64_t first,
                                  std::int64_t count,
                                  std::int64_t length,
                                  at::Device device);

/// Undoes what `table` does.
RopeTable inverse_of(const ModelConfig& config, const RopeTable& table);

}  // namespace hybridgen
