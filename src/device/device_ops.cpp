// SPDX-License-Identifier: Apache-2.0
#include "device/device_ops.h"

namespace hybridgen {

void DeviceOps::place_heads(const ModelConfig& config,
                            const LayerHeads& heads,
                            const AttentionBatch* batch) const {
  if (heads.query_norm != nullptr) {
    norm(config, heads.query, *heads.query_norm, {}, heads.query);
  }
  if (heads.key != nullptr && heads.key_norm != nullptr) {
    norm(config, *heads.key, *heads.key_norm, {}, *heads.key);
  }
  if (heads.table != nullptr) {
    rotate(*heads.table, heads.rotation_rows, heads.query);
    if (heads.key != nullptr && heads.rotates_key) {
      rotate(*heads.table, heads.rotation_rows, *heads.key);
    }
  }
  if (batch == nullptr) {
    return;
  }
  for (const AttentionItem& item : batch->items) {
    if (item.num_resident > 0) {
      const std::int64_t slot = item.first_slot + item.num_resident - 1;
      append_row(*heads.key, item.row, *item.keys, slot);
      append_row(*heads.value, item.row, *item.values, slot);
    }
  }
}

void DeviceOps::norms(const ModelConfig& config,
                      at::Tensor& x,
                      const at::Tensor& addend,
                      const NormTarget& first,
                      const NormTarget* second) const {
  if (addend.defined()) {
    add(x, addend);
  }
  norm(config, x, first.weight, first.bias, first.y);
  if (second != nullptr) {
    norm(config, x, second->weight, second->bias, second->y);
  }
}

void DeviceOps::append_row(const at::Tensor& rows,
                           std::int64_t row,
                           const at::Tensor& destination,
                           std::int64_t slot) const {
  destination.select(1, slot).copy_(rows.select(0, row));
}

}  // namespace hybridgen
