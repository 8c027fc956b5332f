// SPDX-License-Identifier: Apache-2.0
// Sizes and bytes a request takes on each tier, before it takes them.
#pragma once

#include <cstdint>
#include <vector>

#include "hybridgen/core/token_counts.h"
#include "hybridgen/methods/method.h"
#include "kvcache/host_kv_store.h"
#include "pipeline/host_staging.h"
#include "pipeline/steering.h"

namespace hybridgen {

struct RequestPlan {
  RequestShape shape;
  std::int64_t window = 0;           ///< tokens that may stay on the device
  std::int64_t max_offloaded = 0;    ///< 0: nothing ever leaves the device
  std::int64_t prompt_capacity = 0;  ///< rows the prompt takes before a retention policy has chosen
  StagingShape staging;
  std::int64_t max_planned = 0;   ///< tokens per KV head that the device chooses, at most
  std::int64_t max_kept = 0;      ///< per query head whose values it chooses by weights, at most
  std::int64_t leaving_rows = 0;  ///< that leave a device that is not the host in one step, at most
  std::int64_t prompt_device_bytes = 0;  ///< of prompt_capacity; given back after prefill
  std::int64_t device_bytes = 0;
  /// What operations on the request's tokens take for a moment; of all requests the largest counts.
  std::int64_t momentary_device_bytes = 0;
  std::int64_t dram_bytes = 0;  ///< of host memory
  /// Those of them that may lie in any of its tiers (KvTiers); all others only in DRAM.
  std::int64_t placed_bytes = 0;
  OpenBytes open;                        ///< of them, what a disk cannot hold; where there is one
  std::int64_t largest_block_bytes = 0;  ///< of the largest tier block
};

/// `window`: tokens that stay on the device, >= 1 (kWindow only); `least`: those that stay when it
/// shrinks later on, so that the host has room for the others. `device_is_host`: what the host
/// sends is read where it wrote it, so that it takes no memory of the device.
RequestPlan plan_request(const ModelConfig& config,
                         DType dtype,
                         bool device_is_host,
                         const Method& method,
                         const AttendedTokens& attended,
                         const RequestShape& shape,
                         std::int64_t window,
                         std::int64_t least = kMaxTokens);

/// Tokens that the device's buffers hold once the prompt has been read, slack included.
std::int64_t resident_capacity(const Method& method, const RequestPlan& plan);

/// What the request's parts may depend on, but for where they lie.
PartContext part_context(const ModelConfig& config, DType dtype, const RequestPlan& plan);

/// The method's parts that a request of this plan has: not those that choose tokens where there are
/// none, or by a strategy that it never uses.
std::vector<const PartFactory*> parts_needed(const Method& method,
                                             const AttendedTokens& attended,
                                             const RequestPlan& plan);

HostKvShape host_shape(const ModelConfig& config,
                       DType dtype,
                       const Method& method,
                       const RequestPlan& plan);

/// Slots that a device which is not the host is told of after a step, for a request whose rows move
/// within its resident cache: so many bytes there and as many on the host.
std::int64_t row_move_bytes(const ModelConfig& config);

}  // namespace hybridgen
