// SPDX-License-Identifier: Apache-2.0
#include "device/resident_cache.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "device/host_tensors.h"
#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

// Rows of slack: the window is moved once per this many steps, so moving costs n_g / kSlack rows a
// step.
constexpr std::int64_t kSlack = 64;

at::Tensor room_for(at::IntArrayRef shape, at::TensorOptions options) {
  return options.device().is_cpu() ? HostTensors().allocate(shape, options)
                                   : at::empty(shape, options);
}

}  // namespace

ResidentCache::ResidentCache(const ModelConfig& config,
                             at::TensorOptions options,
                             std::int64_t capacity)
    : all_keys_(
          room_for({config.num_layers, config.num_kv_heads, capacity, config.head_dim}, options)),
      all_values_(room_for(all_keys_.sizes(), options)),
      capacity_(capacity) {
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    keys_.push_back(all_keys_.select(0, layer));
    values_.push_back(all_values_.select(0, layer));
  }
}

std::int64_t ResidentCache::capacity_for(std::int64_t window, std::int64_t max_tokens) {
  return window >= max_tokens ? max_tokens : std::min(window + kSlack, max_tokens);
}

std::int64_t ResidentCache::required_bytes(const ModelConfig& config,
                                           DType dtype,
                                           std::int64_t capacity) {
  return 2 * config.num_layers * capacity * config.kv_row_bytes(dtype);
}

at::Tensor ResidentCache::resident_keys(std::int64_t layer) const {
  return keys_[static_cast<std::size_t>(layer)].narrow(1, first_slot_, size_);
}

at::Tensor ResidentCache::resident_values(std::int64_t layer) const {
  return values_[static_cast<std::size_t>(layer)].narrow(1, first_slot_, size_);
}

void ResidentCache::drop_front(std::int64_t count) {
  HYBRIDGEN_DCHECK(count >= 0 && count <= size_, count, size_);
  first_slot_ += count;
  size_ -= count;
}

void ResidentCache::drop_back(std::int64_t count) {
  HYBRIDGEN_DCHECK(count >= 0 && count <= size_, count, size_);
  size_ -= count;
}

void ResidentCache::copy_row(std::int64_t layer,
                             std::int64_t kv_head,
                             std::int64_t from,
                             std::int64_t to) {
  for (at::Tensor* rows : {&keys(layer), &values(layer)}) {
    if (rows->device().is_cpu()) {
      const std::int64_t element = rows->element_size();
      auto* head =
          static_cast<std::byte*>(rows->mutable_data_ptr()) + kv_head * rows->stride(0) * element;
      const std::int64_t row_bytes = rows->size(2) * element;
      std::memcpy(
          head + to * row_bytes, head + from * row_bytes, static_cast<std::size_t>(row_bytes));
    } else {
      const at::Tensor head = rows->select(0, kv_head);
      head.select(0, to).copy_(head.select(0, from), /*non_blocking=*/true);
    }
  }
}

std::int64_t ResidentCache::append_slot() {
  if (first_slot_ + size_ == capacity_) {
    compact();
  }
  return first_slot_ + size_++;
}

void ResidentCache::compact() {
  if (first_slot_ == 0) {
    throw std::logic_error("ResidentCache: no room for another row");
  }
  for (std::size_t layer = 0; layer < keys_.size(); ++layer) {
    for (at::Tensor* rows : {&keys_[layer], &values_[layer]}) {
      // Source and destination may overlap.
      rows->narrow(1, 0, size_).copy_(rows->narrow(1, first_slot_, size_).clone());
    }
  }
  first_slot_ = 0;
}

void ResidentCache::replace_layer(std::int64_t layer,
                                  const at::Tensor& keys,
                                  const at::Tensor& values,
                                  std::int64_t keep) {
  HYBRIDGEN_DCHECK(keep <= capacity_ && keep <= size_ + keys.size(1), keep);
  const std::int64_t from_new = std::min(keep, keys.size(1));
  const std::int64_t from_old = keep - from_new;
  const auto replace = [&](at::Tensor& rows, const at::Tensor& incoming) {
    if (from_old > 0 && first_slot_ + size_ - from_old > 0) {
      rows.narrow(1, 0, from_old)
          .copy_(rows.narrow(1, first_slot_ + size_ - from_old, from_old).clone());
    }
    rows.narrow(1, from_old, from_new)
        .copy_(incoming.narrow(1, incoming.size(1) - from_new, from_new));
  };
  replace(keys_[static_cast<std::size_t>(layer)], keys);
  replace(values_[static_cast<std::size_t>(layer)], values);
}

void ResidentCache::set_rows(std::int64_t count) {
  first_slot_ = 0;
  size_ = count;
}

}  // namespace hybridgen
