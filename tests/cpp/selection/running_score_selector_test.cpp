// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"
#include "selection/selectors.h"

namespace hybridgen {
namespace {

using Positions = std::vector<std::int32_t>;

constexpr SelectorShape kOneHead{.num_layers = 1,
                                 .num_kv_heads = 1,
                                 .query_heads_per_kv_head = 1,
                                 .head_dim = 1,
                                 .max_offloaded = 16};

/// Positions that `query_head` chooses if this step's logits are all different.
Positions choose(const TokenSelector& selector,
                 std::size_t num_offloaded,
                 std::size_t k,
                 std::int64_t query_head = 0,
                 std::int64_t layer = 0) {
  std::vector<float> logits(num_offloaded);
  std::iota(logits.rbegin(), logits.rend(), -3.0F);
  Positions positions(k);
  std::vector<float> values(k);
  std::vector<float> scratch;
  selector.select(layer, query_head, logits, positions, values, scratch);
  for (std::size_t i = 0; i < k; ++i) {
    EXPECT_EQ(values[i], logits[static_cast<std::size_t>(positions[i])]);
  }
  return positions;
}

/// Offloaded positions from the largest score to the smallest.
Positions ranking(const TokenSelector& selector, std::size_t num_offloaded) {
  Positions ranks;
  Positions before;
  for (std::size_t k = 1; k <= num_offloaded; ++k) {
    const Positions now = choose(selector, num_offloaded, k);
    std::set_difference(
        now.begin(), now.end(), before.begin(), before.end(), std::back_inserter(ranks));
    before = now;
  }
  return ranks;
}

/// A prompt chunk whose columns add up to `sums`, from position `begin` on.
void prefill(TokenSelector& selector, const std::vector<float>& sums, std::int64_t begin = 0) {
  const auto count = static_cast<std::int64_t>(sums.size());
  selector.on_prefill(0,
                      0,
                      {.tokens = {begin, begin + count},
                       .num_queries = 1,
                       .num_rows = count,
                       .sums = sums.data(),
                       .stride = count});
}

/// A decode step of one query head: weights of the chosen tokens, then of the resident ones.
void decode(TokenSelector& selector,
            const Positions& chosen,
            TokenRange resident,
            const std::vector<float>& weights) {
  ASSERT_EQ(weights.size(), chosen.size() + static_cast<std::size_t>(resident.size()));
  selector.on_decode(0,
                     0,
                     {.num_queries = 1,
                      .num_chosen = static_cast<std::int64_t>(chosen.size()),
                      .positions = chosen.data(),
                      .resident = resident,
                      .weights = weights.data(),
                      .stride = static_cast<std::int64_t>(weights.size())});
}

TEST(H2oSelector, RanksByColumnSumsOfThePromptAndThenByDecodeWeights) {
  const auto selector = make_h2o_selector(kOneHead);
  // Rows (1), (.5, .5), (.2, .5, .3) of a prompt of three tokens.
  prefill(*selector, {1.7F, 1.0F, 0.3F});
  EXPECT_EQ(ranking(*selector, 2), (Positions{0, 1}));
  decode(*selector, {0}, {2, 4}, {0.1F, 0.6F, 0.3F});        // 1.8, 1.0, 0.9, 0.3
  EXPECT_EQ(ranking(*selector, 3), (Positions{0, 1, 2}));    // 1 was not chosen: it stays at 1.0
  decode(*selector, {0}, {2, 5}, {0.1F, 0.2F, 0.1F, 0.6F});  // 1.9, 1.0, 1.1, 0.4, 0.6
  EXPECT_EQ(ranking(*selector, 5), (Positions{0, 2, 1, 4, 3}));
}

TEST(H2oSelector, ChunksOfAPromptAddUpByPosition) {
  const auto selector = make_h2o_selector(kOneHead);
  prefill(*selector, {1.2F, 0.8F});
  prefill(*selector, {0.3F, 0.8F});     // the second chunk's rows on the tokens offloaded by then
  prefill(*selector, {0.4F, 0.5F}, 2);  // and on its own
  EXPECT_EQ(ranking(*selector, 4), (Positions{1, 0, 3, 2}));  // 1.5, 1.6, 0.4, 0.5
}

TEST(H2oSelector, IgnoresHowLargeThisStepsLogitsAre) {
  const auto selector = make_h2o_selector(kOneHead);
  prefill(*selector, {0.1F, 0.2F, 0.7F});
  EXPECT_EQ(choose(*selector, 3, 1), Positions{2});  // whose logit is the smallest
}

TEST(H2oSelector, TiesBreakByPosition) {
  const auto selector = make_h2o_selector(kOneHead);
  prefill(*selector, {0.5F, 1.0F, 1.0F, 0.5F, 1.0F});
  EXPECT_EQ(ranking(*selector, 5), (Positions{1, 2, 4, 0, 3}));
}

TEST(H2oSelector, TokensWithoutAnyWeightRankLastInOrder) {
  const auto selector = make_h2o_selector(kOneHead);
  EXPECT_EQ(choose(*selector, 5, 2), (Positions{0, 1}));
  prefill(*selector, {0.0F, 1.0F});
  EXPECT_EQ(choose(*selector, 5, 1), Positions{1});
  EXPECT_EQ(choose(*selector, 5, 3), (Positions{0, 1, 2}));
}

TEST(H2oSelector, AStepMergedOnTheHostCountsItsResidentWeightsOnly) {
  const auto selector = make_h2o_selector(kOneHead);
  const std::vector<float> weights = {0.2F, 0.8F};
  selector->on_decode(0,
                      0,
                      {.num_queries = 1,
                       .num_chosen = 2,
                       .resident = {2, 4},
                       .weights = weights.data(),
                       .stride = 2});
  EXPECT_EQ(ranking(*selector, 4), (Positions{3, 2, 0, 1}));
}

TEST(H2oSelector, AKvHeadAddsUpItsQueryHeadsAndStaysApartFromOthers) {
  SelectorShape shape = kOneHead;
  shape.num_layers = 2;
  shape.num_kv_heads = 2;
  shape.query_heads_per_kv_head = 2;
  const auto selector = make_h2o_selector(shape);
  // Query head 0 attended 0 and 1, query head 1 attended 1 and 2; 3 is resident.
  const Positions positions = {0, 1, 1, 2};
  const std::vector<float> weights = {0.4F, 0.3F, 0.3F, /**/ 0.3F, 0.5F, 0.2F};
  selector->on_decode(1,
                      1,
                      {.num_queries = 2,
                       .num_chosen = 2,
                       .positions = positions.data(),
                       .positions_stride = 2,
                       .resident = {3, 4},
                       .weights = weights.data(),
                       .stride = 3});
  // 0.4, 0.6, 0.5: the sum decides for both query heads of KV head 1.
  EXPECT_EQ(choose(*selector, 3, 1, 2, 1), Positions{1});
  EXPECT_EQ(choose(*selector, 3, 2, 3, 1), (Positions{1, 2}));
  EXPECT_EQ(choose(*selector, 3, 1, 1, 1), Positions{0});  // KV head 0 has no scores yet
  EXPECT_EQ(choose(*selector, 3, 1, 2, 0), Positions{0});  // nor has layer 0
}

TEST(H2oSelector, OneRowOfPositionsMayServeAllQueryHeads) {
  SelectorShape shape = kOneHead;
  shape.query_heads_per_kv_head = 2;
  const auto selector = make_h2o_selector(shape);
  const Positions positions = {1, 2};
  const std::vector<float> weights = {0.1F, 0.2F, 0.7F, /**/ 0.3F, 0.4F, 0.3F};
  selector->on_decode(0,
                      0,
                      {.num_queries = 2,
                       .num_chosen = 2,
                       .positions = positions.data(),
                       .positions_stride = 0,
                       .resident = {3, 4},
                       .weights = weights.data(),
                       .stride = 3});
  EXPECT_EQ(ranking(*selector, 4), (Positions{3, 2, 1, 0}));  // 1.0, 0.6, 0.4, 0
}

TEST(H2oSelector, NanAmongTheScoresOrTheChosenLogitsIsANumericError) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const bool in_weights : {true, false}) {
    const auto selector = make_h2o_selector(kOneHead);
    prefill(*selector, {1.0F, in_weights ? nan : 2.0F});
    const std::vector<float> logits = {1.0F, in_weights ? 1.0F : nan};
    Positions positions(1);
    std::vector<float> values(1);
    std::vector<float> scratch;
    try {
      selector->select(0, 0, logits, positions, values, scratch);
      ADD_FAILURE() << "accepted NaN";
    } catch (const NumericError& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find("layer 0"), std::string::npos) << text;
      EXPECT_NE(text.find("query head 0"), std::string::npos) << text;
    }
  }
}

