// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/selection/token_selector.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

std::vector<std::string> all_names() {
  std::vector<std::string> names = selector_names(SelectionStrategy::kPostQkt);
  const std::vector<std::string> pre = selector_names(SelectionStrategy::kPreQkt);
  names.insert(names.end(), pre.begin(), pre.end());
  return names;
}

TEST(SelectorRegistry, KnowsBothStrategies) {
  EXPECT_EQ(selector_names(SelectionStrategy::kPostQkt), std::vector<std::string>{"topk"});
  EXPECT_EQ(selector_names(SelectionStrategy::kPreQkt), std::vector<std::string>{"sinks_recent"});
}

TEST(SelectorRegistry, UnknownNameListsAllAndSuggestsTheNearest) {
  try {
    static_cast<void>(make_selector("top_k"));
    FAIL() << "made an unknown selector";
  } catch (const ConfigError& error) {
    const std::string text = error.what();
    for (const std::string& name : all_names()) {
      EXPECT_NE(text.find('"' + name + '"'), std::string::npos) << text;
    }
    EXPECT_NE(text.find("did you mean \"topk\""), std::string::npos) << text;
  }
}

TEST(SelectorRegistry, NameFarFromAllGetsNoSuggestion) {
  try {
    static_cast<void>(make_selector("completely different"));
    FAIL() << "made an unknown selector";
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()).find("did you mean"), std::string::npos) << error.what();
  }
}

TEST(NearestName, AcceptsTwoEditsOrAThirdOfTheName) {
  const std::vector<std::string> names = {"hybridgen", "full"};
  EXPECT_EQ(nearest_name("hybridgen", names), "hybridgen");
  EXPECT_EQ(nearest_name("hybrdgn", names), "hybridgen");    // two edits
  EXPECT_EQ(nearest_name("hybridxyz", names), "hybridgen");  // three edits, nine letters
  EXPECT_EQ(nearest_name("ful", names), "full");
  EXPECT_EQ(nearest_name("fxyz", names), "");  // three edits, four letters
  EXPECT_EQ(nearest_name("full", {}), "");
}

TEST(NearestName, TheFirstOfEquallyNearOnesWins) {
  EXPECT_EQ(nearest_name("bat", {"cat", "hat"}), "cat");
}

/// What every selector guarantees, whatever it prefers.
class AnySelector : public testing::TestWithParam<std::string> {
 protected:
  static std::vector<std::int32_t> choose(TokenSelector& selector,
                                          const std::vector<float>& logits,
                                          std::size_t k) {
    std::vector<std::int32_t> positions(k, -1);
    if (selector.strategy() == SelectionStrategy::kPreQkt) {
      selector.plan(0, static_cast<std::int64_t>(logits.size()), positions);
    } else {
      std::vector<float> values(k);
      std::vector<float> scratch;
      selector.select(0, 0, logits, positions, values, scratch);
    }
    return positions;
  }
};

TEST_P(AnySelector, ChoosesAscendingUniquePositionsInsideTheRange) {
  const auto selector = make_selector(GetParam());
  EXPECT_EQ(selector->name(), GetParam());
  std::vector<float> logits(57);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>((i * 37) % 11);
  for (std::size_t k = 1; k <= logits.size(); ++k) {
    const std::vector<std::int32_t> positions = choose(*selector, logits, k);
    ASSERT_GE(positions.front(), 0);
    ASSERT_LT(positions.back(), 57);
    ASSERT_EQ(std::adjacent_find(positions.begin(), positions.end(), std::greater_equal<>()),
              positions.end());
  }
}

TEST_P(AnySelector, WithKEqualToTheOffloadedTokensChoosesAll) {
  const auto selector = make_selector(GetParam());
  const std::vector<float> logits = {3, 1, 2, 1};
  EXPECT_EQ(choose(*selector, logits, 4), (std::vector<std::int32_t>{0, 1, 2, 3}));
}

TEST_P(AnySelector, WithNothingOffloadedChoosesNothing) {
  const auto selector = make_selector(GetParam());
  EXPECT_NO_THROW(choose(*selector, {}, 0));
}

TEST_P(AnySelector, RefusesToChooseMoreThanThereAre) {
  const auto selector = make_selector(GetParam());
  EXPECT_THROW(choose(*selector, {1, 2}, 3), ConfigError);
}

TEST_P(AnySelector, RefusesTheCallOfTheOtherStrategy) {
  const auto selector = make_selector(GetParam());
  std::vector<std::int32_t> positions(1);
  std::vector<float> values(1);
  std::vector<float> scratch;
  const std::vector<float> logits = {1};
  if (selector->strategy() == SelectionStrategy::kPreQkt) {
    EXPECT_THROW(selector->select(0, 0, logits, positions, values, scratch), std::logic_error);
  } else {
    EXPECT_THROW(selector->plan(0, 1, positions), std::logic_error);
  }
}

INSTANTIATE_TEST_SUITE_P(Registered,
                         AnySelector,
                         testing::ValuesIn(all_names()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace hybridgen
