// SPDX-License-Identifier: Apache-2.0
// Keeps the most recent tokens and, of the others, those with the largest accumulated scores. What
// a decode step adds to the scores, its weights or something made of them, is for subclasses to
// say.
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
    std::int64_t kv_head;
    std::int64_t forward;                     ///< 1: the first after the prompt
    std::int64_t position;                    ///< of the new token
    std::span<const std::int32_t> positions;  ///< of the tokens in the slots
    const float* weights;                     ///< [R, slots + 1], the new token last
    std::int64_t stride;                      ///< of `weights`
    std::span<float> scales;                  ///< [R], all 1; of the result's rows
  };

  /// [R, slots + 1]: what the step adds to the scores, one row per query head, to be multiplied by
  /// the row's scale. Valid until the next call of the same thread.
  struct StepScores {
    const float* rows;
    std::int64_t stride;
  };

  ScoredRetention(std::string_view name,
                  const RetentionShape& shape,
                  std::int64_t heavy,
                  std::int64_t recent);

  /// The weights themselves, unless overridden.
  virtual StepScores score(const Step& step) const { return {step.weights, step.stride}; }

 private:
  std::int64_t heavy_;
  std::int64_t recent_;
  // Accumulated, by set and slot; in float64: a small weight must still count after many steps.
  std::vector<std::vector<double>> scores_;
};

}  // namespace hybridgen
