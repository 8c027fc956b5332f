// SPDX-License-Identifier: Apache-2.0
#include "core/philox.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>

namespace hybridgen {
namespace {

using Counter = std::array<std::uint32_t, 4>;

// Known answers published with Random123 (Salmon et al., SC 2011).
TEST(Philox, AgreesWithThePublishedKnownAnswers) {
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}),
            (Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox4x32_10({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      (Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxUniform, IsADistinctNumberBelowOneForEverySeedAndIndex) {
  EXPECT_NE(philox_uniform(0, 0), philox_uniform(0, 1));
  EXPECT_NE(philox_uniform(0, 0), philox_uniform(1, 0));
  EXPECT_NE(philox_uniform(0, 0), philox_uniform(std::uint64_t{1} << 32, 0));
  EXPECT_NE(philox_uniform(0, 0), philox_uniform(0, std::uint64_t{1} << 32));
  for (std::uint64_t i = 0; i < 1000; ++i) {
    EXPECT_GE(philox_uniform(5, i), 0.0);
    EXPECT_LT(philox_uniform(5, i), 1.0);
  }
}

}  // namespace
}  // namespace hybridgen
