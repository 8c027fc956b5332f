// SPDX-License-Identifier: Apache-2.0
// Everything the pipeline keeps for one request; destroyed with it. Nothing here is shared between
// requests, so what one request does to its K or its selectors cannot reach another.
#pragma once

#include <array>
#include <memory>

#include "hybridgen/core/engine_options.h"
#include "hybridgen/kvcache/eviction_engine.h"
#include "hybridgen/kvcache/host_kv_store.h"
#include "hybridgen/kvcache/token_mapper.h"
#include "hybridgen/memory/memory_budget.h"
#include "hybridgen/methods/method.h"
#include "hybridgen/models/decoder_model.h"
#include "hybridgen/pipeline/host_staging.h"
#include "hybridgen/pipeline/resident_cache.h"
#include "hybridgen/selection/token_selector.h"

namespace hybridgen {

/// Sizes and bytes a request takes on each tier.
struct RequestPlan {
  std::int64_t max_tokens = 0;     ///< prompt plus generated tokens
  std::int64_t window = 0;         ///< tokens that may stay on the device, >= 1
  std::int64_t max_offloaded = 0;  ///< 0: nothing ever leaves the device
  std::int64_t max_chosen = 0;     ///< S at most
  std::int64_t max_union = 0;      ///< rows per KV head in one payload at most
  std::int64_t device_bytes = 0;
  std::int64_t dram_bytes = 0;
};

/// `window` < 0: all tokens stay on the device.
RequestPlan plan_request(const ModelConfig& config,
                         DType dtype,
                         const Method& method,
                         const TokenCount& k,
                         std::int64_t max_tokens,
                         std::int64_t window);

struct RequestState {
  /// Takes the plan's memory from both budgets: OutOfMemoryError if one has too little.
  RequestState(const DecoderModel& model,
               const Method& method,
               const TokenCount& k,
               const RequestPlan& plan,
               MemoryBudget& device_budget,
               MemoryBudget& dram_budget);

  Reservation device_reservation;
  Reservation dram_reservation;
  RequestPlan plan;
  TokenMapper tokens;
  EvictionEngine eviction;
  ResidentCache resident;
  std::unique_ptr<HostKvStore> host;  ///< null: nothing ever leaves the device
  std::unique_ptr<TokenSelector> selector;
  SelectionStrategy strategy;
  TokenCount k;
  std::array<HostStaging, 2> staging;  ///< ring: layer i uses slot i % 2
  at::Tensor resident_logits;          ///< float32 [H * window rows]
  at::Tensor merged_logits;            ///< float32 [H * (S + window rows)]

  // Sums over decode steps and layers, for statistics.
  std::int64_t attended_offloaded = 0;   ///< chosen tokens, summed over steps (one count per step)
  std::int64_t available_offloaded = 0;  ///< n_c, summed over steps
};

}  // namespace hybridgen
