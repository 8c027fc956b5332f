// SPDX-License-Identifier: Apache-2.0
#include "scheduling/feedback_scheduler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/names.h"
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

std::int64_t floor_times(const Rational& factor, std::int64_t count) {
  return factor.numerator * count / factor.denominator;
}

std::int64_t ceil_times(const Rational& factor, std::int64_t count) {
  return (factor.numerator * count + factor.denominator - 1) / factor.denominator;
}

SchedulerOptions validated(SchedulerOptions options) {
  options.validate();
  return options;
}

void check_seconds(std::string_view name, double seconds) {
  require(std::isfinite(seconds) && seconds >= 0.0, name, seconds, "finite, >= 0; pass seconds");
}

struct Preset {
  std::string_view name;
  bool adapt_k;
  bool adapt_strategy;
  SelectionStrategy initial_strategy;
};

constexpr std::array<Preset, 6> kPresets = {{
    {"fixed_pre", false, false, SelectionStrategy::kPreQkt},
    {"fixed_post", false, false, SelectionStrategy::kPostQkt},
    {"fixed_adaptive", false, true, SelectionStrategy::kPostQkt},
    {"adaptive_pre", true, false, SelectionStrategy::kPreQkt},
    {"adaptive_post", true, false, SelectionStrategy::kPostQkt},
    {"full", true, true, SelectionStrategy::kPostQkt},
}};

}  // namespace

std::string_view name_of(SchedulerDecision decision) {
  switch (decision) {
    case SchedulerDecision::kHold:
      return "hold";
    case SchedulerDecision::kGrow:
      return "grow";
    case SchedulerDecision::kShrink:
      return "shrink";
    case SchedulerDecision::kToPre:
      return "to_pre";
    case SchedulerDecision::kToPost:
      return "to_post";
  }
  throw std::logic_error("internal check failed: not an enumerator of SchedulerDecision");
}

SchedulerOptions scheduler_preset(std::string_view name) {
  std::string listed;
  for (const Preset& preset : kPresets) {
    if (preset.name == name) {
      SchedulerOptions options;
      options.adapt_k = preset.adapt_k;
      options.adapt_strategy = preset.adapt_strategy;
      options.initial_strategy = preset.initial_strategy;
      return options;
    }
    listed += message(listed.empty() ? "" : ", ", '"', preset.name, '"');
  }
  const std::string nearest = nearest_name(name, scheduler_preset_names());
  throw ConfigError(message(
      "[scheduler] preset is \"",
      name,
      "\"; allowed: ",
      listed,
      nearest.empty() ? "; use one of these" : message("; did you mean \"", nearest, "\"?")));
}

std::vector<std::string> scheduler_preset_names() {
  std::vector<std::string> names;
  names.reserve(kPresets.size());
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

FeedbackScheduler::FeedbackScheduler(const SchedulerOptions& options)
    : options_(validated(options)),
      k_(options.k_min),
      strategy_(options.initial_strategy),
      warmup_left_(options.warmup) {}

std::int64_t FeedbackScheduler::k_for(std::int64_t num_offloaded) const {
  return std::min(k_, num_offloaded);
}

void FeedbackScheduler::end_step(const StepSample& sample, std::int64_t num_offloaded) {
  check_seconds("host_s", sample.host_s);
  check_seconds("link_s", sample.link_s);
  check_seconds("device_s", sample.device_s);
  require(sample.num_pairs >= 0, "num_pairs", sample.num_pairs, ">= 0; pass a count of layers");
  require(num_offloaded >= 0 && num_offloaded <= kMaxTokens,
          "num_offloaded",
          num_offloaded,
          "0 to 2147483647; pass a count of tokens");

  if (num_offloaded == 0) return;
  k_ = std::min(k_, k_limit(num_offloaded));
  if (sample.num_pairs == 0) return;
  if (warmup_left_ > 0) {
    --warmup_left_;
    return;
  }

  sums_.host_s += sample.host_s;
  sums_.link_s += sample.link_s;
  sums_.device_s += sample.device_s;
  sums_.num_pairs += sample.num_pairs;
  ++sums_.num_steps;
  if (strategy_ == SelectionStrategy::kPostQkt) {
    scan_s_per_token_ =
        sample.host_s / static_cast<double>(sample.num_pairs) / static_cast<double>(num_offloaded);
  }
  if (sums_.num_steps == options_.interval) decide(num_offloaded);
}

std::int64_t FeedbackScheduler::k_limit(std::int64_t num_offloaded) const {
  const double share = std::floor(options_.k_max_ratio * static_cast<double>(num_offloaded));
  const std::int64_t limit = std::max(options_.k_min, static_cast<std::int64_t>(share));
  return options_.k_max ? std::min(limit, *options_.k_max) : limit;
}

void FeedbackScheduler::decide(std::int64_t num_offloaded) {
  const bool sampled_in_pre = strategy_ == SelectionStrategy::kPreQkt;
  last_decision_ = steer(k_limit(num_offloaded));
  if (sampled_in_pre && options_.adapt_strategy &&
      options_.return_to_post == ReturnToPost::kEstimate) {
    fits_in_a_row_ = post_would_fit(num_offloaded) ? fits_in_a_row_ + 1 : 0;
    if (fits_in_a_row_ >= options_.return_hold) {
      switch_to(SelectionStrategy::kPostQkt);
      last_decision_ = SchedulerDecision::kToPost;
    }
  }
  sums_ = {};
  ++num_decisions_;
}

// Algorithm 1, lines 8 to 16.
SchedulerDecision FeedbackScheduler::steer(std::int64_t limit) {
  const double host_s = sums_.host_s + sums_.link_s;
  if (host_s <= sums_.device_s) {
    if (!options_.adapt_k || k_ >= limit) return SchedulerDecision::kHold;
    k_ = std::min(limit, std::max(k_ + 1, ceil_times(options_.grow, k_)));
    return SchedulerDecision::kGrow;
  }
  if (host_s <= (1.0 + options_.deadband) * sums_.device_s) return SchedulerDecision::kHold;
  if (options_.adapt_k && k_ > options_.k_min) {
    k_ = std::max(options_.k_min, floor_times(options_.shrink, k_));
    return SchedulerDecision::kShrink;
  }
  if (!options_.adapt_strategy || strategy_ == SelectionStrategy::kPreQkt) {
    return SchedulerDecision::kHold;
  }
  switch_to(SelectionStrategy::kPreQkt);
  return SchedulerDecision::kToPre;
}

// Per pair: the scan of all offloaded keys at the last known rate, and today's copies.
bool FeedbackScheduler::post_would_fit(std::int64_t num_offloaded) const {
  if (!scan_s_per_token_) return false;
  const auto num_pairs = static_cast<double>(sums_.num_pairs);
  const double host_s =
      *scan_s_per_token_ * static_cast<double>(num_offloaded) + sums_.link_s / num_pairs;
  return host_s <= (1.0 - options_.return_margin) * (sums_.device_s / num_pairs);
}

void FeedbackScheduler::switch_to(SelectionStrategy strategy) {
  strategy_ = strategy;
  warmup_left_ = options_.warmup;
  fits_in_a_row_ = 0;
}

}  // namespace hybridgen
