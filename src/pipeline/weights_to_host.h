// SPDX-License-Identifier: Apache-2.0
// Softmax weights of a step, layer by layer, on their way from a device that is not the host: read
// after the step's wait. Keeps beside them what the host knows of each layer only until its staging
// is used again.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "device/device_context.h"
#include "hybridgen/core/model_config.h"

namespace hybridgen {

/// Offloaded tokens that took part in a layer, as its host job left them. Default: none, or the
/// host merged them itself.
struct ChosenTokens {
  const std::int32_t* positions = nullptr;  ///< of KV head g from g * head_stride on
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;           ///< between query heads; 0: one row for all of a KV head
  const std::int64_t* counts = nullptr;  ///< [G]
};

/// What a layer's softmax gave: float32 [H, stride], chosen tokens first, then resident ones.
struct SoftmaxWeights {
  const float* data = nullptr;
  std::int64_t stride = 0;
  ChosenTokens chosen;
};

class WeightsToHost {
 public:
  /// Room for `max_resident` tokens on the device and `max_chosen` offloaded ones.
  WeightsToHost(const ModelConfig& config,
                const DeviceContext& device,
                std::int64_t max_resident,
                std::int64_t max_chosen);
  /// Of host memory.
  static std::int64_t required_bytes(const ModelConfig& config,
                                     std::int64_t max_resident,
                                     std::int64_t max_chosen);

  /// Starts the copy of a layer's `merged` [H * stride at least] on the current stream, and keeps a
  /// copy of `chosen`.
  void send(std::int64_t layer,
            const at::Tensor& merged,
            std::int64_t stride,
            const ChosenTokens& chosen);
  /// What was sent, once the host has waited for it, and only once; else nothing.
  SoftmaxWeights take(std::int64_t layer) {
    return std::exchange(layers_[static_cast<std::size_t>(layer)], {});
  }

 private:
  std::int64_t num_heads_;
  std::int64_t num_kv_heads_;
  std::int64_t max_chosen_;
  at::Tensor weights_;                   ///< [L, H * (resident + chosen)]
  std::vector<std::int32_t> positions_;  ///< [L, H, max_chosen]
  std::vector<std::int64_t> counts_;     ///< [L, G]
  std::vector<SoftmaxWeights> layers_;
};

}  // namespace hybridgen
