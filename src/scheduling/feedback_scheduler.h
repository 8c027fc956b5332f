// SPDX-License-Identifier: Apache-2.0
// How many offloaded tokens take part in the attention (K) and when they are chosen (paper §4.3,
// Algorithm 1), steered by measured stage times. A pure state machine without clock and threads:
// the same samples give the same states. One object per request, dropped with it; a single K and
// strategy for all layers of a step.
//
//   H = T_cpu + T_tx    host stage of layer i+1 and its copies, summed over the samples
//   G = T_gpu           device stage of layer i without its wait for the host, summed likewise
//
//   H <= G                     K rises (equality included)
//   H > G, K > k_min           K falls, never below k_min
//   H > G, K = k_min           Post-QKT becomes Pre-QKT
//
// The algorithm leaves open how far K moves, when, over which samples, and whether anything returns
// to Post-QKT; those are our options. At their defaults nothing returns: K alone hardly relieves
// Post-QKT, whose scan reads every offloaded key, so a request whose scan does not fit belongs to
// Pre-QKT. T_gpu must not contain the wait: with it H <= G would always hold in the end, and a slow
// host would be asked for more.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hybridgen/core/scheduler_options.h"
#include "hybridgen/core/types.h"

namespace hybridgen {

/// What one decision changed. A decision that moves K and returns to Post-QKT reads kToPost.
enum class SchedulerDecision : std::uint8_t { kHold, kGrow, kShrink, kToPre, kToPost };
/// "hold", "grow", "shrink", "to_pre", "to_post"
std::string_view name_of(SchedulerDecision decision);

/// The default options cut down to one configuration of the paper's ablation (§5.4, Figures 21 and
/// 22): K fixed at k_min (128 there, too) or adaptive, selection before, after or by stage times.
/// The names extend the two that the paper's text spells out.
///
///   name             K          strategy         in the paper's text
///   fixed_pre        k_min      Pre-QKT
///   fixed_post       k_min      Post-QKT
///   fixed_adaptive   k_min      by stage times   "Fixed-K Adaptive"
///   adaptive_pre     by times   Pre-QKT
///   adaptive_post    by times   Post-QKT
///   full             by times   by stage times   "Full Scheduler"
///
/// ConfigError for an unknown name, listing all and suggesting the nearest.
SchedulerOptions scheduler_preset(std::string_view name);
std::vector<std::string> scheduler_preset_names();

/// Times of one decode step in seconds, each summed over the step's pipelined pairs (host stage of
/// layer i+1 beside device stage of layer i); layers that do not overlap are left out. Requests of
/// one batch share the stages and hence the sample.
struct StepSample {
  double host_s = 0.0;         ///< T_cpu: query on the host to payload complete
  double link_s = 0.0;         ///< T_tx: copies of query and payload
  double device_s = 0.0;       ///< T_gpu, without waiting for payloads
  std::int64_t num_pairs = 0;  ///< 0: nothing overlapped, the step is no sample
};

/// Before a step read k_for() and strategy(); after it call end_step().
class FeedbackScheduler {
 public:
  /// ConfigError if the options are invalid.
  explicit FeedbackScheduler(const SchedulerOptions& options);

  /// Takes in the step that just ended, during which `num_offloaded` (n_c) tokens were on the host.
  /// With n_c = 0 nothing changes, warm-up included. ConfigError, and no change, for negative or
  /// non-finite times, negative counts or n_c beyond 32 bits.
  void end_step(const StepSample& sample, std::int64_t num_offloaded);

  std::int64_t k() const { return k_; }  ///< tokens per query head, >= k_min
  SelectionStrategy strategy() const { return strategy_; }
  /// Tokens that can really be chosen out of `num_offloaded`: min(K, n_c).
  std::int64_t k_for(std::int64_t num_offloaded) const;

  const SchedulerOptions& options() const { return options_; }
  std::int64_t num_decisions() const { return num_decisions_; }
  SchedulerDecision last_decision() const { return last_decision_; }  ///< kHold before the first
  /// Seconds per scanned token and pair in the last sampled Post-QKT step. A request that never ran
  /// one has none, hence no estimate to return on.
  std::optional<double> scan_s_per_token() const { return scan_s_per_token_; }

  friend bool operator==(const FeedbackScheduler&, const FeedbackScheduler&) = default;

 private:
  std::int64_t k_limit(std::int64_t num_offloaded) const;
  void decide(std::int64_t num_offloaded);
  SchedulerDecision steer(std::int64_t limit);
  bool post_would_fit(std::int64_t num_offloaded) const;
  void switch_to(SelectionStrategy strategy);

  /// Samples since the last decision.
  struct Sums {
    double host_s = 0.0;
    double link_s = 0.0;
    double device_s = 0.0;
    std::int64_t num_pairs = 0;
    std::int64_t num_steps = 0;
    friend bool operator==(const Sums&, const Sums&) = default;
  };

  SchedulerOptions options_;
  std::int64_t k_;
  SelectionStrategy strategy_;
  std::int64_t warmup_left_;
  Sums sums_;
  std::optional<double> scan_s_per_token_;
  std::int64_t fits_in_a_row_ = 0;
  std::int64_t num_decisions_ = 0;
  SchedulerDecision last_decision_ = SchedulerDecision::kHold;
};

}  // namespace hybridgen
