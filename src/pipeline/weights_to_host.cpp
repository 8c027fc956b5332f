// SPDX-License-Identifier: Apache-2.0
#include "pipeline/weights_to_host.h"

#include <algorithm>

namespace hybridgen {

WeightsToHost::WeightsToHost(const ModelConfig& config,
                             const DeviceContext& device,
                             std::int64_t max_resident,
                             std::int64_t max_chosen)
    : num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      max_chosen_(max_chosen),
      weights_(device.host_staging(
          {config.num_layers, config.num_heads * (max_resident + max_chosen)}, at::kFloat)),
      positions_(static_cast<std::size_t>(config.num_layers * config.num_heads * max_chosen)),
      counts_(static_cast<std::size_t>(config.num_layers * config.num_kv_heads)),
      layers_(static_cast<std::size_t>(config.num_layers)) {}

std::int64_t WeightsToHost::required_bytes(const ModelConfig& config,
                                           std::int64_t max_resident,
                                           std::int64_t max_chosen) {
  return config.num_layers * config.num_heads * 4 * (max_resident + 2 * max_chosen);
}

void WeightsToHost::send(std::int64_t layer,
                         const at::Tensor& merged,
                         std::int64_t stride,
                         const ChosenTokens& chosen) {
  const std::int64_t count = num_heads_ * stride;
  const at::Tensor to = weights_.select(0, layer).narrow(0, 0, count);
  to.copy_(merged.narrow(0, 0, count), /*non_blocking=*/true);
  SoftmaxWeights& kept = layers_[static_cast<std::size_t>(layer)];
  kept = {to.const_data_ptr<float>(), stride, {}};
  if (chosen.positions == nullptr) {
    return;
  }
  const std::int64_t per_group = num_heads_ / num_kv_heads_;
  const std::int64_t head_stride = per_group * max_chosen_;
  std::int32_t* positions = positions_.data() + layer * num_heads_ * max_chosen_;
  std::int64_t* counts = counts_.data() + layer * num_kv_heads_;
  std::copy_n(chosen.counts, num_kv_heads_, counts);
  kept.chosen = {positions, head_stride, chosen.row_stride, counts};
  for (std::int64_t g = 0; g < num_kv_heads_; ++g) {
    std::copy_n(chosen.positions + g * chosen.head_stride,
                chosen.row_stride == 0 ? counts[g] : per_group * chosen.row_stride,
                positions + g * head_stride);
  }
}

}  // namespace hybridgen
