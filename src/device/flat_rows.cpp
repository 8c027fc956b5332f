// SPDX-License-Identifier: Apache-2.0
#include "device/flat_rows.h"

namespace hybridgen {
namespace {

template <typename T>
const T* data_of(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

}  // namespace

kernels::StepRow flat_row(const AttentionItem& item, const ResidentCache& resident) {
  kernels::StepRow row;
  row.num_resident = item.num_resident;
  row.first_slot = item.first_slot;
  row.keys = resident.all_keys().data_ptr();
  row.values = resident.all_values().data_ptr();
  row.layer_stride = resident.all_keys().stride(0);
  row.head_stride = resident.all_keys().stride(1);
  if (item.wants_weights) {
    row.resident_logits = item.resident_logits->mutable_data_ptr<float>();
    row.weights = item.merged_logits->mutable_data_ptr<float>();
  }
  row.parts = item.parts->mutable_data_ptr<float>();
  row.finished = reinterpret_cast<unsigned*>(item.finished->mutable_data_ptr<std::int32_t>());
  return row;
}

kernels::PayloadRow flat_row(const HostPayload& payload) {
  kernels::PayloadRow row;
  row.count = payload.count;
  row.room = payload.room;
  row.logits = data_of<float>(payload.logits);
  row.index = data_of<std::int32_t>(payload.index);
  row.values = data_of<void>(payload.values);
  row.keys = data_of<void>(payload.keys);
  const at::Tensor& rows = payload.values.defined() ? payload.values : payload.keys;
  row.union_capacity = rows.defined() ? rows.size(1) : 0;
  row.union_sizes = data_of<std::int64_t>(payload.device_union_sizes);
  row.output = data_of<void>(payload.output);
  row.lse = data_of<float>(payload.lse);
  return row;
}

kernels::PlanRow flat_row(const PlanItem& item) {
  kernels::PlanRow row;
  row.num_tokens = item.num_tokens;
  row.most = item.most;
  if (item.keys != nullptr) {
    row.width = item.keys->size(3);
    row.columns = item.columns->const_data_ptr<float>();
    row.keys = item.keys->const_data_ptr();
    row.column_layer_stride = item.columns->stride(0);
    row.key_layer_stride = item.keys->stride(0);
    row.key_head_stride = item.keys->stride(1);
  }
  row.guesses = item.guesses.mutable_data_ptr<float>();
  row.guess_stride = item.guesses.stride(0);
  row.takes_newer = item.takes_newer;
  row.places = item.places.mutable_data_ptr<std::int32_t>();
  row.alpha = static_cast<float>(item.alpha.value_or(0.0));
  return row;
}

}  // namespace hybridgen
