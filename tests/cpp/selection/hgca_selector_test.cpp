// SPDX-License-Identifier: Apache-2.0
#include "selection/hgca_selector.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "hybridgen/core/error.h"
#include "kvcache/host_kv_store.h"

namespace hybridgen {
namespace {

using Positions = std::vector<std::int32_t>;
using Rows = std::vector<std::vector<float>>;  // one row per query head

SelectorShape shape_of(std::int64_t num_kv_heads,
                       std::int64_t query_heads_per_kv_head = 1,
                       std::int64_t num_layers = 1) {
  return {.num_layers = num_layers,
          .num_kv_heads = num_kv_heads,
          .query_heads_per_kv_head = query_heads_per_kv_head,
          .head_dim = 1,
          .max_offloaded = 1000};
}

std::vector<float> flat(const Rows& rows) {
  std::vector<float> all;
  for (const std::vector<float>& row : rows) all.insert(all.end(), row.begin(), row.end());
  return all;
}

/// One decode step of a KV head: weights of the resident tokens from `begin` on, per query head.
void decode(TokenSelector& selector, std::int64_t kv_head, std::int64_t begin, const Rows& rows) {
  const std::vector<float> weights = flat(rows);
  const auto count = static_cast<std::int64_t>(rows.front().size());
  selector.on_decode(0,
                     kv_head,
                     {.num_queries = static_cast<std::int64_t>(rows.size()),
                      .resident = {begin, begin + count},
                      .weights = weights.data(),
                      .stride = count});
}

void prefill(TokenSelector& selector,
             std::int64_t kv_head,
             bool is_offloaded,
             std::int64_t begin,
             std::int64_t num_rows,
             const Rows& sums) {
  const std::vector<float> all = flat(sums);
  const auto count = static_cast<std::int64_t>(sums.front().size());
  selector.on_prefill(0,
                      kv_head,
                      {.tokens = {begin, begin + count},
                       .is_offloaded = is_offloaded,
                       .num_queries = static_cast<std::int64_t>(sums.size()),
                       .num_rows = num_rows,
                       .sums = all.data(),
                       .stride = count});
}

void offload(TokenSelector& selector, std::int64_t num_kv_heads, TokenRange tokens) {
  for (std::int64_t g = 0; g < num_kv_heads; ++g) selector.on_offload(0, g, tokens, {});
}

Positions plan(const TokenSelector& selector, std::int64_t kv_head = 0, std::int64_t k = 1) {
  std::vector<std::int32_t> scratch;
  const auto positions =
      selector.plan({.kv_head = kv_head, .num_offloaded = 1000, .k = k, .queries = {}}, scratch);
  return {positions.begin(), positions.end()};
}

TEST(HgcaSelector, AsksForLocalWeights) {
  const auto selector = make_hgca_selector(shape_of(1), {});
  EXPECT_EQ(selector->name(), "hgca");
  EXPECT_EQ(selector->strategy(), SelectionStrategy::kPreQkt);
  EXPECT_EQ(selector->prefill_weights(), PrefillWeights::kLocal);
  EXPECT_TRUE(selector->wants_decode_weights());
}

TEST(HgcaSelector, AGroupKeepsAsManyAsItsNeediestHeadAndEachHeadItsOwn) {
  const HgcaOptions options{.beta = 1.0, .keep_min = 0, .groups = 1};
  const auto selector = make_hgca_selector(shape_of(2), options);
  // Eight resident tokens, so salient from 1/8 on; the first four leave.
  decode(*selector, 0, 0, {{0.30F, 0.05F, 0.125F, 0.01F, 0.1F, 0.1F, 0.1F, 0.215F}});
  decode(*selector, 1, 0, {{0.02F, 0.20F, 0.01F, 0.01F, 0.2F, 0.2F, 0.2F, 0.16F}});
  offload(*selector, 2, {0, 4});
  EXPECT_EQ(plan(*selector, 0), (Positions{0, 2}));
  EXPECT_EQ(plan(*selector, 1), (Positions{0, 1}));  // one salient token, and the next best
}

TEST(HgcaSelector, GroupsCountApart) {
  const HgcaOptions options{.beta = 1.0, .keep_min = 0, .groups = 2};
  const auto selector = make_hgca_selector(shape_of(2), options);
  decode(*selector, 0, 0, {{0.30F, 0.05F, 0.125F, 0.01F, 0.1F, 0.1F, 0.1F, 0.215F}});
  decode(*selector, 1, 0, {{0.02F, 0.20F, 0.01F, 0.01F, 0.2F, 0.2F, 0.2F, 0.16F}});
  offload(*selector, 2, {0, 4});
  EXPECT_EQ(plan(*selector, 0), (Positions{0, 2}));
  EXPECT_EQ(plan(*selector, 1), (Positions{1}));
}

TEST(HgcaSelector, NeighbouringHeadsFormAGroupAndMoreGroupsThanHeadsAreOneEach) {
  // Of four leaving tokens head g finds the first g + 1 salient.
  const auto counts = [](std::int64_t num_kv_heads, std::int64_t groups) {
    const auto selector =
        make_hgca_selector(shape_of(num_kv_heads), {.beta = 1.0, .keep_min = 0, .groups = groups});
    std::vector<std::size_t> sizes;
    for (std::int64_t g = 0; g < num_kv_heads; ++g) {
      std::vector<float> weights(4, 0.0F);
      std::fill_n(weights.begin(), g + 1, 0.5F);
      decode(*selector, g, 0, {weights});
    }
    offload(*selector, num_kv_heads, {0, 4});
    for (std::int64_t g = 0; g < num_kv_heads; ++g) sizes.push_back(plan(*selector, g).size());
    return sizes;
  };
  EXPECT_EQ(counts(4, 1), (std::vector<std::size_t>{4, 4, 4, 4}));
  EXPECT_EQ(counts(4, 2), (std::vector<std::size_t>{2, 2, 4, 4}));
  EXPECT_EQ(counts(3, 2), (std::vector<std::size_t>{2, 2, 3}));
  EXPECT_EQ(counts(3, 8), (std::vector<std::size_t>{1, 2, 3}));
}

/// Is a token with this history of weights, among `n` resident ones, kept at threshold beta / n?
bool is_kept(double alpha, double beta, std::int64_t n, const std::vector<float>& history) {
  const auto selector =
      make_hgca_selector(shape_of(1), {.alpha = alpha, .beta = beta, .keep_min = 0, .groups = 1});
  for (const float weight : history) {
    std::vector<float> weights(static_cast<std::size_t>(n), 0.0F);
    weights[0] = weight;
    decode(*selector, 0, 0, {weights});
  }
  offload(*selector, 1, {0, 1});
  return !plan(*selector).empty();
}

TEST(HgcaSelector, WeightsAreAveragedOverStepsWithTheNewestCountingAlpha) {
  EXPECT_TRUE(is_kept(0.5, 2 * 0.1499, 2, {0.2F, 0.1F}));  // .15
  EXPECT_FALSE(is_kept(0.5, 2 * 0.1501, 2, {0.2F, 0.1F}));
  EXPECT_TRUE(is_kept(0.9, 2 * 0.1099, 2, {0.2F, 0.1F}));  // .11
  EXPECT_FALSE(is_kept(0.9, 2 * 0.1101, 2, {0.2F, 0.1F}));
}

TEST(HgcaSelector, ANewTokenStartsWithItsWeight) {
  EXPECT_TRUE(is_kept(0.5, 2 * 0.1999, 2, {0.2F}));
  EXPECT_FALSE(is_kept(0.5, 2 * 0.2001, 2, {0.2F}));
}

TEST(HgcaSelector, TheThresholdSharesBetaAmongLeavingAndRemainingTokens) {
  EXPECT_TRUE(is_kept(1.0, 1.0, 10, {0.1001F}));
  EXPECT_FALSE(is_kept(1.0, 1.0, 9, {0.1001F}));
}

TEST(HgcaSelector, AveragesFollowTheirTokensWhenOlderOnesLeave) {
  const HgcaOptions options{.alpha = 0.5, .beta = 1.0, .keep_min = 0, .groups = 1};
  const auto selector = make_hgca_selector(shape_of(1, 2), options);
  decode(*selector, 0, 0, {{0.1F, 0.2F, 0.7F}, {0.0F, 0.0F, 0.0F}});
  offload(*selector, 1, {0, 1});  // 0.1 < 1/3
  // Token 1 had 0.2 and token 2 had 0.7; 3 is new.
  decode(*selector, 0, 1, {{0.3F, 0.1F, 0.2F}, {0.0F, 0.0F, 0.0F}});
  offload(*selector, 1, {1, 4});  // 0.25, 0.4, 0.2 against 1/3
  EXPECT_EQ(plan(*selector), Positions{2});
}

TEST(HgcaSelector, ATokenIsAsSalientAsItsMostAttentiveQueryHeadFindsIt) {
  const HgcaOptions options{.beta = 1.0, .keep_min = 0, .groups = 1};
  const auto selector = make_hgca_selector(shape_of(1, 2), options);
  decode(*selector, 0, 0, {{0.6F, 0.1F, 0.1F, 0.2F}, {0.1F, 0.2F, 0.6F, 0.1F}});
  offload(*selector, 1, {0, 4});
  EXPECT_EQ(plan(*selector), (Positions{0, 2}));
}

TEST(HgcaSelector, KeepsAtLeastTheMinimumButNotMoreThanLeave) {
  const auto kept = [](std::int64_t keep_min, std::int64_t num_leaving) {
    const auto selector =
        make_hgca_selector(shape_of(1), {.beta = 1.0, .keep_min = keep_min, .groups = 1});
    decode(*selector, 0, 0, {{0.01F, 0.03F, 0.02F, 0.04F, 0.9F}});
    offload(*selector, 1, {0, num_leaving});
    return plan(*selector);
  };
  EXPECT_EQ(kept(0, 4), Positions{});
  EXPECT_EQ(kept(1, 4), Positions{3});
  EXPECT_EQ(kept(3, 4), (Positions{1, 2, 3}));
  EXPECT_EQ(kept(10, 4), (Positions{0, 1, 2, 3}));
  EXPECT_EQ(kept(10, 2), (Positions{0, 1}));
}

TEST(HgcaSelector, EqualAveragesPreferTheLowerPosition) {
  const auto selector = make_hgca_selector(shape_of(1), {.beta = 1.0, .keep_min = 2, .groups = 1});
  decode(*selector, 0, 0, {{0.0F, 0.1F, 0.1F, 0.1F, 0.7F}});
  offload(*selector, 1, {0, 4});
  EXPECT_EQ(plan(*selector), (Positions{1, 2}));
}

TEST(HgcaSelector, TokensThatNobodyAttendedToHaveNoWeight) {
  const auto selector = make_hgca_selector(shape_of(1), {.beta = 0.5, .keep_min = 0, .groups = 1});
  offload(*selector, 1, {0, 3});
  EXPECT_EQ(plan(*selector), Positions{});
  decode(*selector, 0, 3, {{1.0F}});
  offload(*selector, 1, {3, 5});
  EXPECT_EQ(plan(*selector), Positions{3});
}

TEST(HgcaSelector, AfterAPromptChunkTheAverageIsTheMeanOverItsRows) {
  const HgcaOptions options{.alpha = 0.5, .beta = 1.0, .keep_min = 0, .groups = 1};
  const auto selector = make_hgca_selector(shape_of(1), options);
  decode(*selector, 0, 0, {{0.9F, 0.1F}});  // forgotten: a chunk starts afresh
  // Four rows: means 0.2, 0.3, 0.25, 0.25.
  prefill(*selector, 0, false, 0, 4, {{0.8F, 1.2F, 1.0F, 1.0F}});
  offload(*selector, 1, {0, 2});  // 1/4
  EXPECT_EQ(plan(*selector), Positions{1});
  decode(*selector, 0, 2, {{0.45F, 0.41F, 0.14F}});  // 0.35, 0.33, 0.14
  offload(*selector, 1, {2, 4});                     // 1/3
  EXPECT_EQ(plan(*selector), (Positions{1, 2}));
}

TEST(HgcaSelector, APromptChunkReconsidersAllThatIsOffloaded) {
  const HgcaOptions options{.beta = 1.0, .keep_min = 0, .groups = 1};
  const auto selector = make_hgca_selector(shape_of(2), options);
  for (std::int64_t g = 0; g < 2; ++g) decode(*selector, g, 0, {{0.4F, 0.1F, 0.3F, 0.1F, 0.1F}});
  offload(*selector, 2, {0, 4});
  ASSERT_EQ(plan(*selector, 0), (Positions{0, 2}));
  // Two rows over four offloaded tokens: salient from a mean of 1/4 on.
  prefill(*selector, 0, true, 0, 2, {{0.2F, 0.6F, 0.1F, 1.1F}});
  EXPECT_EQ(plan(*selector, 0), (Positions{0, 2}));  // until the last KV head has been heard
  prefill(*selector, 1, true, 0, 2, {{1.9F, 0.0F, 0.1F, 0.0F}});
  EXPECT_EQ(plan(*selector, 0), (Positions{1, 3}));
  EXPECT_EQ(plan(*selector, 1), (Positions{0, 2}));
}

TEST(HgcaSelector, AChunkMayBothReconsiderAndEvictWhicheverHeadComesFirst) {
  const HgcaOptions options{.beta = 1.0, .keep_min = 0, .groups = 1};
  for (const bool by_head : {false, true}) {
    const auto selector = make_hgca_selector(shape_of(2), options);
    offload(*selector, 2, {0, 2});
    const auto attend = [&](std::int64_t g) {
      prefill(*selector, g, true, 0, 1, {{0.1F, 0.9F}});
      prefill(*selector, g, false, 2, 1, {{0.7F, 0.2F, 0.1F}});
    };
    for (std::int64_t g = 0; g < 2; ++g) {
      attend(g);
      if (by_head) selector->on_offload(0, g, {2, 4}, {});
    }
    if (!by_head) offload(*selector, 2, {2, 4});
    EXPECT_EQ(plan(*selector, 0), (Positions{1, 2}));
    EXPECT_EQ(plan(*selector, 1), (Positions{1, 2}));
  }
}

TEST(HgcaSelector, WeightsOfChosenTokensAreSkippedInAGlobalSoftmax) {
  const auto selector =
      make_hgca_selector(shape_of(1, 2), {.beta = 0.5, .keep_min = 0, .groups = 1});
  offload(*selector, 1, {0, 2});
  const Positions chosen = {0, 1};
  const std::vector<float> weights = {0.9F, 0.8F, 0.1F, 0.3F, /**/ 0.9F, 0.8F, 0.1F, 0.1F};
  selector->on_decode(0,
                      0,
                      {.num_queries = 2,
                       .num_chosen = 2,
                       .positions = chosen.data(),
                       .resident = {2, 4},
                       .weights = weights.data(),
                       .stride = 4});
  offload(*selector, 1, {2, 4});  // 0.1 and 0.3 against 0.25
  EXPECT_EQ(plan(*selector), Positions{3});
}

TEST(HgcaSelector, PlansAllOfTheContextualCacheWhateverK) {
  const auto selector = make_hgca_selector(shape_of(1), {.beta = 0.0});
  EXPECT_TRUE(plan(*selector).empty());
  offload(*selector, 1, {0, 5});
  EXPECT_EQ(plan(*selector, 0, 1), (Positions{0, 1, 2, 3, 4}));
  EXPECT_EQ(plan(*selector, 0, 5), (Positions{0, 1, 2, 3, 4}));
}

TEST(HgcaSelector, LayersAreApart) {
  const auto selector =
      make_hgca_selector(shape_of(2, 1, 2), {.beta = 1.0, .keep_min = 1, .groups = 1});
  // Layer 1 begins before layer 0 is complete.
  selector->on_offload(0, 0, {0, 2}, {});
  selector->on_offload(1, 0, {0, 3}, {});
  selector->on_offload(1, 1, {0, 3}, {});
  selector->on_offload(0, 1, {0, 2}, {});
  std::vector<std::int32_t> scratch;
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    EXPECT_EQ(
        selector->plan({.layer = layer, .num_offloaded = 3, .k = 3, .queries = {}}, scratch).size(),
        1U);
  }
}

/// What the options mean, written down for one head and one step at a time.
class NaiveHgca {
 public:
  NaiveHgca(std::int64_t num_kv_heads, HgcaOptions options)
      : options_(options),
        averages_(static_cast<std::size_t>(num_kv_heads)),
        contextual_(static_cast<std::size_t>(num_kv_heads)) {}

