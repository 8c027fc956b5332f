// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/pipeline/request_state.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "hybridgen/models/torch_types.h"

namespace hybridgen {

RequestPlan plan_request(const ModelConfig& config,
                         DType dtype,
                         const Method& method,
                         const TokenCount& k,
                         std::int64_t max_tokens,
                         std::int64_t window) {
  RequestPlan plan;
  plan.max_tokens = max_tokens;
  plan.window =
      window < 0 || !method.offloads ? max_tokens : std::clamp<std::int64_t>(window, 1, max_tokens);
  plan.max_offloaded = max_tokens - plan.window;
  const std::int64_t capacity = ResidentCache::capacity_for(plan.window, max_tokens);
  plan.device_bytes = ResidentCache::required_bytes(config, dtype, capacity);
  if (plan.max_offloaded > 0) {
    plan.max_chosen = k.resolve(plan.max_offloaded);
    plan.max_union =
        std::min(plan.max_offloaded, plan.max_chosen * config.query_heads_per_kv_head());
    const bool with_keys = method.payload == PayloadKind::kKeysAndValues;
    const HostKvShape shape{
        config.num_layers, config.num_kv_heads, config.head_dim, dtype, plan.max_offloaded};
    plan.dram_bytes =
        HostKvStore::required_bytes(shape) +
        2 * HostStaging::required_bytes(config, dtype, plan.max_chosen, plan.max_union, with_keys);
  }
  return plan;
}

RequestState::RequestState(const DecoderModel& model,
                           const Method& method,
                           const TokenCount& k_,
                           const RequestPlan& plan_,
                           MemoryBudget& device_budget,
                           MemoryBudget& dram_budget)
    : device_reservation(device_budget.reserve(plan_.device_bytes, "admit request")),
      plan(plan_),
      eviction(plan_.window),
      strategy(method.strategy),
      k(k_) {
  const ModelConfig& config = model.config();
  const DType dtype = model.dtype();
  const auto options =
      at::TensorOptions().dtype(to_scalar_type(dtype)).device(model.device().device());
  resident =
      ResidentCache(config, options, ResidentCache::capacity_for(plan.window, plan.max_tokens));
  resident_logits = at::empty({config.num_heads * plan.window}, options.dtype(at::kFloat));
  merged_logits =
      at::empty({config.num_heads * (plan.window + plan.max_chosen)}, options.dtype(at::kFloat));
  if (plan.max_offloaded > 0) {
    dram_reservation = dram_budget.reserve(plan.dram_bytes, "admit request");
    host = std::make_unique<HostKvStore>(HostKvShape{
        config.num_layers, config.num_kv_heads, config.head_dim, dtype, plan.max_offloaded});
    const bool is_post = strategy == SelectionStrategy::kPostQkt;
    selector = make_selector(is_post ? method.selector : method.pre_selector);
    for (HostStaging& slot : staging) {
      slot = HostStaging(config,
                         dtype,
                         model.device(),
                         plan.max_chosen,
                         plan.max_union,
                         method.payload == PayloadKind::kKeysAndValues);
    }
  }
}

}  // namespace hybridgen
