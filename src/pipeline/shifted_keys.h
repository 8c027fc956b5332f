// SPDX-License-Identifier: Apache-2.0
// PositionMode::kCacheIndex: keys lie un-rotated, and each step rotates every key to its token's
// place among the retained ones.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "device/resident_cache.h"
#include "hybridgen/selection/retention_policy.h"
#include "models/decoder_model.h"

namespace hybridgen {

class ShiftedKeys {
 public:
  /// Room for `window` tokens of one layer.
  ShiftedKeys(const ModelConfig& config, at::TensorOptions options, std::int64_t window);
  static std::int64_t required_bytes(const ModelConfig& config, DType dtype, std::int64_t window);

  /// [G, n_g, D] of the layer last shifted.
  const at::Tensor& keys() const { return keys_; }
  /// Fills keys() from the layer's, the newest token last.
  void shift(const DecoderModel& model,
             const DeviceOps& ops,
             std::int64_t layer,
             ResidentCache& resident,
             const RetentionPolicy& retention);

 private:
  void rank(std::span<const std::int32_t> positions);

  at::Tensor keys_;
  std::vector<std::int32_t> ranked_positions_;  ///< what `ranks_` was made from
  at::Tensor ranks_;                            ///< int64 [n_g]: place of every slot's token
};

}  // namespace hybridgen