  void decode(std::size_t g, const Rows& rows) {
    Rows& averages = averages_[g];
    averages.resize(rows.size());
    for (std::size_t r = 0; r < rows.size(); ++r) {
      for (std::size_t j = 0; j < rows[r].size(); ++j) {
        if (j == averages[r].size()) {
          averages[r].push_back(rows[r][j]);
        } else {
          averages[r][j] = static_cast<float>(options_.alpha) * rows[r][j] +
                           (1.0F - static_cast<float>(options_.alpha)) * averages[r][j];
        }
      }
    }
  }

  void offload(std::int32_t first, std::size_t count) {
    const std::size_t num_heads = averages_.size();
    std::vector<std::vector<float>> salience(num_heads, std::vector<float>(count));
    std::vector<std::size_t> needed(num_heads);
    for (std::size_t g = 0; g < num_heads; ++g) {
      const auto num_resident = static_cast<float>(averages_[g][0].size());
      for (std::size_t j = 0; j < count; ++j) {
        for (const auto& row : averages_[g]) salience[g][j] = std::max(salience[g][j], row[j]);
        needed[g] += salience[g][j] >= static_cast<float>(options_.beta) / num_resident;
      }
      for (auto& row : averages_[g]) {
        row.erase(row.begin(), row.begin() + static_cast<std::ptrdiff_t>(count));
      }
    }
    const std::size_t heads_per_group = num_heads / static_cast<std::size_t>(options_.groups);
    for (std::size_t g = 0; g < num_heads; ++g) {
      const std::size_t first_of_group = g / heads_per_group * heads_per_group;
      auto kept = static_cast<std::size_t>(options_.keep_min);
      for (std::size_t i = 0; i < heads_per_group; ++i) {
        kept = std::max(kept, needed[first_of_group + i]);
      }
      kept = std::min(kept, count);
      std::vector<std::size_t> order(count);
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return salience[g][a] > salience[g][b];
      });
      order.resize(kept);
      std::sort(order.begin(), order.end());
      for (const std::size_t j : order) {
        contextual_[g].push_back(first + static_cast<std::int32_t>(j));
      }
    }
  }

  const Positions& contextual(std::size_t g) const { return contextual_[g]; }

 private:
  HgcaOptions options_;
  std::vector<Rows> averages_;
  std::vector<Positions> contextual_;
};

