// SPDX-License-Identifier: Apache-2.0
// Keeps the most recent tokens and, of the others, those with the largest accumulated scores. What
// a decode step adds to the scores is the subclass's concept.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "selection/retention_base.h"

namespace hybridgen {

class ScoredRetention : public RetentionBase {
 public:
  bool wants_weights() const final { return true; }

  std::span<const std::int32_t> keep_after_prefill(std::int64_t layer,
                                                   std::int64_t kv_head,
                                                   std::int64_t num_tokens,
                                                   std::span<const float> sums) final;

  std::int64_t replace(std::int64_t layer,
                       std::int64_t kv_head,
                       std::int64_t position,
                       const float* weights,
                       std::int64_t stride) final;

  /// Accumulated score of the token in each slot.
  std::span<const double> scores(std::int64_t layer, std::int64_t kv_head) const;

 protected:
  struct Step {
    std::int64_t layer;
    std::int64_t query_head;                  ///< among all of the layer
    std::int64_t forward;                     ///< 1: the first after the prompt
    std::int64_t position;                    ///< of the new token
    std::span<const std::int32_t> positions;  ///< of the tokens in the slots
    std::span<const float> weights;           ///< [slots + 1], the new token last
  };

  ScoredRetention(std::string_view name,
                  const RetentionShape& shape,
                  std::int64_t heavy,
                  std::int64_t recent);

  static void add_to(std::span<double> scores, std::span<const float> more);

  /// Adds one query head's scores to `scores` [slots + 1]; `scratch` has that size, too.
  virtual void add_scores(const Step& step,
                          std::span<double> scores,
                          std::span<float> scratch) const = 0;

 private:
  std::int64_t heavy_;
  std::int64_t recent_;
  // Accumulated, by set and slot; in float64: a small weight must still count after many steps.
  std::vector<std::vector<double>> scores_;
};

}  // namespace hybridgen
