// SPDX-License-Identifier: Apache-2.0
#include "pipeline/make_host_job.h"

#include <algorithm>

namespace hybridgen {
namespace {

Payload payload_of(const HostWork& work) {
  if (is<Score>(work)) {
    return Payload::kLogitsAndValues;
  }
  if (is<Attend>(work)) {
    return Payload::kPartialAttention;
  }
  return is<FetchKeys>(work) ? Payload::kKeys : Payload::kKeysAndValues;
}

SelectedHere selected_here(const RequestParts& parts, const HostJob& job) {
  SelectedHere selected{.selector = parts.selector};
  if (parts.selector->says_how_many()) {
    selected.most = job.num_chosen;
  }
  if (parts.proxy != nullptr) {
    const std::int64_t candidates = parts.proxy->num_candidates(job.num_chosen, job.num_offloaded);
    // With every token a candidate there is nothing to propose.
    if (candidates < job.num_offloaded) {
      selected.proxy = parts.proxy;
      selected.num_candidates = candidates;
    }
  }
  return selected;
}

Chooser chooser_of(const RequestState& request, const HostWork& work, const HostJob& job) {
  const TokenChoice choice = choice_of(work);
  if (std::holds_alternative<AllTokens>(choice)) {
    return EveryToken{};
  }
  if (std::holds_alternative<ByPlanner>(choice)) {
    return ChosenOnDevice{};
  }
  if (request.steering.strategy() == SelectionStrategy::kPostQkt) {
    return selected_here(request.parts, job);
  }
  if (request.parts.pre_selector != nullptr) {
    return PlannedHere{request.parts.pre_selector};
  }
  return ChosenOnDevice{.wanted = job.num_chosen};
}

}  // namespace

HostJob host_job(RequestState& request, std::int64_t layer, const HostWork& work) {
  HostJob job;
  job.store = request.host.get();
  job.payload = payload_of(work);
  job.num_offloaded = request.tokens.num_offloaded();
  job.num_chosen =
      sends_k(work) ? request.steering.num_chosen(job.num_offloaded) : job.num_offloaded;
  job.chooser = chooser_of(request, work, job);
  job.keys_in_cxl = request.holding.share_in_cxl(KvSide::kKeys);
  job.values_in_cxl = request.holding.share_in_cxl(KvSide::kValues);
  job.buffers = request.staging_of(layer).buffers();
  if (job.selection() != nullptr && job.is_shared()) {
    job.num_chosen = std::min(job.num_offloaded, job.buffers.union_capacity);
  }
  return job;
}

}  // namespace hybridgen
