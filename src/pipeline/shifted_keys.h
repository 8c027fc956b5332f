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
  ShiftedKeys(const ModelConfig& config,
              DType dtype,
              const DeviceContext& device,
              std::int64_t window);
  /// What it takes of the device.
  static std::int64_t required_bytes(const ModelConfig& config,
                                     DType dtype,
                                     bool device_is_host,
                                     std::int64_t window);
  /// Of places, which a device that is not the host needs for all layers at a time; once there and
  /// once on the host.
  static std::int64_t place_bytes(const ModelConfig& config,
                                  bool device_is_host,
                                  std::int64_t window);

  /// Starts the copy of every token's place to the device, on the current stream; nothing on a CPU
  /// device. Before the layers of a step, once the device has done with the step before.
  void begin_step(const RetentionPolicy& retention);

  /// [G, n_g, D] of the layer last shifted.
  const at::Tensor& keys() const { return keys_; }
  /// Fills keys() from the layer's, the newest token last.
  void shift(const DecoderModel& model,
             const DeviceOps& ops,
             std::int64_t layer,
             ResidentCache& resident,
             const RetentionPolicy& retention);

 private:
  /// Fills a row of host_ranks_: the new token is the last.
  void rank(std::span<const std::int32_t> positions, std::int64_t row);
  at::Tensor places_of(std::int64_t layer,
                       std::int64_t kv_head,
                       std::int64_t count,
                       const RetentionPolicy& retention);

  std::int64_t num_layers_;
  std::int64_t num_kv_heads_;
  at::Tensor keys_;
  std::vector<std::int32_t> ranked_positions_;  ///< what a row of `host_ranks_` was made from
  /// int64 [rows, window]: place of every slot's token. On a CPU device one row, of the layer and
  /// KV head that is shifted; else as many as differ among all of a step, [L G] at most.
  at::Tensor host_ranks_;
  at::Tensor ranks_;                    ///< the same on the device
  std::vector<std::int64_t> rank_row_;  ///< [L, G]: whose row
};

}  // namespace hybridgen
