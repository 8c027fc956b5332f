// SPDX-License-Identifier: Apache-2.0
#include "pipeline/micro_batch.h"

#include <ATen/ops/empty.h>

#include <utility>

#include "device/torch_types.h"

namespace hybridgen {

MicroBatch::MicroBatch(const DecoderModel& model,
                       const Method& method,
                       std::vector<RequestState*> requests_)
    : requests(std::move(requests_)),
      ws(model.config(), model.dtype(), model.device().device(), rows()),
      items(requests.size()) {
  const ModelConfig& config = model.config();
  const DeviceContext& device = model.device();
  const auto on_device = [&](const at::Tensor& host) {
    return device.is_cpu() ? host : at::empty(host.sizes(), host.options().device(device.device()));
  };
  inputs_ = device.host_staging({2, rows()}, at::kLong);
  device_inputs_ = on_device(inputs_);
  tokens = inputs_.select(0, 0);
  positions = inputs_.select(0, 1);
  device_tokens = device_inputs_.select(0, 0);
  ws.positions = device_inputs_.select(0, 1);
  logits = at::empty({rows(), config.vocab_size},
                     at::TensorOptions().dtype(at::kFloat).device(device.device()));
  host_logits = device.is_cpu() ? logits : device.host_staging(logits.sizes(), at::kFloat);
  for (HostSlot& slot : slots) {
    slot.queries = device.host_staging({rows(), config.num_heads * config.head_dim},
                                       to_scalar_type(model.dtype()));
    if (method.residency == Residency::kNone) {
      slot.new_keys = device.host_staging({rows(), config.num_kv_heads * config.head_dim},
                                          to_scalar_type(model.dtype()));
      slot.new_values = device.host_staging(slot.new_keys.sizes(), slot.new_keys.scalar_type());
    }
    slot.union_sizes = device.host_staging({rows(), config.num_kv_heads}, at::kLong);
    slot.device_union_sizes = on_device(slot.union_sizes);
    slot.device_union_rows = slot.device_union_sizes.unbind(0);
    slot.batch.jobs.reserve(requests.size());
    slot.rows.reserve(requests.size());
    if (!device.is_cpu()) {
      slot.batch.wait_for_device = [&slot] { DeviceContext::host_waits(slot.device_ready); };
    }
  }
}

void MicroBatch::wait_for_plans(const DeviceContext& device) {
  device.record_compute(planned_);
  DeviceContext::host_waits(planned_);
}

void MicroBatch::send_inputs() {
  if (!device_inputs_.is_same(inputs_)) {
    device_inputs_.copy_(inputs_, /*non_blocking=*/true);
  }
}

}  // namespace hybridgen
