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
    : num_kv_heads_(config.num_kv_heads),
      window_(window),
      num_sets_(config.num_kv_heads * (device.is_cpu() ? 1 : config.num_layers)),
      host_places_(device.host_staging({num_sets_ * (1 + window)}, at::kLong)),
      places_(device.is_cpu() ? host_places_
                              : at::empty(host_places_.sizes(),
                                          host_places_.options().device(device.device()))) {
  host_places_.zero_();  // right where the new token is the only one
  turned_.keys =
      at::empty({config.num_kv_heads, window, config.head_dim},
                at::TensorOptions().dtype(to_scalar_type(dtype)).device(device.device()));
  turned_.places = places_.narrow(0, num_sets_, num_sets_ * window).view({num_sets_, window});
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
                        : config.num_layers * config.num_kv_heads * (1 + window) *
                              static_cast<std::int64_t>(sizeof(std::int64_t));
}

void ShiftedKeys::rank(std::span<const std::int32_t> positions, std::int64_t row) {
  ranked_positions_.assign(positions.begin(), positions.end());
  std::vector<std::int64_t> order(positions.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(
      order, {}, [&](std::int64_t slot) { return positions[static_cast<std::size_t>(slot)]; });
  std::int64_t* ranks = place_rows() + num_sets_ + row * window_;
  for (std::size_t place = 0; place < order.size(); ++place) {
    ranks[order[place]] = static_cast<std::int64_t>(place);
  }
  const auto newest = static_cast<std::int64_t>(positions.size());
  ranks[newest] = newest;
}

void ShiftedKeys::rank_sets(const RetentionPolicy& retention, std::int64_t first_set) {
  for (std::int64_t set = 0; set < num_sets_; ++set) {
    const std::int64_t of_all = first_set + set;
    const auto positions = retention.positions(of_all / num_kv_heads_, of_all % num_kv_heads_);
    if (!std::ranges::equal(positions, ranked_positions_)) {
      last_row_ = (last_row_ + 1) % num_sets_;  // comes back only to what no set here has
      rank(positions, last_row_);
    }
    place_rows()[set] = last_row_;
  }
}

void ShiftedKeys::begin_step(const RetentionPolicy& retention) {
  if (places_.is_same(host_places_)) {
    return;
  }
  // From the first row on, so that no more rows are sent than there are.
  last_row_ = 0;
  rank(retention.positions(0, 0), 0);
  rank_sets(retention, 0);
  const std::int64_t count = num_sets_ + (last_row_ + 1) * window_;
  places_.narrow(0, 0, count).copy_(host_places_.narrow(0, 0, count), /*non_blocking=*/true);
}

const TurnedKeys& ShiftedKeys::of_layer(std::int64_t layer, const RetentionPolicy& retention) {
  const bool is_cpu = places_.is_same(host_places_);
  const std::int64_t first = layer * num_kv_heads_;
  if (is_cpu) {
    rank_sets(retention, first);
  }
  turned_.place_rows = {place_rows() + (is_cpu ? 0 : first),
                        static_cast<std::size_t>(num_kv_heads_)};
  return turned_;
}

void ShiftedKeys::describe(kernels::StepRow& row) const {
  row.turned_keys = turned_.keys.mutable_data_ptr();
  row.turned_head_stride = turned_.keys.stride(0);
  row.place_rows = places_.const_data_ptr<std::int64_t>();
  row.places = turned_.places.const_data_ptr<std::int64_t>();
  row.place_stride = window_;
}

}  // namespace hybridgen
