// SPDX-License-Identifier: Apache-2.0
// Least-recently-generated eviction (paper §4.2.3): the oldest resident positions leave first. Pure
// decisions; the pipeline carries them out at the step boundary.
#pragma once

#include <cstdint>

#include "hybridgen/core/types.h"
#include "kvcache/token_mapper.h"

namespace hybridgen {

struct EvictionPlan {
  TokenRange tokens;  ///< positions that move from the device to the host; empty: none
  friend bool operator==(const EvictionPlan&, const EvictionPlan&) = default;
};

class EvictionEngine {
 public:
  /// `window`: tokens that may stay on the device, >= 1. The newest token is always resident, so a
  /// window of 0 is treated as 1. `block`: tokens leave in multiples of it, as far as there are
  /// enough. ConfigError if window is negative or block < 1.
  explicit EvictionEngine(std::int64_t window, std::int64_t block = 1);
  std::int64_t window() const { return window_; }

  /// What must leave so that after `incoming` more tokens at most `window` are resident. Never asks
  /// for tokens that are not there yet: with incoming > window everything resident leaves.
  EvictionPlan plan(const TokenMapper& tokens, std::int64_t incoming) const;

 private:
  std::int64_t window_;
  std::int64_t block_;
};

}  // namespace hybridgen