/// Softmax-like rows: positive, a few large, adding up to 1.
Rows random_rows(std::mt19937& random, std::size_t num_queries, std::size_t count) {
  Rows rows(num_queries, std::vector<float>(count));
  for (std::vector<float>& row : rows) {
    for (float& weight : row) {
      weight = static_cast<float>(random() % 100);
      weight = 1.0F + weight * weight * weight;
    }
    const float sum = std::accumulate(row.begin(), row.end(), 0.0F);
    for (float& weight : row) weight /= sum;
  }
  return rows;
}

/// Calls visit(selector, num_offloaded) after each block that leaves a window of 12 to 19 tokens.
void run_decode(std::unique_ptr<TokenSelector> selector,
                std::int64_t num_kv_heads,
                std::size_t num_queries,
                NaiveHgca* naive,
                const std::function<void(const TokenSelector&, std::int64_t)>& visit) {
  std::mt19937 random(23);
  std::int64_t num_offloaded = 0;
  for (std::int64_t n = 1; n <= 120; ++n) {
    for (std::int64_t g = 0; g < num_kv_heads; ++g) {
      const Rows rows =
          random_rows(random, num_queries, static_cast<std::size_t>(n - num_offloaded));
      decode(*selector, g, num_offloaded, rows);
      if (naive != nullptr) naive->decode(static_cast<std::size_t>(g), rows);
    }
    if (n - num_offloaded < 20) continue;
    offload(*selector, num_kv_heads, {num_offloaded, num_offloaded + 8});
    if (naive != nullptr) naive->offload(static_cast<std::int32_t>(num_offloaded), 8);
    num_offloaded += 8;
    visit(*selector, num_offloaded);
  }
}

