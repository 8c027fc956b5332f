// SPDX-License-Identifier: Apache-2.0
#include "pipeline/request_plan.h"

#include <algorithm>

#include "device/device_ops.h"
#include "device/resident_cache.h"
#include "kvcache/store_memory.h"
#include "parts/request_parts.h"
#include "pipeline/device_plans.h"
#include "pipeline/lost_mass.h"
#include "pipeline/rows_to_host.h"
#include "pipeline/shifted_keys.h"
#include "pipeline/value_plans.h"
#include "pipeline/weights_to_host.h"

namespace hybridgen {
namespace {

StagingShape staging_of(const HostWork& work,
                        const Method& method,
                        const ModelConfig& config,
                        const AttendedTokens& attended,
                        std::int64_t max_offloaded) {
  StagingShape shape;
  if (is<Nothing>(work)) {
    return shape;
  }
  if (is<Attend>(work)) {
    shape.num_attended = max_offloaded;
    return shape;
  }
  const TokenChoice choice = choice_of(work);
  shape.has_keys = !is<Score>(work);
  shape.has_own_choices = is<FetchKeys>(work);
  shape.max_chosen = max_offloaded;
  if (const auto* planner = std::get_if<ByPlanner>(&choice)) {
    shape.max_chosen = planner->most.resolve(max_offloaded);
  } else if (std::holds_alternative<BySelectors>(choice)) {
    const PartFactory* selector = find_part(method.parts, PartRole::kSelector);
    shape.max_chosen = attended.most(max_offloaded);
    shape.has_own_choices = selector != nullptr && !selector->says_how_many;
    shape.num_scored = selector != nullptr ? max_offloaded : 0;
    if (selector != nullptr && selector->says_how_many) {
      shape.max_chosen =
          std::min(max_offloaded, shape.max_chosen * config.query_heads_per_kv_head());
    }
  }
  shape.union_rows =
      shape.has_own_choices
          ? std::min(max_offloaded, shape.max_chosen * config.query_heads_per_kv_head())
          : shape.max_chosen;
  return shape;
}

// Tokens per KV head that the device chooses for the host to send, at most.
std::int64_t most_planned(const Method& method,
                          const AttendedTokens& attended,
                          const RequestPlan& plan) {
  const auto plans = [](const PartFactory* part) { return part->role == PartRole::kPlanner; };
  if (std::ranges::none_of(parts_needed(method, attended, plan), plans)) {
    return 0;
  }
  std::int64_t most = 0;
  for (const HostWork* work : {&method.work, &method.early_work}) {
    const TokenChoice choice = choice_of(*work);
    if (const auto* planner = std::get_if<ByPlanner>(&choice)) {
      most = std::max(most, planner->most.resolve(plan.max_offloaded));
    } else if (std::holds_alternative<BySelectors>(choice)) {
      most = std::max(most, attended.most(plan.max_offloaded));
    }
  }
  return most;
}

// Values per query head that the device chooses for the host to send, or has, at most.
std::int64_t most_kept(const ModelConfig& config,
                       DType dtype,
                       const Method& method,
                       const RequestPlan& plan) {
  const PartFactory* attention = find_part(method.parts, PartRole::kKeptValues);
  if (attention == nullptr) {
    return 0;
  }
  RequestParts parts;
  parts.add(*attention, part_context(config, dtype, plan));
  return parts.kept_values->num_kept(plan.shape.max_tokens);
}

// Tokens on the device and on the host.
void plan_tokens(const ModelConfig& config,
                 DType dtype,
                 const Method& method,
                 std::int64_t window,
                 std::int64_t least,
                 RequestPlan& plan) {
  const RequestShape& shape = plan.shape;
  plan.window = shape.max_tokens;
  if (method.residency == Residency::kWindow) {
    plan.window = std::clamp<std::int64_t>(window, 1, shape.max_tokens);
    // Whole blocks leave, as far as there are enough tokens.
    const std::int64_t beyond = shape.max_tokens - std::clamp<std::int64_t>(least, 1, plan.window);
    plan.max_offloaded =
        beyond == 0 ? 0 : std::min(shape.max_tokens, beyond + method.window.block - 1);
    for (const PartFactory& part : method.parts) {
      if (part.host_limit) {
        plan.max_offloaded = std::min(plan.max_offloaded, part.host_limit(shape));
      }
    }
  } else if (method.residency == Residency::kNone) {
    plan.window = 0;
    plan.max_offloaded = shape.max_tokens;
  } else if (method.residency == Residency::kRetained) {
    RequestParts parts;
    parts.add(*find_part(method.parts, PartRole::kRetention), part_context(config, dtype, plan));
    const std::int64_t budget = std::min(parts.retention->budget(), shape.max_tokens);
    const bool on_host = method.retains_on_host();
    plan.prompt_capacity = std::max<std::int64_t>(1, shape.prompt_tokens);
    plan.window = on_host ? 1 : std::min(budget + 1, shape.max_tokens);
    plan.max_offloaded = on_host ? budget : 0;
  }
}

// What a device that is not the host sends during a step and the host reads after it.
void plan_step_end(const ModelConfig& config,
                   DType dtype,
                   const Method& method,
                   const AttendedTokens& attended,
                   RequestPlan& plan) {
  if (plan.max_offloaded > 0 && method.has(PartRole::kSelector)) {
    plan.dram_bytes += LostMass::host_bytes(config);
  }
  if (plan.max_offloaded > 0 && method.residency != Residency::kNone) {
    plan.leaving_rows =
        method.residency == Residency::kRetained ? 1 : std::min(method.window.block, plan.window);
    plan.dram_bytes += RowsToHost::required_bytes(config, dtype, plan.leaving_rows);
  }
  if (method.residency == Residency::kRetained && plan.max_offloaded == 0) {
    plan.dram_bytes += row_move_bytes(config);
    plan.device_bytes += row_move_bytes(config);
  }
  const auto wants_weights = [](const PartFactory* part) { return part->wants_decode_weights; };
  if (std::ranges::any_of(parts_needed(method, attended, plan), wants_weights)) {
    plan.dram_bytes += WeightsToHost::required_bytes(config, plan.window, plan.staging.max_chosen);
  }
}

}  // namespace

RequestPlan plan_request(const ModelConfig& config,
                         DType dtype,
                         bool device_is_host,
                         const Method& method,
                         const AttendedTokens& attended,
                         const RequestShape& shape,
                         std::int64_t window,
                         std::int64_t least) {
  RequestPlan plan;
  plan.shape = shape;
  plan_tokens(config, dtype, method, window, least, plan);
  if (plan.prompt_capacity > 0) {
    plan.prompt_device_bytes = ResidentCache::required_bytes(config, dtype, plan.prompt_capacity);
  }
  plan.device_bytes = ResidentCache::required_bytes(config, dtype, resident_capacity(method, plan));
  if (method.positions == PositionMode::kCacheIndex) {
    plan.device_bytes += ShiftedKeys::required_bytes(config, dtype, device_is_host, plan.window);
    plan.dram_bytes += ShiftedKeys::place_bytes(config, device_is_host, plan.window);
  }
  if (plan.max_offloaded > 0) {
    plan.staging =
        merge(staging_of(method.work, method, config, attended, plan.max_offloaded),
              method.first_layer > 0
                  ? staging_of(method.early_work, method, config, attended, plan.max_offloaded)
                  : StagingShape{});
    const HostKvShape host = host_shape(config, dtype, method, plan);
    const BytesToPlace placed = bytes_to_place(host);
    plan.placed_bytes = placed.all;
    plan.largest_block_bytes = placed.largest_block;
    plan.dram_bytes += HostKvStore::required_bytes(host) +
                       2 * HostStaging::required_bytes(config, dtype, plan.staging);
    if (!device_is_host) {
      plan.device_bytes += 2 * HostStaging::payload_bytes(config, dtype, plan.staging);
    }
    plan.max_planned = most_planned(method, attended, plan);
    plan.device_bytes += DevicePlans::device_bytes(config, device_is_host, plan);
    plan.dram_bytes += DevicePlans::host_bytes(config, plan);
  }
  plan.max_kept = most_kept(config, dtype, method, plan);
  plan.device_bytes += ValuePlans::device_bytes(config, device_is_host, plan);
  plan.dram_bytes += device_is_host ? 0 : ValuePlans::host_bytes(config, plan);
  if (!device_is_host) {
    plan_step_end(config, dtype, method, attended, plan);
  }
  for (const PartFactory* part : parts_needed(method, attended, plan)) {
    if (part->required_bytes) {
      const PartBytes bytes = part->required_bytes(part_context(config, dtype, plan));
      plan.device_bytes += bytes.device;
      plan.dram_bytes += bytes.host;
    }
  }
  // LogitScratch
  const std::int64_t parts =
      attention_scratch(config.num_heads, config.head_dim, plan.window, plan.staging.max_chosen);
  plan.device_bytes += (config.num_heads * (2 * plan.window + plan.staging.max_chosen) + parts +
                        (device_is_host ? 0 : config.num_heads)) *
                       static_cast<std::int64_t>(sizeof(float));
  return plan;
}

std::int64_t row_move_bytes(const ModelConfig& config) {
  return config.num_layers * config.num_kv_heads * static_cast<std::int64_t>(sizeof(std::int32_t));
}

std::int64_t resident_capacity(const Method& method, const RequestPlan& plan) {
  return method.residency == Residency::kRetained
             ? plan.window
             : ResidentCache::capacity_for(plan.window, plan.shape.max_tokens);
}

PartContext part_context(const ModelConfig& config, DType dtype, const RequestPlan& plan) {
  return {.config = config,
          .dtype = dtype,
          .request = plan.shape,
          .prompt_capacity = plan.prompt_capacity,
          .max_offloaded = plan.max_offloaded};
}

std::vector<const PartFactory*> parts_needed(const Method& method,
                                             const AttendedTokens& attended,
                                             const RequestPlan& plan) {
  const auto asks_planner = [](const HostWork& work) {
    return std::holds_alternative<ByPlanner>(choice_of(work));
  };
  const bool offloads = plan.max_offloaded > 0;
  const bool may_select = attended.may_use(SelectionStrategy::kPostQkt, method.strategy);
  const bool may_plan = attended.may_use(SelectionStrategy::kPreQkt, method.strategy) ||
                        asks_planner(method.work) || asks_planner(method.early_work);
  const auto is_needed = [&](const PartFactory& part) {
    switch (part.role) {
      case PartRole::kSelector:
        return offloads && may_select;
      case PartRole::kPreSelector:
      case PartRole::kPlanner:
        return offloads && may_plan;
      case PartRole::kKeyProxy:
      case PartRole::kHostPlacement:
        return offloads;
      case PartRole::kListener:
      case PartRole::kRetention:
      case PartRole::kPromptScores:
      case PartRole::kKeptValues:
        break;
    }
    return true;
  };
  std::vector<const PartFactory*> needed;
  for (const PartFactory& part : method.parts) {
    if (is_needed(part)) {
      needed.push_back(&part);
    }
  }
  return needed;
}

HostKvShape host_shape(const ModelConfig& config,
                       DType dtype,
                       const Method& method,
                       const RequestPlan& plan) {
  return {.num_layers = config.num_layers,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .dtype = dtype,
          .capacity = plan.max_offloaded,
          .key_layout = method.key_layout,
          .key_precision = method.key_precision,
          .value_precision = method.value_precision};
}

}  // namespace hybridgen
