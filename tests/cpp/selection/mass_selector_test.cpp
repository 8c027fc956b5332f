// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"

namespace hybridgen {
namespace {

const std::vector<float> kWeights = {0.0625F, 0.5F, 0.125F, 0.25F, 0.0625F};

std::int64_t how_many(double mass, std::int64_t most = 5) {
  std::vector<float> scratch;
  return make_mass_selector({}, mass)->how_many(kWeights, most, scratch);
}

TEST(MassSelector, SaysTheFewestTokensThatHaveTheMass) {
  EXPECT_TRUE(make_mass_selector({}, 0.5)->says_how_many());
  EXPECT_EQ(how_many(0.1), 1);
  EXPECT_EQ(how_many(0.49), 1);
  EXPECT_EQ(how_many(0.51), 2);
  EXPECT_EQ(how_many(0.74), 2);
  EXPECT_EQ(how_many(0.76), 3);
  EXPECT_EQ(how_many(0.9), 4);
  EXPECT_EQ(how_many(0.95), 5);
  EXPECT_EQ(how_many(0.95, 3), 3);
}

TEST(MassSelector, TakesTheLargest) {
  std::vector<std::int32_t> positions(3);
  std::vector<float> values(3);
  std::vector<float> scratch;
  make_mass_selector({}, 0.8)->select(0, 0, kWeights, positions, values, scratch);
  EXPECT_EQ(positions, (std::vector<std::int32_t>{1, 2, 3}));
  EXPECT_EQ(values, (std::vector<float>{kWeights[1], kWeights[2], kWeights[3]}));
}

TEST(MassSelector, OtherSelectorsTakeWhatTheyAreAskedFor) {
  std::vector<float> scratch;
  const auto top_k = make_top_k_selector({});
  EXPECT_FALSE(top_k->says_how_many());
  EXPECT_EQ(top_k->how_many(kWeights, 4, scratch), 4);
}

TEST(MassSelector, RefusesAShareThatIsNone) {
  for (const double mass : {0.0, 1.0, -0.1, 1.5, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THROW(make_mass_selector({}, mass), ConfigError) << mass;
  }
}

}  // namespace
}  // namespace hybridgen
