// SPDX-License-Identifier: Apache-2.0
// Keys and values of one request that live on the device, all layers: a window of rows that slides
// through a buffer with some slack and is moved to its front when it reaches the end.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "hybridgen/core/model_config.h"

namespace hybridgen {

class ResidentCache {
 public:
  ResidentCache() = default;
  /// Room for `capacity` tokens. Contents are uninitialised.
  ResidentCache(const ModelConfig& config, at::TensorOptions options, std::int64_t capacity);

  /// Rows a cache needs so that a window of `window` out of `max_tokens` tokens slides cheaply.
  static std::int64_t capacity_for(std::int64_t window, std::int64_t max_tokens);
  static std::int64_t required_bytes(const ModelConfig& config, DType dtype, std::int64_t capacity);

  std::int64_t first_slot() const { return first_slot_; }
  std::int64_t size() const { return size_; }  ///< n_g
  std::int64_t capacity() const { return capacity_; }

  at::Tensor& keys(std::int64_t layer) { return keys_[static_cast<std::size_t>(layer)]; }
  at::Tensor& values(std::int64_t layer) { return values_[static_cast<std::size_t>(layer)]; }
  /// Of all layers: [L, G, capacity, D].
  const at::Tensor& all_keys() const { return all_keys_; }
  const at::Tensor& all_values() const { return all_values_; }
  /// Rows in use: [G, n_g, D].
  at::Tensor resident_keys(std::int64_t layer) const;
  at::Tensor resident_values(std::int64_t layer) const;

  /// Forgets the oldest `count` rows of every layer.
  void drop_front(std::int64_t count);
  /// Forgets the newest `count` rows of every layer.
  void drop_back(std::int64_t count);
  /// Copies one KV head's row of one layer from one slot to another.
  void copy_row(std::int64_t layer, std::int64_t kv_head, std::int64_t from, std::int64_t to);
  /// Makes room for one more row in every layer and returns its slot.
  std::int64_t append_slot();

  /// Prefill, one layer: of the resident rows and `keys`, `values` [G, N, D] that follow them,
  /// keeps the newest `keep` rows at the front of the buffer. set_rows(keep) once all layers did
  /// it.
  void replace_layer(std::int64_t layer,
                     const at::Tensor& keys,
                     const at::Tensor& values,
                     std::int64_t keep);
  void set_rows(std::int64_t count);

 private:
  void compact();

  at::Tensor all_keys_;           ///< [L, G, capacity, D]
  at::Tensor all_values_;         ///< [L, G, capacity, D]
  std::vector<at::Tensor> keys_;  ///< views, one per layer
  std::vector<at::Tensor> values_;
  std::int64_t capacity_ = 0;
  std::int64_t first_slot_ = 0;
  std::int64_t size_ = 0;
};

}  // namespace hybridgen
