// SPDX-License-Identifier: Apache-2.0
#include "kvcache/eviction_engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

TokenMapper mapper_with(std::int64_t num_tokens, std::int64_t num_offloaded) {
  TokenMapper mapper;
  mapper.append(num_tokens);
  mapper.offload({0, num_offloaded});
  return mapper;
}

TEST(EvictionEngine, AfterItsPlanTheWindowHoldsAndNoTokenLeftEarly) {
  for (const std::int64_t window : {1, 2, 5, 100}) {
    const EvictionEngine engine(window);
    for (std::int64_t offloaded = 0; offloaded <= 12; offloaded += 3) {
      for (std::int64_t incoming = 0; incoming <= 8; ++incoming) {
        TokenMapper mapper = mapper_with(12, offloaded);
        const std::int64_t before = mapper.num_resident();
        mapper.offload(engine.plan(mapper, incoming).tokens);  // always applicable
        const std::int64_t expected =
            std::min(before, std::max<std::int64_t>(0, window - incoming));
        EXPECT_EQ(mapper.num_resident(), expected)
            << "window " << window << ", incoming " << incoming;
      }
    }
  }
}

TEST(EvictionEngine, TheOldestResidentTokensLeaveFirst) {
  EXPECT_EQ(EvictionEngine(4).plan(mapper_with(10, 3), 1).tokens, (TokenRange{3, 7}));
}

TEST(EvictionEngine, NothingLeavesWhileTheWindowHasRoom) {
  EXPECT_TRUE(EvictionEngine(8).plan(mapper_with(7, 0), 1).tokens.empty());
}

TEST(EvictionEngine, AWindowOfZeroKeepsTheNewestToken) {
  EXPECT_EQ(EvictionEngine(0).window(), 1);
  EXPECT_EQ(EvictionEngine(0).plan(mapper_with(5, 0), 0),
            EvictionEngine(1).plan(mapper_with(5, 0), 0));
  EXPECT_EQ(EvictionEngine(0).plan(mapper_with(5, 0), 0).tokens, (TokenRange{0, 4}));
}

TEST(EvictionEngine, MoreIncomingTokensThanTheWindowPushAllOut) {
  EXPECT_EQ(EvictionEngine(4).plan(mapper_with(6, 2), 1000).tokens, (TokenRange{2, 6}));
}

TEST(EvictionEngine, RejectsNegativeNumbers) {
  EXPECT_THROW(EvictionEngine(-1), ConfigError);
  EXPECT_THROW(EvictionEngine(4).plan(TokenMapper(), -1), ConfigError);
}

TEST(EvictionEngine, TokensLeaveInWholeBlocksAsFarAsThereAreEnough) {
  const EvictionEngine eviction(8, 4);
  TokenMapper tokens;
  tokens.append(8);
  EXPECT_EQ(eviction.plan(tokens, 0).tokens, (TokenRange{0, 0}));
  EXPECT_EQ(eviction.plan(tokens, 1).tokens, (TokenRange{0, 4}));
  EXPECT_EQ(eviction.plan(tokens, 5).tokens, (TokenRange{0, 8}));
  EXPECT_EQ(eviction.plan(tokens, 100).tokens, (TokenRange{0, 8}));
  EXPECT_THROW(EvictionEngine(8, 0), ConfigError);
}

}  // namespace
}  // namespace hybridgen
