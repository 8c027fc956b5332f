// SPDX-License-Identifier: Apache-2.0
// Options of the method hybridgen: how the host chooses among offloaded tokens, and how many. A
// composition of a user's own reads k and scheduler of them, its parts say the rest.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "hybridgen/core/scheduler_options.h"
#include "hybridgen/core/token_counts.h"
#include "hybridgen/core/types.h"

namespace hybridgen {

/// Norm before a query is guessed: the next layer's (the paper's) or the current one's (InfiniGen).
enum class GuessNorm : std::uint8_t { kNext, kCurrent };
/// What a guess is: the input under the next layer's weights, or the query of the layer before.
enum class GuessSource : std::uint8_t { kNextWeights, kPreviousQuery };

/// Which query the host scores with.
struct QueryOptions {
  QueryMode mode = QueryMode::kRescore;
  std::int64_t first_layer = 2;  ///< first layer whose query is guessed, >= 1
  GuessNorm norm = GuessNorm::kNext;
  GuessSource source = GuessSource::kNextWeights;
  friend bool operator==(const QueryOptions&, const QueryOptions&) = default;
};

/// Keys that a Post-QKT scan reads: themselves, or a copy in 8 or 4 bits.
enum class Scoring : std::uint8_t { kFull, kInt8, kInt4 };

struct HybridGenOptions {
  TokenCount k = TokenCount::usual();
  /// Of a query head's softmax over the offloaded tokens, in (0, 1): as many as have it count
  /// instead of k. 0: k does.
  double mass = 0.0;
  TokenCount k_max = TokenCount::all();  ///< with `mass`: at most so many per query head
  SelectionStrategy strategy = SelectionStrategy::kPostQkt;
  QueryOptions query;
  std::string selector = "topk";
  std::string pre_selector = "partial_keys";
  Scoring scoring = Scoring::kFull;
  double candidates_per_k = 0.0;  ///< exact logits per chosen token, >= 1; 0: 2 (int8), 4 (int4)
  std::optional<SchedulerOptions> scheduler;  ///< steers K and the strategy; k is not used then
  double column_share = 0.2;                  ///< of every key, in partial keys; in (0, 1]
  friend bool operator==(const HybridGenOptions&, const HybridGenOptions&) = default;
};

}  // namespace hybridgen
