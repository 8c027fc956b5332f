// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "hybridgen/selection/retention_policy.h"
#include "selection/scored_retention.h"

namespace hybridgen::test {

using Positions = std::vector<std::int32_t>;

inline Positions ascending(std::span<const std::int32_t> positions) {
  Positions sorted(positions.begin(), positions.end());
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

inline Positions kept(const RetentionPolicy& policy) { return ascending(policy.positions(0, 0)); }

/// The prompt, of the first layer and KV head.
inline Positions prefill(RetentionPolicy& policy, const std::vector<float>& sums) {
  const std::span<const std::int32_t> positions =
      policy.keep_after_prefill(0, 0, static_cast<std::int64_t>(sums.size()), sums);
  return {positions.begin(), positions.end()};
}

/// A decode step there with one query head.
inline std::int64_t decode(RetentionPolicy& policy,
                           std::int64_t position,
                           const std::vector<float>& weights) {
  return policy.replace(0, 0, position, weights.data(), static_cast<std::int64_t>(weights.size()));
}

inline std::span<const double> scores(const RetentionPolicy& policy,
                                      std::int64_t layer = 0,
                                      std::int64_t kv_head = 0) {
  return dynamic_cast<const ScoredRetention&>(policy).scores(layer, kv_head);
}

inline void expect_scores(const RetentionPolicy& policy, const std::vector<double>& expected) {
  const std::span<const double> found = scores(policy);
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t slot = 0; slot < expected.size(); ++slot) {
    EXPECT_NEAR(found[slot], expected[slot], 1e-6) << "slot " << slot;
  }
}

/// Runs `call`, which must throw an `Error` whose text has all of `parts`.
template <typename Error, typename Call>
void expect_error(const Call& call, std::initializer_list<const char*> parts) {
  try {
    call();
    ADD_FAILURE() << "accepted; expected: " << *parts.begin();
  } catch (const Error& error) {
    const std::string text = error.what();
    for (const char* part : parts) EXPECT_NE(text.find(part), std::string::npos) << text;
  }
}

}  // namespace hybridgen::test
