// SPDX-License-Identifier: Apache-2.0
#include "pipeline/micro_batch.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "device/torch_types.h"

namespace hybridgen {

MicroBatch::MicroBatch(const DecoderModel& model,
                       const Method& method,
                       std::vector<RequestState*> requests_)
    : requests(std::move(requests_)),
      tokens(at::zeros({rows()}, at::kLong)),
      ws(model.config(), model.dtype(), model.device().device(), rows()),
      items(requests.size()) {
  const ModelConfig& config = model.config();
  const DeviceContext& device = model.device();
  logits = at::empty({rows(), config.vocab_size},
                     at::TensorOptions().dtype(at::kFloat).device(device.device()));
  host_logits = device.is_cpu() ? logits : device.host_staging(logits.sizes(), at::kFloat);
  for (HostSlot& slot : slots) {
    slot.queries = device.host_staging({rows(), config.num_heads * config.head_dim},
                                       to_scalar_type(model.dtype()));
    if (method.residency == Residency::kNone) {
      slot.new_keys = device.host_staging({rows(), config.num_kv_heads * config.head_dim},
                                          to_scalar_type(model.dtype()));
      slot.new_values = at::empty_like(slot.new_keys);
    }
    slot.batch.jobs.reserve(requests.size());
    slot.rows.reserve(requests.size());
    if (!device.is_cpu()) {
      slot.batch.wait_for_device = [&slot] { DeviceContext::host_waits(slot.device_ready); };
    }
  }
}

}  // namespace hybridgen
