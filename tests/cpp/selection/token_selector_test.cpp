// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/selection/token_selector.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "kvcache/host_kv_store.h"

namespace hybridgen {
namespace {

std::vector<std::string> all_names() {
  std::vector<std::string> names = selector_names(SelectionStrategy::kPostQkt);
  const std::vector<std::string> pre = selector_names(SelectionStrategy::kPreQkt);
  names.insert(names.end(), pre.begin(), pre.end());
  return names;
}

TEST(SelectorRegistry, KnowsBothStrategies) {
  EXPECT_EQ(selector_names(SelectionStrategy::kPostQkt),
            (std::vector<std::string>{"topk", "h2o", "keyformer"}));
  EXPECT_EQ(selector_names(SelectionStrategy::kPreQkt),
            (std::vector<std::string>{"sinks_recent", "block_digests"}));
}

TEST(SelectorRegistry, UnknownNameListsAllAndSuggestsTheNearest) {
  try {
    static_cast<void>(make_selector("top_k", {}));
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
    static_cast<void>(make_selector("completely different", {}));
    FAIL() << "made an unknown selector";
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()).find("did you mean"), std::string::npos) << error.what();
  }
}

TEST(SelectorRegistry, TellsTheStrategyWithoutMakingASelector) {
  EXPECT_EQ(strategy_of_selector("topk"), SelectionStrategy::kPostQkt);
  EXPECT_EQ(strategy_of_selector("sinks_recent"), SelectionStrategy::kPreQkt);
  EXPECT_THROW(strategy_of_selector("top_k"), ConfigError);
}

/// What every selector guarantees, whatever it prefers.
class AnySelector : public testing::TestWithParam<std::string> {
 protected:
  static constexpr SelectorShape kShape{.num_layers = 1,
                                        .num_kv_heads = 1,
                                        .query_heads_per_kv_head = 1,
                                        .head_dim = 2,
                                        .max_offloaded = 64};

  /// A selector that has seen `num_offloaded` tokens leave.
  static std::unique_ptr<TokenSelector> after_offload(std::int64_t num_offloaded) {
    std::unique_ptr<TokenSelector> selector = make_selector(GetParam(), kShape);
    HostKvStore store({.num_layers = 1, .num_kv_heads = 1, .head_dim = 2, .capacity = 64});
    store.grow(store.shape().capacity);
    std::vector<float> rows(128);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>((i * 29) % 13) - 6;
    const KvRowsView view{rows.data(), 0, 2};
    if (num_offloaded > 0) {
      store.write(0, {0, num_offloaded}, view, view);
      selector->on_offload(0, 0, {0, num_offloaded}, store.keys(0, 0));
    }
    return selector;
  }

  static std::vector<std::int32_t> choose(const TokenSelector& selector,
                                          const std::vector<float>& logits,
                                          std::size_t k) {
    if (selector.strategy() == SelectionStrategy::kPreQkt) {
      const std::vector<float> queries = {1.0F, -1.0F};
      std::vector<std::int32_t> scratch;
      const auto planned = selector.plan({.num_offloaded = static_cast<std::int64_t>(logits.size()),
                                          .k = static_cast<std::int64_t>(k),
                                          .queries = queries},
                                         scratch);
      return {planned.begin(), planned.end()};
    }
    std::vector<std::int32_t> positions(k, -1);
    std::vector<float> values(k);
    std::vector<float> scratch;
    selector.select(0, 0, logits, positions, values, scratch);
    for (std::size_t i = 0; i < k; ++i) {
      EXPECT_EQ(values[i], logits[static_cast<std::size_t>(positions[i])]);
    }
    return positions;
  }
};

TEST_P(AnySelector, HasTheNameAndStrategyItIsRegisteredWith) {
  const auto selector = make_selector(GetParam(), kShape);
  EXPECT_EQ(selector->name(), GetParam());
  EXPECT_EQ(selector->strategy(), strategy_of_selector(GetParam()));
}

TEST_P(AnySelector, ChoosesAscendingUniquePositionsInsideTheRange) {
  const auto selector = after_offload(57);
  std::vector<float> logits(57);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>((i * 37) % 11);
  for (std::size_t k = 1; k <= logits.size(); ++k) {
    const std::vector<std::int32_t> positions = choose(*selector, logits, k);
    ASSERT_EQ(positions.size(), k);
    ASSERT_GE(positions.front(), 0);
    ASSERT_LT(positions.back(), 57);
    ASSERT_EQ(std::adjacent_find(positions.begin(), positions.end(), std::greater_equal<>()),
              positions.end());
  }
}

TEST_P(AnySelector, WithKEqualToTheOffloadedTokensChoosesAll) {
  const std::vector<float> logits = {3, 1, 2, 1};
  EXPECT_EQ(choose(*after_offload(4), logits, 4), (std::vector<std::int32_t>{0, 1, 2, 3}));
}

TEST_P(AnySelector, WithNothingOffloadedChoosesNothing) {
  EXPECT_TRUE(choose(*after_offload(0), {}, 0).empty());
}

TEST_P(AnySelector, RefusesToChooseMoreThanThereAre) {
  const auto selector = after_offload(2);
  EXPECT_THROW(choose(*selector, {1, 2}, 3), ConfigError);
}

TEST_P(AnySelector, RefusesTheCallOfTheOtherStrategy) {
  const auto selector = after_offload(1);
  std::vector<std::int32_t> positions(1);
  std::vector<float> values(1);
  std::vector<float> scratch;
  const std::vector<float> logits = {1};
  if (selector->strategy() == SelectionStrategy::kPreQkt) {
    EXPECT_THROW(selector->select(0, 0, logits, positions, values, scratch), std::logic_error);
  } else {
    EXPECT_THROW(selector->plan({.num_offloaded = 1, .k = 1, .queries = {}}, positions),
                 std::logic_error);
  }
}

/// The pipeline may tell a selector of events it did not ask for.
TEST_P(AnySelector, AcceptsEveryHook) {
  const auto selector = after_offload(2);
  const std::vector<float> weights = {0.25F, 0.25F, 0.5F};
  EXPECT_NO_THROW(selector->on_prefill(
      0,
      0,
      {.tokens = {0, 3}, .num_queries = 1, .num_rows = 1, .sums = weights.data(), .stride = 3}));
  EXPECT_NO_THROW(selector->on_decode(
      0, 0, {.num_queries = 1, .resident = {2, 5}, .weights = weights.data(), .stride = 3}));
}

INSTANTIATE_TEST_SUITE_P(Registered,
                         AnySelector,
                         testing::ValuesIn(all_names()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace hybridgen
