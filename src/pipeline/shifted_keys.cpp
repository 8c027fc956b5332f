// SPDX-License-Identifier: Apache-2.0
#include "pipeline/shifted_keys.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>

namespace hybridgen {

ShiftedKeys::ShiftedKeys(const ModelConfig& config, at::TensorOptions options, std::int64_t window)
    : keys_(at::empty({config.num_kv_heads, window, config.head_dim}, options)),
      ranks_(at::empty({window}, at::kLong)) {}

std::int64_t ShiftedKeys::required_bytes(const ModelConfig& config,
                                         DType dtype,
                                         std::int64_t window) {
  return window * config.kv_row_bytes(dtype);
}

void ShiftedKeys::rank(std::span<const std::int32_t> positions) {
  if (std::ranges::equal(positions, ranked_positions_)) {
    return;
  }
  ranked_positions_.assign(positions.begin(), positions.end());
  std::vector<std::int64_t> order(positions.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(
      order, {}, [&](std::int64_t slot) { return positions[static_cast<std::size_t>(slot)]; });
  auto* ranks = ranks_.mutable_data_ptr<std::int64_t>();
  for (std::size_t place = 0; place < order.size(); ++place) {
    ranks[order[place]] = static_cast<std::int64_t>(place);
  }
}

void ShiftedKeys::shift(const DecoderModel& model,
                        const DeviceOps& ops,
                        std::int64_t layer,
                        ResidentCache& resident,
                        const RetentionPolicy& retention) {
  const std::int64_t count = resident.size();
  const at::Tensor& keys = resident.keys(layer);
  for (std::int64_t g = 0; g < keys.size(0); ++g) {
    rank(retention.positions(layer, g));
    ranks_.mutable_data_ptr<std::int64_t>()[count - 1] = count - 1;  // the new token
    at::Tensor shifted = keys_.narrow(0, g, 1);
    shifted.narrow(1, 0, count).copy_(keys.narrow(0, g, 1).narrow(1, 0, count));
    model.rotate_keys(ops, shifted, ranks_.narrow(0, 0, count));
  }
}

}  // namespace hybridgen