TEST(H2oSelector, RejectsHeadsAndLayersOutsideItsShape) {
  const auto selector = make_h2o_selector(kOneHead);
  EXPECT_THROW(choose(*selector, 2, 1, 1, 0), ConfigError);
  EXPECT_THROW(choose(*selector, 2, 1, 0, 1), ConfigError);
  EXPECT_THROW(selector->on_decode(0, -1, {.resident = {0, 0}}), ConfigError);
  EXPECT_THROW(selector->on_prefill(1, 0, {.tokens = {0, 0}}), ConfigError);
  SelectorShape empty = kOneHead;
  empty.query_heads_per_kv_head = 0;
  EXPECT_THROW(make_h2o_selector(empty), ConfigError);
}

/// Random steps with `expected` weights computed by a naive model.
template <typename Temper>
void expect_as_the_naive_model(TokenSelector& selector, const Temper& temper) {
  std::mt19937 random(11);
  std::map<std::int32_t, double> scores;
  std::int64_t num_tokens = 40;
  std::vector<float> sums(40);
  for (std::size_t j = 0; j < sums.size(); ++j) {
    sums[j] = static_cast<float>(random() % 1000) / 1000.0F;
    scores[static_cast<std::int32_t>(j)] = sums[j];
  }
  prefill(selector, sums);
  for (int step = 1; step <= 30; ++step) {
    const std::int64_t num_offloaded = num_tokens - 8;
    const Positions chosen = choose(selector, static_cast<std::size_t>(num_offloaded), 10);
    Positions expected(static_cast<std::size_t>(num_offloaded));
    std::iota(expected.begin(), expected.end(), 0);
    std::stable_sort(expected.begin(), expected.end(), [&](std::int32_t a, std::int32_t b) {
      return scores[a] > scores[b];
    });
    expected.resize(10);
    std::sort(expected.begin(), expected.end());
    ASSERT_EQ(chosen, expected) << "step " << step;

    Positions attended = chosen;
    for (std::int64_t t = num_offloaded; t <= num_tokens; ++t) {
      attended.push_back(static_cast<std::int32_t>(t));
    }
    std::vector<double> weights(attended.size());
    for (double& weight : weights) weight = 1.0 + static_cast<double>(random() % 1000);
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (double& weight : weights) weight /= sum;
    decode(selector,
           chosen,
           {num_offloaded, num_tokens + 1},
           std::vector<float>(weights.begin(), weights.end()));
    temper(step, weights);
    for (std::size_t j = 0; j < attended.size(); ++j) scores[attended[j]] += weights[j];
    ++num_tokens;
  }
}

