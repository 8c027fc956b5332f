// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"

namespace hybridgen {
namespace {

std::vector<std::int32_t> plan(const TokenSelector& selector,
                               std::int64_t num_offloaded,
                               std::int64_t k) {
  std::vector<std::int32_t> scratch;
  const auto positions =
      selector.plan({.num_offloaded = num_offloaded, .k = k, .queries = {}}, scratch);
  return {positions.begin(), positions.end()};
}

std::vector<std::int32_t> plan(std::int64_t sinks, std::int64_t num_offloaded, std::int64_t k) {
  return plan(*make_sinks_recent_selector(sinks), num_offloaded, k);
}

TEST(SinksRecentSelector, KeepsTheFirstTokensAndTheMostRecentOnes) {
  EXPECT_EQ(plan(4, 10, 7), (std::vector<std::int32_t>{0, 1, 2, 3, 7, 8, 9}));
}

TEST(SinksRecentSelector, WithFewerThanTheSinksKeepsTheFirst) {
  EXPECT_EQ(plan(4, 10, 3), (std::vector<std::int32_t>{0, 1, 2}));
}

TEST(SinksRecentSelector, WithoutSinksKeepsOnlyRecentTokens) {
  EXPECT_EQ(plan(0, 10, 3), (std::vector<std::int32_t>{7, 8, 9}));
}

TEST(SinksRecentSelector, MoreSinksThanTokensKeepsAll) {
  EXPECT_EQ(plan(100, 3, 3), (std::vector<std::int32_t>{0, 1, 2}));
}

TEST(SinksRecentSelector, HasFourSinksUnlessTold) {
  EXPECT_EQ(plan(*make_selector("sinks_recent", {}), 10, 5),
            (std::vector<std::int32_t>{0, 1, 2, 3, 9}));
}

TEST(SinksRecentSelector, RejectsANegativeNumberOfSinks) {
  EXPECT_THROW(make_sinks_recent_selector(-1), ConfigError);
}

}  // namespace
}  // namespace hybridgen