TEST(HgcaSelector, EqualsANaiveModelOverManySteps) {
  for (const double beta : {0.5, 1.0, 2.0}) {
    const HgcaOptions options{.alpha = 0.3, .beta = beta, .keep_min = 1, .groups = 2};
    NaiveHgca naive(4, options);
    run_decode(make_hgca_selector(shape_of(4, 3), options),
               4,
               3,
               &naive,
               [&](const TokenSelector& selector, std::int64_t) {
                 for (std::int64_t g = 0; g < 4; ++g) {
                   ASSERT_EQ(plan(selector, g), naive.contextual(static_cast<std::size_t>(g)));
                 }
               });
  }
}

TEST(HgcaSelector, WithBetaZeroKeepsEverything) {
  const HgcaOptions options{.beta = 0.0, .keep_min = 0};
  run_decode(make_hgca_selector(shape_of(2, 2), options),
             2,
             2,
             nullptr,
             [](const TokenSelector& selector, std::int64_t num_offloaded) {
               Positions all(static_cast<std::size_t>(num_offloaded));
               std::iota(all.begin(), all.end(), 0);
               ASSERT_EQ(plan(selector, 0), all);
               ASSERT_EQ(plan(selector, 1), all);
             });
}

TEST(HgcaSelector, ALargerBetaKeepsASubset) {
  std::vector<Positions> before;
  for (const double beta : {0.0, 0.5, 1.0, 1.5, 3.0, 1000.0}) {
    std::vector<Positions> now;
    run_decode(make_hgca_selector(shape_of(2), {.beta = beta, .keep_min = 0, .groups = 1}),
               2,
               1,
               nullptr,
               [&](const TokenSelector& selector, std::int64_t) {
                 now.push_back(plan(selector, 0));
                 now.push_back(plan(selector, 1));
               });
    for (std::size_t i = 0; i < before.size(); ++i) {
      EXPECT_TRUE(std::includes(before[i].begin(), before[i].end(), now[i].begin(), now[i].end()));
    }
    before = std::move(now);
  }
  EXPECT_TRUE(before.back().empty());
}

