// SPDX-License-Identifier: Apache-2.0
// Options of the feedback scheduler (paper §4.3, Algorithm 1); see scheduling/feedback_scheduler.h
// for what they steer.
#pragma once

#include <cstdint>
#include <optional>

#include "hybridgen/core/types.h"

namespace hybridgen {

/// An exact factor; products with token counts are rounded as integers, never as floating point.
struct Rational {
  std::int64_t numerator = 1;
  std::int64_t denominator = 1;
  friend bool operator==(const Rational&, const Rational&) = default;
};

/// Whether a request in Pre-QKT may return to Post-QKT. Never: as in Algorithm 1. Estimate: when
/// the scan Post-QKT would need is predicted to fit behind the device stage.
enum class ReturnToPost : std::uint8_t { kNever, kEstimate };

/// Algorithm 1 fixes k_min, the start in Post-QKT and the two tests; the rest are our options.
struct SchedulerOptions {
  std::int64_t k_min = 128;  ///< tokens, >= 1: first and smallest K; 128 is the paper's for OPT-13B
  Rational grow{6, 5};       ///< K <- max(K + 1, ceil(grow * K)), >= 1
  Rational shrink{4, 5};     ///< K <- floor(shrink * K), in (0, 1)
  double k_max_ratio = 1.0;  ///< K <= this share of the offloaded tokens, in (0, 1]; k_min wins
  std::optional<std::int64_t> k_max;  ///< tokens, >= k_min; none: no such limit
  std::int64_t interval = 4;          ///< sampled decode steps per decision, >= 1
  std::int64_t warmup = 1;            ///< steps unsampled after prefill and after each switch, >= 0
  double deadband = 0.0;              ///< nothing changes while G < H <= (1 + deadband) * G, >= 0
  bool adapt_k = true;                ///< false: K stays k_min
  bool adapt_strategy = true;         ///< false: the initial strategy stays
  SelectionStrategy initial_strategy = SelectionStrategy::kPostQkt;
  ReturnToPost return_to_post = ReturnToPost::kNever;
  double return_margin = 0.1;    ///< share of T_gpu the predicted host stage must leave, in [0, 1)
  std::int64_t return_hold = 3;  ///< decisions in a row with that prediction, >= 1

  /// Throws ConfigError naming the first bad value.
  void validate() const;
  friend bool operator==(const SchedulerOptions&, const SchedulerOptions&) = default;
};

}  // namespace hybridgen
