// SPDX-License-Identifier: Apache-2.0
#include "device/device_ops.h"

#include <ATen/TensorOperators.h>

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

void DeviceOps::turn_keys(const RopeTable& table, const AttentionBatch& batch) const {
  for (const AttentionItem& item : batch.items) {
    if (item.turned == nullptr) {
      continue;
    }
    const TurnedKeys& turned = *item.turned;
    for (std::int64_t g = 0; g < turned.keys.size(0); ++g) {
      at::Tensor keys = turned.keys.select(0, g).narrow(0, 0, item.num_resident);
      keys.copy_(item.keys->select(0, g).narrow(0, item.first_slot, item.num_resident));
      keys = keys.unsqueeze(1);
      const at::Tensor places =
          turned.places.select(0, turned.place_rows[static_cast<std::size_t>(g)]);
      rotate(table, places.narrow(0, 0, item.num_resident), keys);
    }
  }
}

void DeviceOps::move_rows(const RowMoves& moves) const {
  const auto* slot = moves.slots.const_data_ptr<std::int32_t>();
  for (ResidentCache* cache : moves.caches) {
    const std::int64_t newest = cache->first_slot() + cache->size() - 1;
    for (std::int64_t layer = 0; layer < moves.slots.size(1); ++layer) {
      for (std::int64_t g = 0; g < moves.slots.size(2); ++g, ++slot) {
        if (*slot >= 0) {
          cache->copy_row(layer, g, newest, *slot);
        }
      }
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