TEST(H2oSelector, EqualsANaiveModelOverManySteps) {
  expect_as_the_naive_model(*make_h2o_selector(kOneHead), [](int, std::vector<double>&) {});
}

TEST(KeyformerSelector, EqualsANaiveModelOverManySteps) {
  // Twenty steps to temperature 2, then ten at it.
  expect_as_the_naive_model(*make_keyformer_selector(kOneHead, 20),
                            [](int step, std::vector<double>& weights) {
                              const double temperature = 1.0 + std::min(step, 20) / 20.0;
                              double sum = 0.0;
                              for (double& w : weights) sum += std::exp(std::log(w) / temperature);
                              for (double& w : weights) {
                                w = std::exp(std::log(w) / temperature) / sum;
                              }
                            });
}

TEST(KeyformerSelector, AtTemperatureTwoWeightsAreTheRootsMadeToSumToOne) {
  const auto selector = make_keyformer_selector(kOneHead, 1);
  // Weights (1, 2, 4) / 7 become (1, sqrt 2, 2) / (3 + sqrt 2): probe each from both sides.
  constexpr float kSlack = 1e-4F;
  const std::vector<float> tempered = {0.22654F, 0.32038F, 0.45308F};
  std::vector<float> sums = {0.0F, 0.0F, 0.0F};
  for (const float weight : tempered) {
    sums.push_back(weight - kSlack);
    sums.push_back(weight + kSlack);
  }
  prefill(*selector, sums);  // the prompt is not tempered
  decode(*selector, {0, 1, 2}, {9, 10}, {1.0F / 7, 2.0F / 7, 4.0F / 7, 0.0F});
  EXPECT_EQ(ranking(*selector, 9), (Positions{8, 2, 7, 6, 1, 5, 4, 0, 3}));
}

TEST(KeyformerSelector, WithoutTemperingRanksAsH2o) {
  // So many steps that the temperature stays 1 for all that matters.
  expect_as_the_naive_model(*make_keyformer_selector(kOneHead, std::int64_t{1} << 40),
                            [](int, std::vector<double>&) {});
}

TEST(KeyformerSelector, TheLayersOfOneStepShareItsTemperature) {
  SelectorShape shape = kOneHead;
  shape.num_layers = 2;
  const auto selector = make_keyformer_selector(shape, 2);
  const std::vector<float> weights = {0.01F, 0.5F, 0.49F};
  const Positions chosen = {0, 1};
  const DecodeAttention attention{.num_queries = 1,
                                  .num_chosen = 2,
                                  .positions = chosen.data(),
                                  .resident = {3, 4},
                                  .weights = weights.data(),
                                  .stride = 3};
  // At 1.5 a weight of 0.01 becomes about 0.035; at 2, which step 2 has, about 0.066.
  const std::vector<float> probe = {0.0F, 0.0F, 0.05F};
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    selector->on_prefill(
        layer,
        0,
        {.tokens = {0, 3}, .num_queries = 1, .num_rows = 1, .sums = probe.data(), .stride = 3});
  }
  selector->on_decode(0, 0, attention);
  selector->on_decode(1, 0, attention);
  EXPECT_EQ(choose(*selector, 3, 2, 0, 0), (Positions{1, 2}));
  EXPECT_EQ(choose(*selector, 3, 2, 0, 1), (Positions{1, 2}));
}

TEST(KeyformerSelector, RejectsAScheduleWithoutSteps) {
  EXPECT_THROW(make_keyformer_selector(kOneHead, 0), ConfigError);
}

}  // namespace
}  // namespace hybridgen