TEST(HgcaSelector, NanAmongTheWeightsIsANumericErrorThatNamesLayerAndHead) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const bool first : {true, false}) {
    const auto selector = make_hgca_selector(shape_of(1, 2), {});
    decode(*selector, 0, 0, {{first ? nan : 0.5F, 0.5F}, {first ? 0.5F : nan, 0.5F}});
    try {
      offload(*selector, 1, {0, 1});
      ADD_FAILURE() << "accepted NaN";
    } catch (const NumericError& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find("layer 0"), std::string::npos) << text;
      EXPECT_NE(text.find("KV head 0"), std::string::npos) << text;
    }
  }
}

TEST(HgcaSelector, RejectsOptionsOutOfRange) {
  const SelectorShape shape = shape_of(2);
  EXPECT_THROW(make_hgca_selector(shape, {.alpha = -0.1}), ConfigError);
  EXPECT_THROW(make_hgca_selector(shape, {.alpha = 1.1}), ConfigError);
  EXPECT_THROW(make_hgca_selector(shape, {.beta = -0.5}), ConfigError);
  EXPECT_THROW(make_hgca_selector(shape, {.beta = std::numeric_limits<double>::quiet_NaN()}),
               ConfigError);
  EXPECT_THROW(make_hgca_selector(shape, {.keep_min = -1}), ConfigError);
  EXPECT_THROW(make_hgca_selector(shape, {.groups = 0}), ConfigError);
  EXPECT_THROW(make_hgca_selector(shape_of(0), {}), ConfigError);
}

