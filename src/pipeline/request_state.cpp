// SPDX-License-Identifier: Apache-2.0
#include "pipeline/request_state.h"
#include "memory/page_pins.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "device/torch_types.h"

namespace hybridgen {

LogitScratch logit_scratch(const DecoderModel& model, const RequestPlan& plan) {
  const std::int64_t heads = model.config().num_heads;
  const std::int64_t chosen = plan.staging.max_chosen;
  const auto floats = [&](std::int64_t count) {
    return at::empty({count},
                     at::TensorOptions().dtype(at::kFloat).device(model.device().device()));
  };
  LogitScratch scratch;
  scratch.resident = floats(heads * plan.window);
  scratch.merged = floats(heads * (plan.window + chosen));
  scratch.parts = floats(attention_scratch(heads, model.config().head_dim, plan.window, chosen));
  if (!model.device().is_cpu()) {
    scratch.finished = at::zeros({heads}, scratch.parts.options().dtype(at::kInt));
  }
  return scratch;
}

RequestState::RequestState(const DecoderModel& model,
                           const Method& method,
                           const AttendedTokens& attended_tokens,
                           const RequestPlan& plan_,
                           Budgets& budgets,
                           KvTiers& tiers,
                           int numa_node,
                           const std::vector<NumaPart>& numa_parts,
                           const KvDiskDevice& disk)
    : device_reservation(budgets[TierKind::kDevice].reserve(plan_.device_bytes, "admit request")),
      prompt_reservation(
          budgets[TierKind::kDevice].reserve(plan_.prompt_device_bytes, "admit request")),
      plan(plan_),
      eviction(plan_.window, method.window.block),
      holding(tiers.hold(plan_.shape.request_id,
                         plan_.dram_bytes - plan_.placed_bytes,
                         plan_.placed_bytes,
                         plan_.open)),
      steering(attended_tokens, method.strategy) {
  const ModelConfig& config = model.config();
  const DType dtype = model.dtype();
  const auto options =
      at::TensorOptions().dtype(to_scalar_type(dtype)).device(model.device().device());
  resident =
      ResidentCache(config,
                    options,
                    method.residency == Residency::kRetained ? plan.prompt_capacity
                                                             : resident_capacity(method, plan));
  logits = logit_scratch(model, plan);
  if (method.positions == PositionMode::kCacheIndex) {
    shifted.emplace(config, dtype, model.device(), plan.window);
  }
  if (plan.max_offloaded > 0) {
    HostKvShape shape = host_shape(config, dtype, method, plan);
    shape.numa_node = numa_node;
    shape.numa_parts = numa_parts;
    shape.place = tiers.places().dram;
    if (sends_rows(method.work)) {
      shape.pins = page_pins(model.device().pins());
    }
    host = std::make_unique<HostKvStore>(shape);
    if (disk.file != nullptr) {
      host->use_disk(disk);
    }
    host_memory.emplace(*host);
    holding.set_memory(*host_memory,
                       method.retains_on_host() || method.has(PartRole::kHostPlacement));
    for (HostStaging& slot : staging) {
      slot = HostStaging(config, dtype, model.device(), plan.staging);
    }
  }
  if (plan.leaving_rows > 0) {
    leaving.emplace(config, dtype, model.device(), plan.leaving_rows);
  }
  PartContext context = part_context(config, dtype, plan);
  context.device = &model.device();
  context.numa_node = numa_node;
  context.numa_parts = &numa_parts;
  for (const PartFactory* part : parts_needed(method, attended_tokens, plan)) {
    parts.add(*part, context);
  }
}

std::int64_t RequestState::num_attended(const Method& method) const {
  const bool is_told = parts.selector != nullptr && parts.selector->says_how_many();
  return sends_k(method.work) && !is_told ? steering.num_chosen(tokens.num_offloaded())
                                          : attended.last_attended;
}

std::int64_t RequestState::max_candidates() const {
  return parts.proxy == nullptr
             ? 0
             : parts.proxy->num_candidates(plan.staging.max_chosen, plan.max_offloaded);
}

}  // namespace hybridgen
