// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/pipeline/host_staging.h"

#include <ATen/ATen.h>

#include "hybridgen/models/torch_types.h"

namespace hybridgen {

HostStaging::HostStaging(const ModelConfig& config,
                         DType dtype,
                         const DeviceContext& device,
                         std::int64_t max_chosen,
                         std::int64_t max_union,
                         bool with_keys)
    : num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      union_capacity_(max_union),
      positions_(static_cast<std::size_t>(num_heads_ * max_chosen)),
      merged_(static_cast<std::size_t>(num_kv_heads_ * max_union)),
      union_sizes_(static_cast<std::size_t>(num_kv_heads_)) {
  const at::ScalarType type = to_scalar_type(dtype);
  logits_ = device.host_staging({num_heads_ * max_chosen}, at::kFloat);
  index_ = device.host_staging({num_heads_ * max_chosen}, at::kInt);
  values_ = device.host_staging({num_kv_heads_, max_union, head_dim_}, type);
  if (with_keys) {
    keys_ = device.host_staging({num_kv_heads_, max_union, head_dim_}, type);
  }
  const auto on_device = [&](const at::Tensor& host) {
    return device.is_cpu() || !host.defined()
               ? host
               : at::empty_like(host, host.options().pinned_memory(false).device(device.device()));
  };
  payload_.logits = on_device(logits_);
  payload_.index = on_device(index_);
  payload_.values = on_device(values_);
  device_keys_ = on_device(keys_);
  payload_.union_sizes = union_sizes_;
}

std::int64_t HostStaging::required_bytes(const ModelConfig& config,
                                         DType dtype,
                                         std::int64_t max_chosen,
                                         std::int64_t max_union,
                                         bool with_keys) {
  const std::int64_t rows = max_union * config.kv_row_bytes(dtype) * (with_keys ? 2 : 1);
  return rows + config.num_heads * max_chosen * 12 + config.num_kv_heads * max_union * 4;
}

HostJobBuffers HostStaging::buffers(bool ship_keys) {
  HostJobBuffers buffers;
  buffers.logits = logits_.mutable_data_ptr<float>();
  buffers.positions = positions_.data();
  buffers.index = index_.mutable_data_ptr<std::int32_t>();
  buffers.merged = merged_.data();
  buffers.union_sizes = union_sizes_.data();
  buffers.values = values_.mutable_data_ptr();
  buffers.keys = ship_keys ? keys_.mutable_data_ptr() : nullptr;
  buffers.union_capacity = union_capacity_;
  return buffers;
}

std::int64_t HostStaging::ship(const DeviceContext& device,
                               std::int64_t num_chosen,
                               bool ship_keys) {
  payload_.count = num_chosen;
  payload_.keys = ship_keys ? device_keys_ : at::Tensor();
  const std::int64_t chosen = num_heads_ * num_chosen;
  std::int64_t rows = 0;
  for (const std::int64_t size : union_sizes_) {
    rows += size;
  }
  if (!device.is_cpu()) {
    const auto copy_prefix = [](const at::Tensor& to, const at::Tensor& from, std::int64_t count) {
      to.narrow(0, 0, count).copy_(from.narrow(0, 0, count), /*non_blocking=*/true);
    };
    if (!ship_keys) {
      copy_prefix(payload_.logits, logits_, chosen);
    }
    copy_prefix(payload_.index, index_, chosen);
    for (std::int64_t g = 0; g < num_kv_heads_; ++g) {
      const std::int64_t count = union_sizes_[static_cast<std::size_t>(g)];
      copy_prefix(payload_.values.select(0, g), values_.select(0, g), count);
      if (ship_keys) {
        copy_prefix(payload_.keys.select(0, g), keys_.select(0, g), count);
      }
    }
  }
  const auto element = static_cast<std::int64_t>(values_.element_size());
  const std::int64_t row_bytes = rows * head_dim_ * element;
  return ship_keys ? chosen * 4 + 2 * row_bytes : chosen * 8 + row_bytes;
}

}  // namespace hybridgen
