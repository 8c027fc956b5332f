// SPDX-License-Identifier: Apache-2.0
#include "pipeline/shifted_keys.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>

#include "device/torch_types.h"

namespace hybridgen {

ShiftedKeys::ShiftedKeys(const ModelConfig& config,
                         DType dtype,
                         const DeviceContext& device,
                         std::int64_t window)
    : num_layers_(config.num_layers),
      num_kv_heads_(config.num_kv_heads),
      keys_(at::empty({config.num_kv_heads, window, config.head_dim},
                      at::TensorOptions().dtype(to_scalar_type(dtype)).device(device.device()))),
      host_ranks_(device.host_staging(
          {device.is_cpu() ? 1 : config.num_layers * config.num_kv_heads, window}, at::kLong)) {
  host_ranks_.zero_();  // right where the new token is the only one
  if (!device.is_cpu()) {
    ranks_ = at::empty(host_ranks_.sizes(), host_ranks_.options().device(device.device()));
    rank_row_.resize(static_cast<std::size_t>(host_ranks_.size(0)));
  }
}

std::int64_t ShiftedKeys::required_bytes(const ModelConfig& config,
                                         DType dtype,
                                         bool device_is_host,
                                         std::int64_t window) {
  return window * config.kv_row_bytes(dtype) + place_bytes(config, device_is_host, window);
}

std::int64_t ShiftedKeys::place_bytes(const ModelConfig& config,
                                      bool device_is_host,
                                      std::int64_t window) {
  return device_is_host ? 0
                        : config.num_layers * config.num_kv_heads * window *
                              static_cast<std::int64_t>(sizeof(std::int64_t));
}

void ShiftedKeys::rank(std::span<const std::int32_t> positions, std::int64_t row) {
  ranked_positions_.assign(positions.begin(), positions.end());
  std::vector<std::int64_t> order(positions.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(
      order, {}, [&](std::int64_t slot) { return positions[static_cast<std::size_t>(slot)]; });
  auto* ranks = host_ranks_.mutable_data_ptr<std::int64_t>() + row * host_ranks_.size(1);
  for (std::size_t place = 0; place < order.size(); ++place) {
    ranks[order[place]] = static_cast<std::int64_t>(place);
  }
  const auto newest = static_cast<std::int64_t>(positions.size());
  ranks[newest] = newest;
}

void ShiftedKeys::begin_step(const RetentionPolicy& retention) {
  if (!ranks_.defined()) {
    return;
  }
  std::int64_t rows = 0;
  for (std::int64_t set = 0; set < num_layers_ * num_kv_heads_; ++set) {
    const auto positions = retention.positions(set / num_kv_heads_, set % num_kv_heads_);
    if (rows == 0 || !std::ranges::equal(positions, ranked_positions_)) {
      rank(positions, rows++);
    }
    rank_row_[static_cast<std::size_t>(set)] = rows - 1;
  }
  ranks_.narrow(0, 0, rows).copy_(host_ranks_.narrow(0, 0, rows), /*non_blocking=*/true);
}

at::Tensor ShiftedKeys::places_of(std::int64_t layer,
                                  std::int64_t kv_head,
                                  std::int64_t count,
                                  const RetentionPolicy& retention) {
  if (ranks_.defined()) {
    const auto set = static_cast<std::size_t>(layer * num_kv_heads_ + kv_head);
    return ranks_.select(0, rank_row_[set]).narrow(0, 0, count);
  }
  const auto positions = retention.positions(layer, kv_head);
  if (!std::ranges::equal(positions, ranked_positions_)) {
    rank(positions, 0);
  }
  return host_ranks_.select(0, 0).narrow(0, 0, count);
}

void ShiftedKeys::shift(const DecoderModel& model,
                        const DeviceOps& ops,
                        std::int64_t layer,
                        ResidentCache& resident,
                        const RetentionPolicy& retention) {
  const std::int64_t count = resident.size();
  const at::Tensor& keys = resident.keys(layer);
  const RopeTable table = model.step_rope();
  for (std::int64_t g = 0; g < num_kv_heads_; ++g) {
    at::Tensor shifted = keys_.narrow(0, g, 1);
    shifted.narrow(1, 0, count).copy_(keys.narrow(0, g, 1).narrow(1, 0, count));
    rotate_keys(ops, table, places_of(layer, g, count, retention), shifted);
  }
}

}  // namespace hybridgen
