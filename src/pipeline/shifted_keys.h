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

  /// What is to be turned in a layer, and by what: the newest token is the last. Until the next
  /// call.
  const TurnedKeys& of_layer(std::int64_t layer, const RetentionPolicy& retention);
  /// The same of all layers, as kernels read it on the device.
  void describe(kernels::StepRow& row) const;

 private:
  std::int64_t* place_rows() const { return host_places_.mutable_data_ptr<std::int64_t>(); }
  /// Ranks the tokens of as many pairs of layer and KV head as there is room for, from `first_set`
  /// on, and keeps what was ranked last.
  void rank_sets(const RetentionPolicy& retention, std::int64_t first_set);
  /// Fills a row of ranks: the new token is the last.
  void rank(std::span<const std::int32_t> positions, std::int64_t row);

  std::int64_t num_kv_heads_;
  std::int64_t window_;
  std::int64_t num_sets_;  ///< S, pairs of layer and KV head at a time: G on a CPU device, else L G
  std::vector<std::int32_t> ranked_positions_;  ///< what `last_row_` was made from
  std::int64_t last_row_ = 0;
  /// int64 [S] whose row of ranks, then ranks [S, window]: place of every slot's token. Sets that
  /// follow each other and are equal have one row.
  at::Tensor host_places_;
  at::Tensor places_;  ///< the same on the device
  TurnedKeys turned_;
};

}  // namespace hybridgen