TEST(HgcaSelector, RejectsTokensAndHeadsOutOfOrder) {
  const auto selector = make_hgca_selector(shape_of(2, 2), {});
  EXPECT_THROW(selector->on_offload(0, 1, {0, 2}, {}), ConfigError);  // KV head 0 comes first
  selector->on_offload(0, 0, {0, 2}, {});
  EXPECT_THROW(selector->on_offload(0, 0, {2, 4}, {}), ConfigError);  // KV head 1 comes next
  EXPECT_THROW(selector->on_offload(0, 1, {0, 3}, {}), ConfigError);  // with the same tokens
  selector->on_offload(0, 1, {0, 2}, {});
  EXPECT_THROW(selector->on_offload(0, 0, {3, 4}, {}), ConfigError);  // a gap
  EXPECT_THROW(selector->on_offload(0, 0, {1, 4}, {}), ConfigError);  // twice
  EXPECT_THROW(selector->on_offload(0, 2, {0, 2}, {}), ConfigError);
  EXPECT_THROW(selector->on_offload(1, 0, {0, 2}, {}), ConfigError);
  EXPECT_THROW(prefill(*selector, 0, true, 0, 1, {{1, 1, 1}, {1, 1, 1}}), ConfigError);
  EXPECT_THROW(prefill(*selector, 0, false, 2, 1, {{1}}), ConfigError);  // one query head of two
  EXPECT_THROW(decode(*selector, 0, 2, {{1}}), ConfigError);
}

}  // namespace
}  // namespace hybridgen
