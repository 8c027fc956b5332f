// SPDX-License-Identifier: Apache-2.0
#include "pipeline/device_plans.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "device/flat_rows.h"
#include "hybridgen/core/error.h"
#include "kernels/cuda_planning.h"
#include "pipeline/invented_places.h"
#include "pipeline/make_host_job.h"

namespace hybridgen {
namespace {

std::int64_t work_bytes(std::int64_t heads,
                        std::int64_t groups,
                        std::int64_t head_dim,
                        std::int64_t tokens) {
  return static_cast<std::int64_t>(
      kernels::plan_work_bytes(groups, heads / groups, head_dim, tokens));
}

std::int64_t place_bytes(const ModelConfig& config, const RequestPlan& plan) {
  return config.num_kv_heads * plan.max_planned * static_cast<std::int64_t>(sizeof(std::int32_t));
}

// A timed device chooses nothing: as many tokens as it might.
void invent(const PlanItem& item, const at::Tensor& host) {
  host.narrow(0, item.places.storage_offset(), item.places.numel())
      .view(item.places.sizes())
      .copy_(invented_places(item.most, item.num_tokens).expand(item.places.sizes()));
}

}  // namespace

DevicePlans::DevicePlans(const DecoderModel& model,
                         const Method& method,
                         std::span<RequestState* const> requests)
    : work_(method.work),
      early_work_(method.early_work),
      first_layer_(method.first_layer),
      num_heads_(model.config().num_heads),
      num_kv_heads_(model.config().num_kv_heads),
      head_dim_(model.config().head_dim),
      is_timed_(model.device().is_timed()) {
  std::int64_t tokens = 0;
  std::int64_t places = 0;
  std::int64_t scratch = 0;
  for (const RequestState* request : requests) {
    if (request->parts.planner != nullptr) {
      tokens += request->plan.max_offloaded;
      places += num_kv_heads_ * request->plan.max_planned;
      scratch += work_bytes(num_heads_, num_kv_heads_, head_dim_, request->plan.max_offloaded);
    }
  }
  if (places == 0) {
    return;
  }
  const DeviceContext& device = model.device();
  const auto on_device = [&](std::int64_t count, at::ScalarType type) {
    return at::empty({count}, at::TensorOptions().dtype(type).device(device.device()));
  };
  guesses_ = on_device(num_kv_heads_ * tokens, at::kFloat);
  places_ = on_device(places, at::kInt);
  for (at::Tensor& host : host_places_) {
    host = device.host_staging({places}, at::kInt);
  }
  if (!device.is_cpu()) {
    counts_ = on_device(std::ssize(requests), at::kLong);
    scratch_ = on_device(scratch, at::kByte);
  }
}

std::int64_t DevicePlans::device_bytes(const ModelConfig& config,
                                       bool device_is_host,
                                       const RequestPlan& plan) {
  if (plan.max_planned == 0) {
    return 0;
  }
  const std::int64_t guesses =
      config.num_kv_heads * plan.max_offloaded * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t work =
      device_is_host
          ? 0
          : work_bytes(config.num_heads, config.num_kv_heads, config.head_dim, plan.max_offloaded);
  return guesses + place_bytes(config, plan) + work;
}

std::int64_t DevicePlans::host_bytes(const ModelConfig& config, const RequestPlan& plan) {
  return 2 * place_bytes(config, plan);
}

void DevicePlans::begin_step(std::span<RequestState* const> requests,
                             std::span<kernels::PlanRow> flat) {
  if (!guesses_.defined()) {
    return;
  }
  std::ranges::fill(flat, kernels::PlanRow{});
  begin_step(steps_[0], work_, requests, flat.first(flat.size() / 2));
  if (first_layer_ > 0) {
    begin_step(steps_[1], early_work_, requests, flat.last(flat.size() / 2));
  }
}

void DevicePlans::begin_step(Step& step,
                             const HostWork& work,
                             std::span<RequestState* const> requests,
                             std::span<kernels::PlanRow> flat) {
  step.items.clear();
  step.item_of_row.assign(requests.size(), -1);
  step.num_guesses = step.num_places = step.work_bytes = 0;
  for (std::size_t row = 0; row < requests.size(); ++row) {
    RequestState& request = *requests[row];
    if (request.failure != nullptr || request.tokens.num_offloaded() == 0) {
      continue;
    }
    const HostJob job = host_job(request, 0, work);
    if (const auto* chosen = std::get_if<ChosenOnDevice>(&job.chooser)) {
      PlanItem item = request.parts.planner->plan(job.num_offloaded, chosen->wanted);
      item.row = static_cast<std::int64_t>(row);
      step.item_of_row[row] = std::ssize(step.items);
      const kernels::PlanRow flat_item = add(step, std::move(item));
      if (!flat.empty()) {
        flat[row] = flat_item;
      }
    }
  }
}

// Its share of the memory, behind that of the items before.
kernels::PlanRow DevicePlans::add(Step& step, PlanItem item) {
  const std::int64_t guesses = num_kv_heads_ * item.num_tokens;
  const std::int64_t places = num_kv_heads_ * item.most;
  HYBRIDGEN_DCHECK(item.most >= 1 && step.num_places + places <= places_.numel(), item.most);
  item.guesses = guesses_.narrow(0, step.num_guesses, guesses).view({num_kv_heads_, -1});
  item.places = places_.narrow(0, step.num_places, places).view({num_kv_heads_, -1});
  kernels::PlanRow flat;
  if (scratch_.defined()) {
    flat = flat_row(item);
    flat.work = scratch_.mutable_data_ptr<std::uint8_t>() + step.work_bytes;
    if (item.alpha) {
      flat.count = counts_.mutable_data_ptr<std::int64_t>() + item.row;
    }
  }
  step.num_guesses += guesses;
  step.num_places += places;
  step.work_bytes += work_bytes(num_heads_, num_kv_heads_, head_dim_, item.num_tokens);
  step.items.push_back(std::move(item));
  return flat;
}

void DevicePlans::start(const DeviceOps& ops,
                        std::int64_t layer,
                        const at::Tensor& query,
                        const kernels::PlanRow* flat) {
  const Step& step = step_of(layer);
  const std::int64_t first_flat = &step == steps_.data() ? 0 : query.size(0);
  PlanBatch batch{
      .items = step.items, .layer = layer, .rows = flat == nullptr ? nullptr : flat + first_flat};
  for (const PlanItem& item : step.items) batch.count(item);
  ops.plan(query.view({query.size(0), num_heads_, head_dim_}), batch);
  const at::Tensor host =
      host_places_[static_cast<std::size_t>(layer % 2)].narrow(0, 0, step.num_places);
  host.copy_(places_.narrow(0, 0, step.num_places), /*non_blocking=*/true);
  if (is_timed_) {
    for (const PlanItem& item : step.items) {
      invent(item, host);
    }
  }
}

ChosenOnDevice DevicePlans::of(std::int64_t layer, std::size_t row, ChosenOnDevice chosen) const {
  const Step& step = step_of(layer);
  HYBRIDGEN_DCHECK(step.item_of_row[row] >= 0, row);
  const PlanItem& item = step.items[static_cast<std::size_t>(step.item_of_row[row])];
  const at::Tensor& host = host_places_[static_cast<std::size_t>(layer % 2)];
  chosen.places = host.const_data_ptr<std::int32_t>() + item.places.storage_offset();
  chosen.most = item.most;
  return chosen;
}

void read_plans(std::span<HostJob> jobs) {
  for (HostJob& job : jobs) {
    if (const auto* chosen = std::get_if<ChosenOnDevice>(&job.chooser)) {
      const std::int32_t* end = chosen->places + chosen->most;
      job.num_chosen = std::lower_bound(chosen->places, end, job.num_offloaded) - chosen->places;
    }
  }
}

}  // namespace hybridgen
