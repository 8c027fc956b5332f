// SPDX-License-Identifier: Apache-2.0
#include "pipeline/micro_batch.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "device/flat_rows.h"
#include "device/torch_types.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kWord = sizeof(std::int64_t);
constexpr std::int64_t kRowBytes = sizeof(kernels::StepRow);
constexpr std::int64_t kInputBytes = 2 * kWord + kRowBytes;  // then come plans, if there are any
constexpr std::int64_t kPlanBytes = sizeof(kernels::PlanRow);

template <typename T>
T* data_as(const at::Tensor& bytes, std::int64_t first = 0) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(bytes.data_ptr()) + first);
}

}  // namespace

MicroBatch::MicroBatch(const DecoderModel& model,
                       const Method& method,
                       std::vector<RequestState*> requests_)
    : requests(std::move(requests_)),
      ws(model.config(), model.dtype(), model.device().device(), rows()),
      items(requests.size()),
      lost(model.config(), model.device(), rows(), method.has(PartRole::kSelector)),
      plans(model, method, requests),
      values(model, requests) {
  const ModelConfig& config = model.config();
  const DeviceContext& device = model.device();
  ws.add_guess_norm();
  const auto on_device = [&](const at::Tensor& host) {
    return device.is_cpu() ? host : at::empty(host.sizes(), host.options().device(device.device()));
  };
  const std::int64_t flat_rows = plans.num_flat_rows() + values.num_flat_rows();
  inputs_ = device.host_staging({rows() * kInputBytes + flat_rows * kPlanBytes}, at::kByte);
  device_inputs_ = on_device(inputs_);
  const auto part = [&](const at::Tensor& inputs, std::int64_t index) {
    return inputs.narrow(0, index * rows() * kWord, rows() * kWord).view(at::kLong);
  };
  tokens = part(inputs_, 0);
  positions = part(inputs_, 1);
  device_tokens = part(device_inputs_, 0);
  ws.positions = part(device_inputs_, 1);
  logits = at::empty({rows(), config.vocab_size},
                     at::TensorOptions().dtype(at::kFloat).device(device.device()));
  host_logits = device.is_cpu() ? logits : device.host_staging(logits.sizes(), at::kFloat);
  if (!device.is_cpu() && method.residency == Residency::kRetained && !method.retains_on_host()) {
    moves_ = device.host_staging({rows(), config.num_layers, config.num_kv_heads}, at::kInt);
    device_moves_ = on_device(moves_);
    for (RequestState* request : requests) {
      caches_.push_back(&request->resident);
    }
  }
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
    slot.union_rows = slot.union_sizes.unbind(0);
    slot.device_union_rows = slot.device_union_sizes.unbind(0);
    if (!device.is_cpu()) {
      slot.payload_copies = device.host_staging(
          {rows() * static_cast<std::int64_t>(sizeof(kernels::PayloadCopy))}, at::kByte);
      slot.device_payloads =
          at::empty({rows() * static_cast<std::int64_t>(sizeof(kernels::PayloadRow))},
                    at::TensorOptions().dtype(at::kByte).device(device.device()));
    }
    slot.batch.jobs.reserve(requests.size());
    slot.rows.reserve(requests.size());
    if (!device.is_cpu()) {
      slot.batch.wait_for_device = [&slot] {
        DeviceContext::host_waits(slot.device_ready);
        read_plans(slot.batch.jobs);
      };
    }
  }
}

void MicroBatch::start_plans(const DeviceOps& ops, std::int64_t layer, const at::Tensor& query) {
  plans.start(ops,
              layer,
              query,
              plans.num_flat_rows() == 0
                  ? nullptr
                  : data_as<const kernels::PlanRow>(device_inputs_, rows() * kInputBytes));
}

PlanBatch MicroBatch::kept(std::int64_t layer) {
  const std::int64_t before = rows() * kInputBytes + plans.num_flat_rows() * kPlanBytes;
  return values.of(requests,
                   layer,
                   values.num_flat_rows() == 0
                       ? nullptr
                       : data_as<const kernels::PlanRow>(device_inputs_, before));
}

void MicroBatch::wait_for_places(const DeviceContext& device) {
  device.record_compute(places_);
  DeviceContext::host_waits(places_);
}

std::span<std::int32_t> MicroBatch::moves_of(std::size_t row) {
  if (!moves_.defined()) {
    return {};
  }
  const auto count = static_cast<std::size_t>(moves_.stride(0));
  return {moves_.mutable_data_ptr<std::int32_t>() + row * count, count};
}

void MicroBatch::clear_moves() {
  if (moves_.defined()) {
    std::fill_n(moves_.mutable_data_ptr<std::int32_t>(), moves_.numel(), -1);
  }
}

void MicroBatch::move_rows(const DeviceOps& ops) {
  if (moves_.defined()) {
    ops.move_rows({.caches = caches_,
                   .slots = moves_,
                   .device_slots = device_moves_,
                   .rows = attention(0).rows});
  }
}

void MicroBatch::send_inputs() {
  const auto num_plans = static_cast<std::size_t>(plans.num_flat_rows());
  const auto num_values = static_cast<std::size_t>(values.num_flat_rows());
  const std::span flat(data_as<kernels::PlanRow>(inputs_, rows() * kInputBytes),
                       num_plans + num_values);
  plans.begin_step(requests, flat.first(num_plans));
  values.begin_step(requests, items, flat.last(num_values));
  if (device_inputs_.is_same(inputs_)) {
    return;
  }
  auto* step_rows = data_as<kernels::StepRow>(inputs_, 2 * rows() * kWord);
  for (std::size_t row = 0; row < requests.size(); ++row) {
    const RequestState& request = *requests[row];
    step_rows[row] = flat_row(items[row], request.resident);
    if (request.shifted && request.failure == nullptr) {  // else its places may never be sent
      request.shifted->describe(step_rows[row]);
    }
  }
  device_inputs_.copy_(inputs_, /*non_blocking=*/true);
}

AttentionBatch MicroBatch::attention(std::int64_t layer) {
  AttentionBatch batch{.items = items, .layer = layer};
  if (!device_inputs_.is_same(inputs_)) {
    batch.rows = data_as<const kernels::StepRow>(device_inputs_, 2 * rows() * kWord);
    if (slot(layer).has_payloads) {
      batch.payloads = data_as<const kernels::PayloadRow>(slot(layer).device_payloads);
    }
    const auto wants_sum = [](const AttentionItem& item) { return item.lse != nullptr; };
    if (std::ranges::any_of(items, wants_sum)) {
      batch.lse = lost.merged(layer, 0)->mutable_data_ptr<float>();
    }
  }
  return batch;
}

PayloadBatch MicroBatch::payloads(std::int64_t layer) {
  HostSlot& slot = this->slot(layer);
  PayloadBatch batch{.items = items,
                     .union_sizes = slot.union_sizes,
                     .device_union_sizes = slot.device_union_sizes,
                     .num_heads = ws.query.size(1)};
  if (slot.payload_copies.defined()) {
    auto* copies = data_as<kernels::PayloadCopy>(slot.payload_copies);
    for (std::size_t row = 0; row < items.size(); ++row) {
      const HostPayload* payload = items[row].payload;
      copies[row] = payload == nullptr
                        ? kernels::PayloadCopy{}
                        : kernels::PayloadCopy{flat_row(*payload->staged), flat_row(*payload)};
    }
    batch.copies = copies;
    batch.payloads = data_as<kernels::PayloadRow>(slot.device_payloads);
  }
  return batch;
}

}  // namespace hybridgen
