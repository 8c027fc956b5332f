// SPDX-License-Identifier: Apache-2.0
// The parts that methods choose from, by what they are told; each stands in a file of its own.
#pragma once

#include <cstdint>

#include "hybridgen/core/kv_views.h"
#include "hybridgen/core/token_counts.h"
#include "hybridgen/parts/part_factory.h"

namespace hybridgen {

/// Which columns of every key stay on the device, and how many tokens they fetch.
struct PartialKeyOptions {
  double column_share = 0.2;                      ///< r: columns of every key that are kept
  double alpha = 4.0;                             ///< tokens within alpha of the best guess count
  TokenCount max_fetch = TokenCount::share(0.2);  ///< of the offloaded tokens, at most
};

/// Role kPlanner: partial_keys.h.
PartFactory partial_keys_part(const PartialKeyOptions& settings);

/// Fifo: the oldest token. Lru: of the older half the one fetched longest ago. Counter: of the
/// older half the one fetched least often. Ties: the oldest.
enum class PoolPolicy : std::uint8_t { kFifo, kLru, kCounter };

/// A limit on tokens in host memory.
struct PoolLimit {
  double capacity = 1.0;  ///< share of a request's tokens (prompt and new), >= its prompt
  PoolPolicy policy = PoolPolicy::kCounter;
};

/// Role kHostPlacement: host_pool.h.
PartFactory host_pool_part(const PoolLimit& limit);

/// Role kKeyProxy, shadow_scoring.cpp: a selector's scan reads a low-precision copy of the keys,
/// and the best `candidates_per_k` * K of a query head then get exact logits. For selectors that
/// choose the largest of the logits they are given.
PartFactory shadow_scoring_part(ShadowPrecision precision, double candidates_per_k);

/// Role kKeptValues, sparse_values.cpp, for FetchKeys: per query head the new token and
/// int(share (n - 1)) others contribute; resident ones are taken before offloaded ones of the same
/// weight.
PartFactory sparse_values_part(double share);

/// Role kPromptScores, by plain softmax weights: prompt_scores.h.
PartFactory prompt_scores_part();
/// Role kPromptScores, by Keyformer's noisy ones, which depend on the prompt's content:
/// gumbel_scores.h.
PartFactory gumbel_scores_part(const KeyformerScore& score);

}  // namespace hybridgen
