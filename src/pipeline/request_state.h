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
#include "hybridgen/methods/method.h"
#include "kvcache/eviction_engine.h"
#include "kvcache/host_kv_store.h"
#include "kvcache/kv_tiers.h"
#include "kvcache/store_memory.h"
#include "kvcache/token_mapper.h"
#include "memory/budgets.h"
#include "models/decoder_model.h"
#include "parts/request_parts.h"
#include "pipeline/host_staging.h"
#include "pipeline/lost_mass.h"
#include "pipeline/request_plan.h"
#include "pipeline/rows_to_host.h"
#include "pipeline/shifted_keys.h"
#include "pipeline/steering.h"
#include "pipeline/weights_to_host.h"

namespace hybridgen {

/// Float32 on the device, for one layer at a time.
struct LogitScratch {
  at::Tensor resident;  ///< [H * n_g] at most
  at::Tensor merged;    ///< [H * (S + n_g)] at most
  at::Tensor parts;     ///< attention_scratch() at most
  at::Tensor finished;  ///< int32 [H] of 0; undefined on a CPU device
};

LogitScratch logit_scratch(const DecoderModel& model, const RequestPlan& plan);

/// Offloaded tokens that took part, summed over decode steps, layers and KV heads.
struct AttendedCount {
  std::int64_t attended = 0;
  std::int64_t available = 0;      ///< n_c
  std::int64_t last_attended = 0;  ///< per KV head, in the last host job
};

struct RequestState {
  /// Takes the plan's memory from the tiers' budgets, the host's through `tiers`: OutOfMemoryError
  /// if one has too little. All three must outlive it. Offloaded tokens lie on `numa_node` (-1:
  /// where the system likes) or, if there are any, on the nodes of `numa_parts`. With a file in
  /// `disk`, blocks of them may go there.
  RequestState(const DecoderModel& model,
               const Method& method,
               const AttendedTokens& attended,
               const RequestPlan& plan,
               Budgets& budgets,
               KvTiers& tiers,
               int numa_node,
               const std::vector<NumaPart>& numa_parts = {},
               const KvDiskDevice& disk = {});
  RequestState(const RequestState&) = delete;
  RequestState& operator=(const RequestState&) = delete;
  ~RequestState() = default;

  /// Of a proxy's best, for K of all offloaded tokens at most; 0: there is no proxy.
  std::int64_t max_candidates() const;
  HostStaging& staging_of(std::int64_t layer) {
    return staging[static_cast<std::size_t>(layer % 2)];
  }

  /// Offloaded tokens per head in the last step, of a method that says K or has a selector for it;
  /// else, and where that selector says how many, per KV head in the last host job.
  std::int64_t num_attended(const Method& method) const;

  /// Offloaded tokens on the disk; null: there is no disk for this request.
  KvDisk* on_disk() const { return host == nullptr ? nullptr : host->disk(); }
  /// After a step, or what became of it.
  void end_reading() {
    next_read = 0;
    if (KvDisk* disk = on_disk()) disk->release_all();
  }

  Reservation device_reservation;
  Reservation prompt_reservation;  ///< until a retention policy has chosen
  RequestPlan plan;
  std::int64_t prefill_tokens = 0;  ///< of the prompt; the rest passes through decode steps

  TokenMapper tokens;
  EvictionEngine eviction;
  ResidentCache resident;
  std::unique_ptr<HostKvStore> host;  ///< null: nothing ever leaves the device
  std::optional<StoreMemory> host_memory;
  KvHolding holding;           ///< behind the memory that it lets move
  std::int64_t next_read = 0;  ///< layer of this step that the disk was not asked for yet
  RequestParts parts;
  Steering steering;

  std::array<HostStaging, 2> staging;  ///< ring: layer i uses slot i % 2
  LogitScratch logits;
  std::optional<ShiftedKeys> shifted;  ///< PositionMode::kCacheIndex only
  // Only where the device is not the host, and what comes from it is read after a step's wait.
  std::optional<RowsToHost> leaving;     ///< if rows ever leave the device while it decodes
  std::optional<WeightsToHost> weights;  ///< from the first layer on whose weights are asked for

  /// The first failure of its own in a step. From there on nothing more is done for the request,
  /// whose caches are undefined; its row stays in the batch, so that no other row changes.
  std::exception_ptr failure;
  AttendedCount attended;
  LossSum loss;
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
