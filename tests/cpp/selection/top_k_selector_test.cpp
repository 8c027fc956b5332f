// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"

namespace hybridgen {
namespace {

struct Selection {
  std::vector<std::int32_t> positions;
  std::vector<float> values;
};

Selection select(const std::vector<float>& logits, std::size_t k) {
  Selection selection{std::vector<std::int32_t>(k), std::vector<float>(k)};
  std::vector<float> scratch;
  make_top_k_selector({.num_layers = 4, .num_kv_heads = 6})
      ->select(3, 5, logits, selection.positions, selection.values, scratch);
  return selection;
}

TEST(TopKSelector, EqualsSortingByScoreThenPosition) {
  std::mt19937 random(7);
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::vector<float> logits(1 + random() % 300);
    // Few distinct values, so that ties are common.
    for (float& logit : logits) logit = static_cast<float>(static_cast<int>(random() % 9) - 4);
    const std::size_t k = 1 + random() % logits.size();
    std::vector<std::int32_t> expected(logits.size());
    std::iota(expected.begin(), expected.end(), 0);
    std::stable_sort(expected.begin(), expected.end(), [&](std::int32_t a, std::int32_t b) {
      return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
    });
    expected.resize(k);
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(select(logits, k).positions, expected);
  }
}

TEST(TopKSelector, GivesEachPositionItsLogit) {
  const std::vector<float> logits = {0.5F, -1.0F, 2.0F, 1.0F};
  const Selection selection = select(logits, 2);
  EXPECT_EQ(selection.positions, (std::vector<std::int32_t>{2, 3}));
  EXPECT_EQ(selection.values, (std::vector<float>{2.0F, 1.0F}));
}

TEST(TopKSelector, NanIsANumericErrorThatNamesLayerAndHead) {
  for (const std::size_t place : {0U, 1U, 3U}) {
    std::vector<float> logits = {1, 2, 3, 4};
    logits[place] = std::numeric_limits<float>::quiet_NaN();
    try {
      select(logits, 2);
      ADD_FAILURE() << "accepted NaN at " << place;
    } catch (const NumericError& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find("layer 3"), std::string::npos) << text;
      EXPECT_NE(text.find("head 5"), std::string::npos) << text;
    }
  }
}

}  // namespace
}  // namespace hybridgen
