// SPDX-License-Identifier: Apache-2.0
// How many offloaded tokens take part in a request's next step, and when they are chosen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "hybridgen/core/engine_options.h"
#include "hybridgen/methods/method.h"
#include "scheduling/feedback_scheduler.h"

namespace hybridgen {

/// How many offloaded tokens take part: fixed, or steered by stage times.
struct AttendedTokens {
  TokenCount k = TokenCount::usual();
  std::optional<SchedulerOptions> scheduler;  ///< if set, k is not used

  /// Whether a request that begins with `own` may ever choose by `strategy`.
  bool may_use(SelectionStrategy strategy, SelectionStrategy own) const {
    return strategy == (scheduler ? scheduler->initial_strategy : own) ||
           (scheduler && scheduler->adapt_strategy);
  }
  /// K at most, out of `max_offloaded` tokens.
  std::int64_t most(std::int64_t max_offloaded) const {
    if (!scheduler) {
      return k.resolve(max_offloaded);
    }
    return std::min(max_offloaded,
                    std::max(scheduler->k_min, scheduler->k_max.value_or(max_offloaded)));
  }
};

/// Of a method and the options that say how many.
inline AttendedTokens attended_tokens(const Method& method, const HybridGenOptions& options) {
  return {options.mass > 0.0 ? options.k_max : options.k, steering_of(method, options.scheduler)};
}

class Steering {
 public:
  /// `strategy`: of the method, where nothing steers it.
  Steering(const AttendedTokens& attended, SelectionStrategy strategy)
      : k_(attended.k), strategy_(strategy) {
    if (attended.scheduler) {
      scheduler_.emplace(*attended.scheduler);
    }
  }

  /// When offloaded tokens are chosen in the next step.
  SelectionStrategy strategy() const { return scheduler_ ? scheduler_->strategy() : strategy_; }
  /// K in the next step, out of `available` offloaded tokens.
  std::int64_t num_chosen(std::int64_t available) const {
    return scheduler_ ? scheduler_->k_for(available) : k_.resolve(available);
  }
  /// None where K is fixed.
  const std::optional<FeedbackScheduler>& scheduler() const { return scheduler_; }

  void end_step(const StepSample& sample, std::int64_t num_offloaded) {
    if (scheduler_) {
      scheduler_->end_step(sample, num_offloaded);
    }
  }

 private:
  TokenCount k_;
  SelectionStrategy strategy_;
  std::optional<FeedbackScheduler> scheduler_;
};

}  // namespace hybridgen
