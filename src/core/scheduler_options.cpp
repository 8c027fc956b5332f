// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/scheduler_options.h"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

// Token positions have 32 bits; with these two bounds no product below leaves 64.
constexpr std::int64_t kMaxTokens = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMaxTerm = 1'000'000;

template <typename Value>
void require(bool valid, std::string_view name, const Value& value, std::string_view allowed) {
  if (!valid)
    throw ConfigError(message("[scheduler] ", name, " is ", value, "; allowed: ", allowed));
}

std::string text(const Rational& factor) {
  return message(factor.numerator, "/", factor.denominator);
}

bool has_valid_terms(const Rational& factor) {
  return factor.numerator >= 1 && factor.numerator <= kMaxTerm && factor.denominator >= 1 &&
         factor.denominator <= kMaxTerm;
}

}  // namespace

std::string_view name_of(ReturnToPost policy) {
  switch (policy) {
    case ReturnToPost::kNever:
      return "never";
    case ReturnToPost::kEstimate:
      return "estimate";
  }
  throw std::logic_error("internal check failed: not an enumerator of ReturnToPost");
}

void SchedulerOptions::validate() const {
  require(k_min >= 1 && k_min <= kMaxTokens,
          "k_min",
          k_min,
          "1 to 2147483647; pass the fewest tokens that keep the accuracy");
  require(has_valid_terms(grow) && grow.numerator >= grow.denominator,
          "grow",
          text(grow),
          ">= 1, of whole numbers from 1 to 1000000; pass the factor by which K rises");
  require(has_valid_terms(shrink) && shrink.numerator < shrink.denominator,
          "shrink",
          text(shrink),
          "< 1, of whole numbers from 1 to 1000000; pass the factor by which K falls");
  require(k_max_ratio > 0.0 && k_max_ratio <= 1.0,
          "k_max_ratio",
          k_max_ratio,
          "above 0, up to 1; pass the largest share of the offloaded tokens");
  if (k_max) {
    require(*k_max >= k_min && *k_max <= kMaxTokens,
            "k_max",
            *k_max,
            message("k_min (", k_min, ") to 2147483647; raise it or lower k_min"));
  }
  require(interval >= 1, "interval", interval, ">= 1; pass decode steps per decision");
  require(warmup >= 0, "warmup", warmup, ">= 0; pass decode steps that are not sampled");
  require(std::isfinite(deadband) && deadband >= 0.0,
          "deadband",
          deadband,
          "finite, >= 0; pass a share of the device's time");
  require(return_margin >= 0.0 && return_margin < 1.0,
          "return_margin",
          return_margin,
          "0 to below 1; pass a share of the device's time");
  require(return_hold >= 1, "return_hold", return_hold, ">= 1; pass a number of decisions");
}

}  // namespace hybridgen
