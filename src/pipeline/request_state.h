// SPDX-License-Identifier: Apache-2.0
// Everything the pipeline keeps for one request; destroyed with it. Nothing here is shared between
// requests, so what one request does to its K or its selectors cannot reach another.
#pragma once

#include <array>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "device/resident_cache.h"
#include "hybridgen/core/engine_options.h"
#include "hybridgen/methods/method.h"
#include "hybridgen/selection/retention_policy.h"
#include "hybridgen/selection/token_selector.h"
#include "kvcache/eviction_engine.h"
#include "kvcache/host_kv_store.h"
#include "kvcache/token_mapper.h"
#include "memory/budgets.h"
#include "models/decoder_model.h"
#include "pipeline/host_staging.h"
#include "pipeline/partial_keys.h"
#include "scheduling/feedback_scheduler.h"

namespace hybridgen {

/// How many offloaded tokens take part: fixed, or steered by stage times.
struct AttendedTokens {
  TokenCount k = TokenCount::usual();
  std::optional<SchedulerOptions> scheduler;  ///< if set, k is not used
};

/// Sizes and bytes a request takes on each tier.
struct RequestPlan {
  RequestShape shape;
  std::int64_t window = 0;           ///< tokens that may stay on the device
  std::int64_t max_offloaded = 0;    ///< 0: nothing ever leaves the device
  std::int64_t max_candidates = 0;   ///< per query head and step; 0: no shadow proposes any
  std::int64_t prompt_capacity = 0;  ///< rows the prompt takes before a retention policy has chosen
  StagingShape staging;
  std::int64_t prompt_device_bytes = 0;  ///< of prompt_capacity; given back after prefill
  std::int64_t device_bytes = 0;
  std::int64_t dram_bytes = 0;
};

/// `window`: tokens that stay on the device (kWindow only); < 0: all of them. `device_is_host`:
/// what the host sends is read where it wrote it, so that it takes no memory of the device.
RequestPlan plan_request(const ModelConfig& config,
                         DType dtype,
                         bool device_is_host,
                         const Method& method,
                         const AttendedTokens& attended,
                         const RequestShape& shape,
                         std::int64_t window);

struct RequestState {
  /// Takes the plan's memory from the tiers' budgets: OutOfMemoryError if one has too little. Offloaded
  /// tokens lie on `numa_node` (-1: where the system likes) or, if there are any, on the nodes of
  /// `numa_parts`.
  RequestState(const DecoderModel& model,
               const Method& method,
               const AttendedTokens& attended,
               const RequestPlan& plan,
               Budgets& budgets,
               int numa_node,
               const std::vector<NumaPart>& numa_parts = {});

  /// When offloaded tokens are chosen in the next step.
  SelectionStrategy strategy() const;
  /// K in the next step, out of `available` offloaded tokens.
  std::int64_t num_chosen(std::int64_t available) const;
  /// Of the shadow's best, for `num_chosen` of `available` tokens per query head.
  std::int64_t num_candidates(std::int64_t num_chosen, std::int64_t available) const;
  /// The selector that the strategy asks for; null if the device plans.
  const TokenSelector* active_selector() const;

  Reservation device_reservation;
  Reservation prompt_reservation;  ///< until a retention policy has chosen
  Reservation dram_reservation;
  RequestPlan plan;
  TokenMapper tokens;
  EvictionEngine eviction;
  ResidentCache resident;
  std::unique_ptr<HostKvStore> host;  ///< null: nothing ever leaves the device
  std::unique_ptr<TokenSelector> selector;
  std::unique_ptr<TokenSelector> pre_selector;
  std::unique_ptr<PartialKeys> partial_keys;
  std::unique_ptr<ScoringShadow> shadow;  ///< null: the keys themselves are scanned
  std::int64_t shadow_tokens = -1;        ///< that calibrated it; -1: not filled yet
  double candidates_per_k = 1.0;
  std::unique_ptr<PoolEviction> pool;  ///< null: the host keeps every token it gets
  std::unique_ptr<RetentionPolicy> retention;
  std::vector<std::int64_t> new_slots;  ///< [G] where `retention` puts the new token of a layer
  std::vector<at::Tensor> prompt_sums;  ///< per layer float32 [G, P]: for the retention policy
  std::optional<FeedbackScheduler> scheduler;
  SelectionStrategy fixed_strategy;
  TokenCount k;
  std::array<HostStaging, 2> staging;  ///< ring: layer i uses slot i % 2
  at::Tensor resident_logits;          ///< float32 [H * n_g] at most
  at::Tensor merged_logits;            ///< float32 [H * (S + n_g)] at most
  at::Tensor shifted_keys;             ///< [G, n_g, D]: keys rotated to their place in the cache
  std::vector<std::int32_t> ranked_positions;  ///< what `ranks` was made from
  at::Tensor ranks;                            ///< int64 [n_g]: place of every slot's token

  /// The first failure of its own in a step. From there on nothing more is done for the request,
  /// whose caches are undefined; its row stays in the batch, so that no other row changes.
  std::exception_ptr failure;

  // Sums over decode steps, layers and KV heads, for statistics.
  std::int64_t attended_offloaded = 0;   ///< offloaded tokens that took part
  std::int64_t available_offloaded = 0;  ///< n_c
  std::int64_t last_chosen = 0;          ///< tokens per head that took part in the last host job
};

/// Does `work` for `request` alone, unless it has failed; what is thrown becomes its failure.
template <typename Work>
void contain(RequestState& request, const Work& work) {
  if (request.failure != nullptr) {
    return;
  }
  try {
    work();
  } catch (...) {
    request.failure = std::current_exception();
  }
}

}  // namespace hybridgen
