// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <memory>
#include <numeric>

#include "hybridgen/core/error.h"
#include "retention_test_support.h"

namespace hybridgen::test {
namespace {

std::unique_ptr<RetentionPolicy> make(std::int64_t heavy, std::int64_t recent) {
  return make_heavy_hitter_retention({}, heavy, recent);
}

TEST(HeavyHitterRetention, KeepsTheTokensWithTheLargestSumsAndTheRecentOnes) {
  const auto policy = make(1, 1);
  EXPECT_EQ(policy->budget(), 2);
  EXPECT_TRUE(policy->wants_weights());
  // Rows (1), (.5, .5), (.2, .5, .3) of the prompt.
  const std::vector<float> sums = {1.7F, 1.0F, 0.3F};
  EXPECT_EQ(prefill(*policy, sums), (Positions{0, 2}));
  expect_scores(*policy, {1.7, 0.3});
  EXPECT_EQ(decode(*policy, 3, {0.1F, 0.6F, 0.3F}), 1);
  EXPECT_EQ(kept(*policy), (Positions{0, 3}));
  expect_scores(*policy, {1.8, 0.3});
  // Token 3 goes although it had most of this step's attention: the sum counts.
  EXPECT_EQ(decode(*policy, 4, {0.05F, 0.9F, 0.05F}), 1);
  EXPECT_EQ(kept(*policy), (Positions{0, 4}));
  expect_scores(*policy, {1.85, 0.05});
}

TEST(HeavyHitterRetention, TheMassOfAllRowsIsInTheSumsOrWasDropped) {
  const auto policy = make(1, 1);
  prefill(*policy, {1.7F, 1.0F, 0.3F});
  double dropped = 1.0;  // token 1
  dropped += 0.3 + 0.6;  // token 2 after the next row
  decode(*policy, 3, {0.1F, 0.6F, 0.3F});
  dropped += 0.3 + 0.9;  // token 3 after the one that follows
  decode(*policy, 4, {0.05F, 0.9F, 0.05F});
  const std::span<const double> left = scores(*policy);
  EXPECT_NEAR(std::accumulate(left.begin(), left.end(), dropped), 5.0, 1e-6);
}

TEST(HeavyHitterRetention, AGeneratedTokenCanBecomeAHeavyHitter) {
  const auto policy = make(1, 2);
  prefill(*policy, {2.0F, 1.0F, 0.5F, 0.5F});  // keeps 0, 2, 3
  decode(*policy, 4, {0.0F, 0.0F, 0.0F, 1.0F});
  EXPECT_EQ(kept(*policy), (Positions{0, 3, 4}));
  // Token 4 lies in slot 1; with score 3 it outdoes token 0 once it is no longer recent.
  decode(*policy, 5, {0.0F, 1.0F, 0.0F, 0.0F});
  EXPECT_EQ(kept(*policy), (Positions{0, 4, 5}));
  decode(*policy, 6, {0.0F, 1.0F, 0.0F, 0.0F});
  EXPECT_EQ(kept(*policy), (Positions{4, 5, 6}));
  decode(*policy, 7, {0.0F, 0.0F, 0.0F, 1.0F});
  EXPECT_EQ(kept(*policy), (Positions{4, 6, 7}));
}

TEST(HeavyHitterRetention, OfEqualSumsTheNewerTokenIsDropped) {
  const auto policy = make(2, 1);
  EXPECT_EQ(prefill(*policy, {0.5F, 1.0F, 0.5F, 0.5F, 0.125F}), (Positions{0, 1, 4}));
  decode(*policy, 5, {0.0F, 0.0F, 0.375F, 0.0F});  // token 4 reaches 0.5, too
  EXPECT_EQ(kept(*policy), (Positions{0, 1, 5}));

  const auto equal = make(2, 1);
  prefill(*equal, {0.0F, 0.0F, 0.0F});
  for (std::int64_t position = 3; position < 9; ++position) {
    decode(*equal, position, {0.0F, 0.0F, 0.0F, 0.0F});
    EXPECT_EQ(kept(*equal), (Positions{0, 1, static_cast<std::int32_t>(position)}));
  }
}

TEST(HeavyHitterRetention, TheNewestTokensAreKeptHoweverLittleTheyScore) {
  const auto policy = make(1, 3);
  EXPECT_EQ(prefill(*policy, {1, 2, 1, 0, 0, 0}), (Positions{1, 3, 4, 5}));
  decode(*policy, 6, {0, 0, 0, 0, 0});
  EXPECT_EQ(kept(*policy), (Positions{1, 4, 5, 6}));
}

TEST(HeavyHitterRetention, WithoutHeavyTokensIsAWindow) {
  const auto policy = make(0, 2);
  EXPECT_EQ(prefill(*policy, {9, 9, 1, 0}), (Positions{2, 3}));
  decode(*policy, 4, {1, 0, 0});
  EXPECT_EQ(kept(*policy), (Positions{3, 4}));
}

TEST(HeavyHitterRetention, AddsTheQueryHeadsOfAKvHead) {
  const auto policy = make_heavy_hitter_retention({.query_heads_per_kv_head = 2}, 1, 1);
  prefill(*policy, {1.0F, 1.0F});
  const float unread = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> weights = {0.5F, 0.25F, 0.25F, unread, 0.125F, 0.625F, 0.25F, unread};
  EXPECT_EQ(policy->replace(0, 0, 2, weights.data(), 4), 0);
  EXPECT_EQ(kept(*policy), (Positions{1, 2}));
  expect_scores(*policy, {0.5, 1.875});
}

TEST(HeavyHitterRetention, ASmallWeightCountsAfterManySteps) {
  const auto policy = make(1, 1);
  prefill(*policy, {1e7F, 0.0F});
  for (std::int64_t position = 2; position < 102; ++position) {
    decode(*policy, position, {0.01F, 0.5F, 0.49F});
  }
  EXPECT_NEAR(scores(*policy)[0], 1e7 + 1.0, 1e-5);
}

TEST(HeavyHitterRetention, RejectsCountsOutOfRange) {
  constexpr const char* kName = "[heavy hitter retention]";
  expect_error<ConfigError>([] { make(-1, 3); }, {kName, "heavy is -1", "allowed: 0 to ", "pass"});
  expect_error<ConfigError>([] { make(4, 0); }, {kName, "recent is 0", "allowed: 1 to "});
  expect_error<ConfigError>([] { make(std::int64_t{1} << 31, 1); }, {kName, "2147483648"});
  expect_error<ConfigError>([] { make(1, std::int64_t{1} << 62); }, {kName, "to 2147483647"});
}

}  // namespace
}  // namespace hybridgen::test
