// SPDX-License-Identifier: Apache-2.0
#include "pipeline/value_plans.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "device/flat_rows.h"
#include "hybridgen/core/error.h"
#include "kernels/cuda_planning.h"

namespace hybridgen {
namespace {

std::int64_t ranking_work_bytes(std::int64_t heads, std::int64_t tokens) {
  return static_cast<std::int64_t>(
      kernels::plan_work_bytes(heads, /*num_queries=*/0, /*width=*/0, tokens));
}

std::int64_t kept_place_bytes(const ModelConfig& config, const RequestPlan& plan) {
  return config.num_heads * plan.max_kept * static_cast<std::int64_t>(sizeof(std::int32_t));
}

}  // namespace

ValuePlans::ValuePlans(const DecoderModel& model, std::span<RequestState* const> requests)
    : num_rows_(std::ssize(requests)), num_heads_(model.config().num_heads) {
  std::int64_t places = 0;
  std::int64_t scratch = 0;
  bool is_there = false;
  for (const RequestState* request : requests) {
    is_there |= request->parts.kept_values != nullptr;
    places += num_heads_ * request->plan.max_kept;
    if (request->plan.max_kept > 0) {
      scratch += ranking_work_bytes(num_heads_, request->plan.shape.max_tokens);
    }
  }
  if (!is_there) {
    return;
  }
  const DeviceContext& device = model.device();
  const auto on_device = [&](std::int64_t count, at::ScalarType type) {
    return at::empty({count}, at::TensorOptions().dtype(type).device(device.device()));
  };
  places_ = on_device(places, at::kInt);
  host_places_ = device.is_cpu() ? places_ : device.host_staging({places}, at::kInt);
  if (!device.is_cpu()) {
    scratch_ = on_device(scratch, at::kByte);
  }
}

std::int64_t ValuePlans::device_bytes(const ModelConfig& config,
                                      bool device_is_host,
                                      const RequestPlan& plan) {
  if (plan.max_kept == 0) {
    return 0;
  }
  return kept_place_bytes(config, plan) +
         (device_is_host ? 0 : ranking_work_bytes(config.num_heads, plan.shape.max_tokens));
}

std::int64_t ValuePlans::host_bytes(const ModelConfig& config, const RequestPlan& plan) {
  return kept_place_bytes(config, plan);
}

void ValuePlans::begin_step(std::span<RequestState* const> requests,
                            std::span<const AttentionItem> items,
                            std::span<kernels::PlanRow> flat) {
  items_.clear();
  largest_ = {};
  num_places_ = 0;
  if (!places_.defined()) {
    return;
  }
  std::ranges::fill(flat, kernels::PlanRow{});
  std::int64_t used = 0;
  for (std::size_t row = 0; row < requests.size(); ++row) {
    const RequestState& request = *requests[row];
    if (request.failure != nullptr) {
      continue;
    }
    const AttentionItem& item = items[row];
    const std::int64_t tokens = request.tokens.num_offloaded() + item.num_resident;
    PlanItem kept{.row = item.row,
                  .num_tokens = tokens - 1,
                  .most = request.parts.kept_values->num_kept(tokens),
                  .takes_newer = true};
    kept.guesses = item.merged_logits->narrow(0, 0, num_heads_ * tokens)
                       .view({num_heads_, tokens})
                       .narrow(1, 0, tokens - 1);
    const std::int64_t places = num_heads_ * kept.most;
    HYBRIDGEN_DCHECK(num_places_ + places <= places_.numel(), kept.most);
    kept.places = places_.narrow(0, num_places_, places).view({num_heads_, kept.most});
    num_places_ += places;
    if (!flat.empty()) {
      flat[row] = flat_row(kept);
      if (request.plan.max_kept > 0) {
        flat[row].work = scratch_.mutable_data_ptr<std::uint8_t>() + used;
        used += ranking_work_bytes(num_heads_, kept.num_tokens);
      }
    }
    largest_.count(kept);
    items_.push_back(std::move(kept));
  }
}

PlanBatch ValuePlans::of(std::span<RequestState* const> requests,
                         std::int64_t layer,
                         const kernels::PlanRow* flat) {
  std::erase_if(items_, [&](const PlanItem& item) {
    return requests[static_cast<std::size_t>(item.row)]->failure != nullptr;
  });
  return {.items = items_,
          .layer = layer,
          .rows = flat,
          .max_tokens = largest_.max_tokens,
          .max_places = largest_.max_places};
}

void ValuePlans::send() {
  if (!host_places_.is_same(places_) && num_places_ > 0) {
    host_places_.narrow(0, 0, num_places_)
        .copy_(places_.narrow(0, 0, num_places_), /*non_blocking=*/true);
  }
}

std::span<const std::int32_t> ValuePlans::places(const PlanItem& item) const {
  return {host_places_.const_data_ptr<std::int32_t>() + item.places.storage_offset(),
          static_cast<std::size_t>(item.places.numel())};
}

std::span<std::int32_t> ValuePlans::places_to_invent(const PlanItem& item) {
  return {host_places_.mutable_data_ptr<std::int32_t>() + item.places.storage_offset(),
          static_cast<std::size_t>(item.places.numel())};
}

}  // namespace hybridgen
