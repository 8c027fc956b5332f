// SPDX-License-Identifier: Apache-2.0
#include "pipeline/rows_to_host.h"

#include "device/torch_types.h"

namespace hybridgen {

RowsToHost::RowsToHost(const ModelConfig& config,
                       DType dtype,
                       const DeviceContext& device,
                       std::int64_t capacity)
    : num_layers_(config.num_layers),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      keys_(device.host_staging({num_layers_ * num_kv_heads_ * capacity * head_dim_},
                                to_scalar_type(dtype))),
      values_(device.host_staging(keys_.sizes(), keys_.scalar_type())) {}

std::int64_t RowsToHost::required_bytes(const ModelConfig& config,
                                        DType dtype,
                                        std::int64_t capacity) {
  return 2 * config.num_layers * capacity * config.kv_row_bytes(dtype);
}

void RowsToHost::send(const ResidentCache& resident, std::int64_t first_slot, std::int64_t count) {
  first_slot_ = first_slot;
  count_ = count;
  has_arrived_ = false;
  const std::int64_t elements = num_layers_ * num_kv_heads_ * count * head_dim_;
  const auto copy = [&](const at::Tensor& to, const at::Tensor& all) {
    to.narrow(0, 0, elements)
        .view({num_layers_, num_kv_heads_, count, head_dim_})
        .copy_(all.narrow(2, first_slot, count).contiguous(), /*non_blocking=*/true);
  };
  copy(keys_, resident.all_keys());
  copy(values_, resident.all_values());
}

KvRowsView RowsToHost::view(const at::Tensor& rows, std::int64_t layer) const {
  const std::int64_t layer_elements = num_kv_heads_ * count_ * head_dim_;
  return {static_cast<const std::byte*>(rows.const_data_ptr()) +
              layer * layer_elements * static_cast<std::int64_t>(rows.element_size()),
          count_ * head_dim_,
          head_dim_};
}

}  // namespace hybridgen
