// SPDX-License-Identifier: Apache-2.0
#include "pipeline/request_state.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "device/torch_types.h"

namespace hybridgen {
namespace {

StagingShape staging_of(const LayerRule& rule,
                        const Method& method,
                        const ModelConfig& config,
                        const AttendedTokens& attended,
                        std::int64_t max_offloaded) {
  StagingShape shape;
  if (rule.payload == PayloadKind::kNothing) {
    return shape;
  }
  if (rule.payload == PayloadKind::kPartialAttention) {
    shape.has_output = true;
    return shape;
  }
  const bool sparse = rule.payload == PayloadKind::kKeysThenValues;
  shape.has_keys = sparse || rule.payload == PayloadKind::kKeysAndValues;
  shape.has_own_choices = sparse;
  shape.max_chosen = max_offloaded;
  if (rule.choice == HostChoice::kPartialKeys) {
    shape.max_chosen = method.partial_keys.max_fetch.resolve(max_offloaded);
  } else if (rule.choice == HostChoice::kSelector) {
    shape.max_chosen = attended.scheduler
                           ? std::min(max_offloaded,
                                      std::max(attended.scheduler->k_min,
                                               attended.scheduler->k_max.value_or(max_offloaded)))
                           : attended.k.resolve(max_offloaded);
    shape.has_own_choices = method.selector != nullptr;
    shape.num_scored = shape.has_own_choices ? max_offloaded : 0;
  }
  shape.union_rows =
      shape.has_own_choices
          ? std::min(max_offloaded, shape.max_chosen * config.query_heads_per_kv_head())
          : shape.max_chosen;
  return shape;
}

std::int64_t candidates_of(double per_chosen, std::int64_t num_chosen, std::int64_t available) {
  const double wanted = std::ceil(per_chosen * static_cast<double>(num_chosen));
  return wanted < static_cast<double>(available) ? static_cast<std::int64_t>(wanted) : available;
}

ShadowShape shadow_of(const ModelConfig& config,
                      DType dtype,
                      ShadowPrecision precision,
                      std::int64_t max_offloaded,
                      int numa_node = -1,
                      const std::vector<NumaPart>& numa_parts = {}) {
  return {.num_layers = config.num_layers,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .dtype = dtype,
          .capacity = max_offloaded,
          .precision = precision,
          .numa_node = numa_node,
          .numa_parts = numa_parts};
}

}  // namespace

RequestPlan plan_request(const ModelConfig& config,
                         DType dtype,
                         bool device_is_host,
                         const Method& method,
                         const AttendedTokens& attended,
                         const RequestShape& shape,
                         std::int64_t window) {
  RequestPlan plan;
  plan.shape = shape;
  plan.window = shape.max_tokens;
  if (method.residency == Residency::kWindow && window >= 0) {
    plan.window = std::clamp<std::int64_t>(window, 1, shape.max_tokens);
    // Whole blocks leave, as far as there are enough tokens.
    plan.max_offloaded = plan.window == shape.max_tokens
                             ? 0
                             : std::min(shape.max_tokens,
                                        shape.max_tokens - plan.window + method.eviction_block - 1);
    if (method.pool) {
      const auto share =
          static_cast<std::int64_t>(method.pool->capacity * static_cast<double>(shape.max_tokens));
      plan.max_offloaded = std::min(plan.max_offloaded, std::max(share, shape.prompt_tokens));
    }
  } else if (method.residency == Residency::kNone) {
    plan.window = 0;
    plan.max_offloaded = shape.max_tokens;
  } else if (method.residency == Residency::kRetained) {
    const RetentionShape retained{
        config.num_layers, config.num_kv_heads, config.query_heads_per_kv_head()};
    const std::int64_t budget =
        std::min(method.retention(retained, shape)->budget(), shape.max_tokens);
    plan.prompt_capacity = std::max<std::int64_t>(1, shape.prompt_tokens);
    plan.prompt_device_bytes = ResidentCache::required_bytes(config, dtype, plan.prompt_capacity);
    plan.window = method.retained_on_host ? 1 : std::min(budget + 1, shape.max_tokens);
    plan.max_offloaded = method.retained_on_host ? budget : 0;
  }
  const std::int64_t capacity = method.residency == Residency::kRetained
                                    ? plan.window
                                    : ResidentCache::capacity_for(plan.window, shape.max_tokens);
  plan.device_bytes = ResidentCache::required_bytes(config, dtype, capacity);
  if (method.positions == PositionMode::kCacheIndex) {
    plan.device_bytes += plan.window * config.kv_row_bytes(dtype);  // shifted_keys
  }
  if (plan.max_offloaded > 0) {
    plan.staging =
        merge(staging_of(method.rule, method, config, attended, plan.max_offloaded),
              method.first_layer > 0
                  ? staging_of(method.early_rule, method, config, attended, plan.max_offloaded)
                  : StagingShape{});
    const HostKvShape host{.num_layers = config.num_layers,
                           .num_kv_heads = config.num_kv_heads,
                           .head_dim = config.head_dim,
                           .dtype = dtype,
                           .capacity = plan.max_offloaded,
                           .key_layout = method.key_layout};
    plan.dram_bytes = HostKvStore::required_bytes(host) +
                      2 * HostStaging::required_bytes(config, dtype, plan.staging);
    if (!device_is_host) {
      plan.device_bytes += 2 * HostStaging::payload_bytes(config, dtype, plan.staging);
    }
    if (method.shadow) {
      plan.max_candidates =
          candidates_of(method.candidates_per_k, plan.staging.max_chosen, plan.max_offloaded);
      plan.dram_bytes += ScoringShadow::required_bytes(
          shadow_of(config, dtype, *method.shadow, plan.max_offloaded));
    }
    if (method.uses_partial_keys()) {
      plan.device_bytes +=
          PartialKeys::required_bytes(config, dtype, method.partial_keys, plan.max_offloaded);
    }
  }
  // resident_logits and merged_logits
  plan.device_bytes += config.num_heads * (2 * plan.window + plan.staging.max_chosen) *
                       static_cast<std::int64_t>(sizeof(float));
  return plan;
}

RequestState::RequestState(const DecoderModel& model,
                           const Method& method,
                           const AttendedTokens& attended,
                           const RequestPlan& plan_,
                           Budgets& budgets,
                           int numa_node,
                           const std::vector<NumaPart>& numa_parts)
    : device_reservation(budgets[TierKind::kDevice].reserve(plan_.device_bytes, "admit request")),
      prompt_reservation(budgets[TierKind::kDevice].reserve(plan_.prompt_device_bytes, "admit request")),
      plan(plan_),
      eviction(plan_.window, method.eviction_block),
      fixed_strategy(method.strategy),
      k(attended.k) {
  const ModelConfig& config = model.config();
  const DType dtype = model.dtype();
  const auto options =
      at::TensorOptions().dtype(to_scalar_type(dtype)).device(model.device().device());
  const bool is_retained = method.residency == Residency::kRetained;
  resident =
      ResidentCache(config,
                    options,
                    is_retained ? plan.prompt_capacity
                                : ResidentCache::capacity_for(plan.window, plan.shape.max_tokens));
  resident_logits = at::empty({config.num_heads * plan.window}, options.dtype(at::kFloat));
  merged_logits = at::empty({config.num_heads * (plan.window + plan.staging.max_chosen)},
                            options.dtype(at::kFloat));
  if (is_retained) {
    retention = method.retention(
        {config.num_layers, config.num_kv_heads, config.query_heads_per_kv_head()}, plan.shape);
    if (method.positions == PositionMode::kCacheIndex) {
      shifted_keys = at::empty({config.num_kv_heads, plan.window, config.head_dim}, options);
      ranks = at::empty({plan.window}, at::kLong);
    }
  }
  if (plan.max_offloaded == 0) {
    return;
  }
  dram_reservation = budgets[TierKind::kDram].reserve(plan.dram_bytes, "admit request");
  host = std::make_unique<HostKvStore>(HostKvShape{.num_layers = config.num_layers,
                                                   .num_kv_heads = config.num_kv_heads,
                                                   .head_dim = config.head_dim,
                                                   .dtype = dtype,
                                                   .capacity = plan.max_offloaded,
                                                   .key_layout = method.key_layout,
                                                   .numa_node = numa_node,
                                                   .numa_parts = numa_parts});
  if (method.shadow) {
    shadow = std::make_unique<ScoringShadow>(
        shadow_of(config, dtype, *method.shadow, plan.max_offloaded, numa_node, numa_parts));
    candidates_per_k = method.candidates_per_k;
  }
  if (method.pool) {
    pool = std::make_unique<PoolEviction>(
        config.num_layers, config.num_kv_heads, plan.max_offloaded, method.pool->policy);
  }
  const SelectorShape selector_shape{config.num_layers,
                                     config.num_kv_heads,
                                     config.query_heads_per_kv_head(),
                                     config.head_dim,
                                     plan.max_offloaded};
  if (attended.scheduler) {
    scheduler.emplace(*attended.scheduler);
  }
  const bool may_switch = scheduler && scheduler->options().adapt_strategy;
  if (method.selector && (may_switch || strategy() == SelectionStrategy::kPostQkt)) {
    selector = method.selector(selector_shape);
  }
  if (method.pre_selector && (may_switch || strategy() == SelectionStrategy::kPreQkt)) {
    pre_selector = method.pre_selector(selector_shape);
  }
  if (method.rule.choice == HostChoice::kPartialKeys ||
      (method.pre_selects_by_partial_keys &&
       (may_switch || strategy() == SelectionStrategy::kPreQkt))) {
    partial_keys =
        std::make_unique<PartialKeys>(config, options, method.partial_keys, plan.max_offloaded);
  }
  for (HostStaging& slot : staging) {
    slot = HostStaging(config, dtype, model.device(), plan.staging);
  }
}

SelectionStrategy RequestState::strategy() const {
  return scheduler ? scheduler->strategy() : fixed_strategy;
}

std::int64_t RequestState::num_chosen(std::int64_t available) const {
  return scheduler ? scheduler->k_for(available) : k.resolve(available);
}

std::int64_t RequestState::num_candidates(std::int64_t num_chosen, std::int64_t available) const {
  return candidates_of(candidates_per_k, num_chosen, available);
}

const TokenSelector* RequestState::active_selector() const {
  return strategy() == SelectionStrategy::kPostQkt ? selector.get() : pre_selector.get();
}

}  // namespace hybridgen
