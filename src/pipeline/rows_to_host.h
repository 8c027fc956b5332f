// SPDX-License-Identifier: Apache-2.0
// Rows that are about to leave a device that is not the host, of all layers at once: copied while
// the device is busy, read after the step's wait. So eviction in the next step waits for nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "device/device_context.h"
#include "device/resident_cache.h"
#include "hybridgen/core/kv_views.h"

namespace hybridgen {

class RowsToHost {
 public:
  /// Room for `capacity` rows of every layer and KV head.
  RowsToHost(const ModelConfig& config,
             DType dtype,
             const DeviceContext& device,
             std::int64_t capacity);
  /// Of host memory.
  static std::int64_t required_bytes(const ModelConfig& config, DType dtype, std::int64_t capacity);

  /// Starts the copy of `count` rows from `first_slot` on, on the current stream. What was here
  /// before is gone.
  void send(const ResidentCache& resident, std::int64_t first_slot, std::int64_t count);
  /// The host has waited for the copy.
  void arrive() { has_arrived_ = true; }

  /// The rows have moved: what is here is of no use.
  void forget() { has_arrived_ = false; }

  /// Whether exactly these rows are here.
  bool has(std::int64_t first_slot, std::int64_t count) const {
    return has_arrived_ && first_slot_ == first_slot && count_ == count;
  }
  /// Of a layer, the first one that was sent in front.
  KvRowsView keys(std::int64_t layer) const { return view(keys_, layer); }
  KvRowsView values(std::int64_t layer) const { return view(values_, layer); }

 private:
  KvRowsView view(const at::Tensor& rows, std::int64_t layer) const;

  std::int64_t num_layers_;
  std::int64_t num_kv_heads_;
  std::int64_t head_dim_;
  at::Tensor keys_, values_;  ///< [L * G * capacity * D]; in use: [L, G, count, D]
  std::int64_t first_slot_ = 0;
  std::int64_t count_ = 0;
  bool has_arrived_ = false;
};

}  // namespace hybridgen
