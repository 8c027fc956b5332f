// SPDX-License-Identifier: Apache-2.0
// Which offloaded tokens take part in a step (paper §4.5). One instance per request: selectors may
// keep state, and it dies with the request. Positions are in [0, n_c), ascending and unique.
// Ranking ties break by score descending, then position ascending.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hybridgen/core/types.h"

namespace hybridgen {

class TokenSelector {
 public:
  virtual ~TokenSelector() = default;
  virtual std::string_view name() const = 0;

  /// kPostQkt: select() is called with the logits of all offloaded tokens. kPreQkt: plan() is
  /// called before any logits exist.
  virtual SelectionStrategy strategy() const = 0;

  /// Pre-QKT. Writes min(k, num_offloaded) positions to `positions` (size min(k, num_offloaded)),
  /// shared by all heads of the layer. Called once per (step, layer), before select-like work
  /// starts.
  virtual void plan(std::int64_t layer,
                    std::int64_t num_offloaded,
                    std::span<std::int32_t> positions);

  /// Post-QKT. `logits` [n_c] of one query head; writes min(k, n_c) = positions.size() positions
  /// and their logits. Called concurrently for different heads; `scratch` is the calling worker's
  /// own.
  virtual void select(std::int64_t layer,
                      std::int64_t query_head,
                      std::span<const float> logits,
                      std::span<std::int32_t> positions,
                      std::span<float> values,
                      std::vector<float>& scratch) const;
};

/// Exact top-k of this step's logits: "topk" (Post-QKT; the default).
std::unique_ptr<TokenSelector> make_top_k_selector();

/// First `sinks` offloaded tokens and the most recent offloaded ones: "sinks_recent" (Pre-QKT).
/// With k < sinks the first k. ConfigError if sinks < 0.
std::unique_ptr<TokenSelector> make_sinks_recent_selector(std::int64_t sinks = 4);

/// By registry name. ConfigError for an unknown name, listing all and suggesting the nearest.
std::unique_ptr<TokenSelector> make_selector(std::string_view name);
std::vector<std::string> selector_names(SelectionStrategy strategy);

/// The entry of `candidates` with the smallest edit distance to `name` if that is at most
/// max(2, name.size() / 3), else "".
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace hybridgen
