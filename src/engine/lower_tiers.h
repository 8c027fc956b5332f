// SPDX-License-Identifier: Apache-2.0
// The tiers below DRAM that an engine has, of those that the machine has and its user wants.
#pragma once

#include <cstdint>
#include <vector>

#include "hybridgen/core/engine_options.h"
#include "hybridgen/methods/method.h"
#include "kvcache/kv_tiers.h"
#include "memory/host_tiers.h"

namespace hybridgen {

struct LowerTiers {
  std::vector<int> dram_nodes{};
  std::vector<int> cxl_nodes{};  ///< none: there is no such tier
  std::int64_t dram_bytes = 0;   ///< that this process can still take there
  std::int64_t cxl_bytes = 0;
  /// Pages that nobody places could come to lie in neither: on a device's node, or one left out.
  bool has_other_memory = false;

  /// For KvTiers. Where all memory is DRAM nothing is said, so that nobody asks about nodes.
  TierPlaces places() const;
};

/// What a machine with these tiers has for these options, or what they invent of it for a test.
/// ConfigError for a tier or a node that is not there or cannot serve.
LowerTiers lower_tiers(const EngineOptions& options, const HostTiers& found);

/// ConfigError for a placement that `options` name and that has nothing to work with, and for a
/// disk that the method has no use for.
void check_lower_tiers(const EngineOptions& options, const Method& method, const LowerTiers& tiers);

/// ConfigError if running windows shall shrink and the method has none that can.
void check_shrinking(const EngineOptions& options, const Method& method);

}  // namespace hybridgen
