// SPDX-License-Identifier: Apache-2.0
// Which tokens a method with a fixed budget keeps (StreamingLLM, H2O, Keyformer); the others are
// gone for good. One object per request. Per (layer, KV head) it knows the position and the score
// of the token in every slot of the retained cache; slots are in no particular order, because
// softmax does not care, and a slot's token changes only when a newer token replaces it. Calls for
// different (layer, KV head) may run concurrently.
//
// Query heads of one KV head share a set: scores are summed over them (grouped-query attention).
// Ties: the newer token is dropped first.
//
// ConfigError for a shape with a count below 1 and for arguments out of range: a layer or KV head
// that the shape lacks, a number of sums other than num_tokens, a position that is not the next,
// null weights, a stride below slots + 1. NumericError for a score that is NaN. Neither changes
// anything.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "hybridgen/kvcache/kv_part.h"

namespace hybridgen {

struct RetentionShape {
  std::int64_t num_layers = 1;
  std::int64_t num_kv_heads = 1;             ///< G
  std::int64_t query_heads_per_kv_head = 1;  ///< R
};

class RetentionPolicy : public KvPart {
 public:
  /// Tokens kept per (layer, KV head), >= 1.
  virtual std::int64_t budget() const = 0;
  /// Whether keep_after_prefill and replace read weights at all.
  virtual bool wants_weights() const = 0;

  /// Chooses among the prompt's tokens [0, num_tokens): returns min(budget, num_tokens) positions,
  /// ascending; slot s then holds the s-th of them. `sums` [num_tokens] are the scores of the
  /// prompt's rows summed over rows and over the query heads of the KV head; empty if the policy
  /// wants none (what it gets is then ignored). Forgets all that was known before. The result is
  /// valid until the next call for this (layer, KV head).
  virtual std::span<const std::int32_t> keep_after_prefill(std::int64_t layer,
                                                           std::int64_t kv_head,
                                                           std::int64_t num_tokens,
                                                           std::span<const float> sums) = 0;

  /// After a decode step that attended to all slots and to the new token at `position`: the number
  /// of tokens so far, as positions have no gaps and the prompt is empty unless told. `weights`
  /// [R, slots + 1] with row stride `stride` are the step's softmax weights, the new token last;
  /// null if the policy wants none. Returns the slot that the new token takes: the number of slots
  /// (it is added) or a used one, whose token is dropped for good.
  virtual std::int64_t replace(std::int64_t layer,
                               std::int64_t kv_head,
                               std::int64_t position,
                               const float* weights,
                               std::int64_t stride) = 0;

  /// Position of the token in each slot. Valid until the next call for this (layer, KV head).
  virtual std::span<const std::int32_t> positions(std::int64_t layer,
                                                  std::int64_t kv_head) const = 0;
};

/// StreamingLLM (Xiao et al.; mit-han-lab/streaming-llm): the first `sinks` tokens and the last
/// `window`. ConfigError if sinks < 0, window < 1 or one of them is above 2^31 - 1, the last
/// possible position.
std::unique_ptr<RetentionPolicy> make_sinks_window_retention(const RetentionShape& shape,
                                                             std::int64_t sinks,
                                                             std::int64_t window);

/// H2O (Zhang et al.; FMInference/H2O, the variant that really evicts): the last `recent` tokens
/// and of the others the `heavy` with the largest sums of softmax weights. ConfigError if heavy <
/// 0, recent < 1 or one of them is above 2^31 - 1.
std::unique_ptr<RetentionPolicy> make_heavy_hitter_retention(const RetentionShape& shape,
                                                             std::int64_t heavy,
                                                             std::int64_t recent);

/// Keyformer's noise and temperature (Adnan et al.; d-matrix-ai/keyformer-llm).
struct KeyformerScore {
  double tau_init = 1.0;
  double tau_end = 2.0;
  std::int64_t num_steps = 1;  ///< T: tau reaches tau_end at forward number T and stays there
  bool noise = true;           ///< standard Gumbel noise on the logits
  std::uint64_t seed = 0;
  std::uint64_t request = 0;  ///< the prompt's content: equal prompts get equal draws

  /// Of forward number `forward` (0: the prompt, 1: the first decode step).
  double tau(std::int64_t forward) const;
};

/// Keyformer: like H2O, to the last bit if noise is off and tau 1, with scores softmax((logit +
/// noise) / tau). ConfigError if key_tokens < 0, recent < 1, num_steps < 1, one of them is above
/// 2^31 - 1, or tau_init or tau_end is not a positive finite number.
std::unique_ptr<RetentionPolicy> make_keyformer_retention(const RetentionShape& shape,
                                                          std::int64_t key_tokens,
                                                          std::int64_t recent,
                                                          const KeyformerScore& score);

}  // namespace hybridgen
