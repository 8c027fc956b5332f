// SPDX-License-Identifier: Apache-2.0
#include "kvcache/token_mapper.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

TEST(TokenMapper, EveryTokenIsOnExactlyOneSideAndOffloadedOnesComeFirst) {
  std::mt19937 random(1);
  TokenMapper mapper;
  for (int step = 0; step < 50; ++step) {
    mapper.append(static_cast<std::int64_t>(random() % 7));
    const auto leaving = static_cast<std::int64_t>(random()) % (mapper.num_resident() + 1);
    mapper.offload({mapper.num_offloaded(), mapper.num_offloaded() + leaving});
    for (std::int64_t t = 0; t < mapper.num_tokens(); ++t) {
      ASSERT_NE(mapper.offloaded().contains(t), mapper.resident().contains(t));
    }
    ASSERT_EQ(mapper.offloaded().begin, 0);
    ASSERT_EQ(mapper.offloaded().end, mapper.resident().begin);
    ASSERT_EQ(mapper.resident().end, mapper.num_tokens());
    ASSERT_EQ(mapper.num_offloaded() + mapper.num_resident(), mapper.num_tokens());
  }
  EXPECT_GT(mapper.num_offloaded(), 0);
}

TEST(TokenMapper, NewTokensAreResident) {
  TokenMapper mapper;
  mapper.append(5);
  EXPECT_EQ(mapper.resident(), (TokenRange{0, 5}));
  EXPECT_TRUE(mapper.offloaded().empty());
}

TEST(TokenMapper, OffloadingInTwoStepsEqualsOffloadingInOne) {
  TokenMapper twice;
  TokenMapper once;
  twice.append(10);
  once.append(10);
  twice.offload({0, 3});
  twice.offload({3, 8});
  once.offload({0, 8});
  EXPECT_EQ(twice, once);
}

TEST(TokenMapper, OffloadingNothingChangesNothing) {
  TokenMapper mapper;
  mapper.append(4);
  mapper.offload({0, 2});
  const TokenMapper before = mapper;
  mapper.offload({2, 2});
  EXPECT_EQ(mapper, before);
}

TEST(TokenMapper, RefusedChangesLeaveItAsItWas) {
  TokenMapper mapper;
  mapper.append(10);
  mapper.offload({0, 4});
  const TokenMapper before = mapper;
  EXPECT_THROW(mapper.offload({0, 6}), ConfigError);   // already there
  EXPECT_THROW(mapper.offload({5, 6}), ConfigError);   // leaves a gap
  EXPECT_THROW(mapper.offload({4, 11}), ConfigError);  // not generated yet
  EXPECT_THROW(mapper.offload({4, 3}), ConfigError);   // backwards
  EXPECT_THROW(mapper.append(-1), ConfigError);
  EXPECT_EQ(mapper, before);
}

TEST(TokenMapper, DroppedTokensAreOnNoSideAndStillCountAsGenerated) {
  TokenMapper tokens;
  tokens.append(10);
  tokens.drop(4);
  tokens.offload({0, 5});
  EXPECT_EQ(tokens.num_tokens(), 10);
  EXPECT_EQ(tokens.num_offloaded(), 5);
  EXPECT_EQ(tokens.num_dropped(), 4);
  EXPECT_EQ(tokens.num_resident(), 1);
  const TokenMapper before = tokens;
  EXPECT_THROW(tokens.drop(2), ConfigError);
  EXPECT_THROW(tokens.drop(-1), ConfigError);
  EXPECT_THROW(tokens.offload({5, 7}), ConfigError);
  EXPECT_EQ(tokens, before);
}

}  // namespace
}  // namespace hybridgen
