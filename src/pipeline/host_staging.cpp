// SPDX-License-Identifier: Apache-2.0
#include "pipeline/host_staging.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

#include "device/torch_types.h"

namespace hybridgen {

StagingShape merge(const StagingShape& a, const StagingShape& b) {
  return {.max_chosen = std::max(a.max_chosen, b.max_chosen),
          .union_rows = std::max(a.union_rows, b.union_rows),
          .num_scored = std::max(a.num_scored, b.num_scored),
          .has_own_choices = a.has_own_choices || b.has_own_choices,
          .has_keys = a.has_keys || b.has_keys,
          .num_attended = std::max(a.num_attended, b.num_attended)};
}

namespace {

std::int64_t score_bytes(const ModelConfig& config, const StagingShape& shape) {
  return config.num_heads * score_stride(shape.num_scored) *
         static_cast<std::int64_t>(sizeof(float));
}

std::int64_t part_bytes(const ModelConfig& config, const StagingShape& shape) {
  return config.num_kv_heads *
         attended_floats(shape.num_attended, config.query_heads_per_kv_head(), config.head_dim) *
         static_cast<std::int64_t>(sizeof(float));
}

}  // namespace

HostStaging::HostStaging(const ModelConfig& config,
                         DType dtype,
                         const DeviceContext& device,
                         const StagingShape& shape)
    : num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      shape_(shape),
      device_is_host_(device.is_cpu()),
      merged_(device.host_staging({num_kv_heads_ * shape.union_rows}, at::kInt)),
      union_sizes_(at::zeros({num_kv_heads_}, at::kLong)),
      scores_(static_cast<std::size_t>(score_bytes(config, shape))),
      parts_(static_cast<std::size_t>(part_bytes(config, shape))) {
  const at::ScalarType type = to_scalar_type(dtype);
  host_.logits = device.host_staging({num_heads_ * shape.max_chosen}, at::kFloat);
  if (shape.has_own_choices) {
    positions_.resize(static_cast<std::size_t>(num_heads_ * shape.max_chosen));
    host_.index = device.host_staging({num_heads_ * shape.max_chosen}, at::kInt);
  }
  host_.values = device.host_staging({num_kv_heads_, shape.union_rows, head_dim_}, type);
  if (shape.has_keys) {
    host_.keys = device.host_staging({num_kv_heads_, shape.union_rows, head_dim_}, type);
  }
  if (shape.num_attended > 0) {
    host_.output = device.host_staging({num_heads_, head_dim_}, type);
    host_.lse = device.host_staging({num_heads_}, at::kFloat);
  }
  const auto on_device = [&](const at::Tensor& host) {
    return device.is_cpu() || !host.defined()
               ? host
               : at::empty_like(host, host.options().pinned_memory(false).device(device.device()));
  };
  device_.logits = on_device(host_.logits);
  device_.index = on_device(host_.index);
  device_.values = on_device(host_.values);
  device_.keys = on_device(host_.keys);
  device_.output = on_device(host_.output);
  device_.lse = on_device(host_.lse);
}

std::int64_t HostStaging::required_bytes(const ModelConfig& config,
                                         DType dtype,
                                         const StagingShape& shape) {
  // Not sent: the union's positions, every head's own ones, all logits and parts of an output.
  return payload_bytes(config, dtype, shape) + config.num_kv_heads * shape.union_rows * 4 +
         (shape.has_own_choices ? config.num_heads * shape.max_chosen * 4 : 0) +
         score_bytes(config, shape) + part_bytes(config, shape);
}

std::int64_t HostStaging::payload_bytes(const ModelConfig& config,
                                        DType dtype,
                                        const StagingShape& shape) {
  const std::int64_t rows = shape.union_rows * config.kv_row_bytes(dtype);
  const std::int64_t output =
      config.num_heads * (config.head_dim * static_cast<std::int64_t>(size_of(dtype)) + 4);
  return rows * (shape.has_keys ? 2 : 1) +
         config.num_heads * shape.max_chosen * (shape.has_own_choices ? 8 : 4) +
         (shape.num_attended > 0 ? output : 0);
}

HostJobBuffers HostStaging::buffers() {
  const auto data = [](at::Tensor& tensor) {
    return tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
  };
  HostJobBuffers buffers;
  buffers.logits = static_cast<float*>(data(host_.logits));
  buffers.positions = positions_.data();
  buffers.index = static_cast<std::int32_t*>(data(host_.index));
  buffers.merged = static_cast<std::int32_t*>(data(merged_));
  buffers.union_sizes = static_cast<std::int64_t*>(data(union_sizes_));
  buffers.values = data(host_.values);
  buffers.keys = data(host_.keys);
  buffers.output = data(host_.output);
  buffers.lse = static_cast<float*>(data(host_.lse));
  buffers.union_capacity = shape_.union_rows;
  buffers.device_reads = !device_.values.is_cpu();
  buffers.scores = reinterpret_cast<float*>(scores_.data());
  buffers.parts = reinterpret_cast<float*>(parts_.data());
  return buffers;
}

std::int64_t HostStaging::ship(const HostJob& job,
                               const at::Tensor& union_sizes,
                               const at::Tensor& device_union_sizes) {
  payload_ = {};
  staged_ = {};
  std::int64_t bytes = 0;
  const auto send = [&](at::Tensor HostPayload::* part, std::int64_t count) {
    const at::Tensor& staged = host_.*part;
    bytes += count * static_cast<std::int64_t>(staged.element_size());
    payload_.*part = device_.*part;
    if (!device_is_host_ && count < staged.numel()) {
      payload_.*part = (device_.*part).narrow(0, 0, count);
      staged_.*part = staged.narrow(0, 0, count);
    } else {
      staged_.*part = staged;
    }
  };
  payload_.staged = device_is_host_ ? nullptr : &staged_;
  if (job.payload == Payload::kPartialAttention) {
    send(&HostPayload::output, num_heads_ * head_dim_);
    send(&HostPayload::lse, num_heads_);
    return bytes;
  }
  const bool ships_keys = job.sends_keys();
  const std::span<const std::int64_t> sizes{job.buffers.union_sizes,
                                            static_cast<std::size_t>(num_kv_heads_)};
  payload_.count = job.is_shared() ? *std::ranges::max_element(sizes) : job.num_chosen;
  payload_.room = job.num_chosen;
  payload_.union_sizes = sizes;
  payload_.device_union_sizes = device_union_sizes.defined() ? device_union_sizes : union_sizes_;
  payload_.logits = device_.logits;
  payload_.values = device_.values;
  staged_.count = payload_.count;
  staged_.room = payload_.room;
  staged_.device_union_sizes = union_sizes;
  const std::int64_t rows = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  if (!job.is_shared()) {
    send(&HostPayload::index, num_heads_ * job.num_chosen);
  }
  if (ships_keys) {
    payload_.keys = device_.keys;
    staged_.keys = host_.keys;
  } else {
    send(&HostPayload::logits, num_heads_ * job.num_chosen);
    if (job.is_shared()) {
      // What KV heads with fewer tokens leave of their room is not sent.
      bytes -= (num_kv_heads_ * job.num_chosen - rows) * (num_heads_ / num_kv_heads_) * 4;
    }
  }
  const bool keys_only = job.payload == Payload::kKeys;
  if (!keys_only) {
    staged_.values = host_.values;
  }
  const auto element = static_cast<std::int64_t>(host_.values.element_size());
  return bytes + rows * head_dim_ * element * (ships_keys && !keys_only ? 2 : 1);
}

std::int64_t HostStaging::ship_values(std::int64_t count,
                                      const at::Tensor& union_sizes,
                                      const at::Tensor& device_union_sizes) {
  const std::span<const std::int64_t> sizes{union_sizes.const_data_ptr<std::int64_t>(),
                                            static_cast<std::size_t>(num_kv_heads_)};
  payload_ = {};
  payload_.count = payload_.room = count;
  payload_.index = device_.index.narrow(0, 0, num_heads_ * count);
  payload_.values = device_.values;
  payload_.union_sizes = sizes;
  payload_.device_union_sizes = device_union_sizes;
  staged_ = {};
  staged_.count = staged_.room = count;
  staged_.index = host_.index.narrow(0, 0, num_heads_ * count);
  staged_.values = host_.values;
  staged_.device_union_sizes = union_sizes;
  payload_.staged = device_is_host_ ? nullptr : &staged_;
  const std::int64_t rows = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  return rows * head_dim_ * static_cast<std::int64_t>(host_.values.element_size());
}

}  // namespace hybridgen
