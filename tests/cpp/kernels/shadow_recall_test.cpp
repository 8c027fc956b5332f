// SPDX-License-Identifier: Apache-2.0
// Does the shadow find the tokens that count? Shares of the exact top K among the tokens that score
// best, on keys as models have them: channels with large means or spreads, sinks, drift.
#include <algorithm>
#include <functional>

#include "kernel_test_support.h"
#include "kvcache/scoring_shadow.h"

namespace hybridgen::kernels::test {
namespace {

constexpr std::int64_t kTokens = 8192;
constexpr std::int64_t kDim = 128;
constexpr std::int64_t kQueries = 8;

/// Alters key [D] of token t.
using Alter = std::function<void(std::int64_t t, float* key)>;

void leave(std::int64_t, float*) {}

/// Every 16th channel lies far from zero, every 32nd also spreads widely.
void add_outlier_channels(std::int64_t, float* key) {
  for (std::int64_t d = 0; d < kDim; d += 16) {
    if (d % 32 == 0) key[d] *= 12.0F;
    key[d] += 30.0F;
  }
}

/// Means and spreads of half the channels grow to several times what the first tokens show.
void drift(std::int64_t t, float* key) {
  add_outlier_channels(t, key);
  const float progress = static_cast<float>(t) / kTokens;
  for (std::int64_t d = 1; d < kDim; d += 2) key[d] = key[d] * (1.0F + progress) + 3.0F * progress;
}

/// The first tokens have keys of another size than all others.
void add_sinks(std::int64_t t, float* key) {
  add_outlier_channels(t, key);
  if (t < 4) std::for_each_n(key, kDim, [](float& element) { element *= 4.0F; });
}

/// Share of the exact top `k` among the `multiple` * k tokens with the best scores, over queries.
double recall(ShadowPrecision precision,
              const Alter& alter,
              std::int64_t k,
              double multiple,
              std::int64_t first_tokens = kTokens / 8) {
  std::vector<float> keys = random_floats(kTokens * kDim, 1);
  for (std::int64_t t = 0; t < kTokens; ++t) alter(t, keys.data() + t * kDim);
  const std::vector<float> queries = random_floats(kQueries * kDim, 2);
  ScoringShadow shadow({.num_layers = 1,
                        .num_kv_heads = 1,
                        .head_dim = kDim,
                        .capacity = kTokens,
                        .precision = precision});
  shadow.grow(shadow.shape().capacity);
  // The first tokens fix centres and spreads.
  shadow.calibrate(0, first_tokens, {keys.data(), 0, kDim});
  shadow.write(0, {0, kTokens}, {keys.data(), 0, kDim});

  const CpuKernels& kernels = cpu_kernels(resolve_isa("auto"));
  const ShadowKeyView view = shadow.keys(0, 0);
  std::vector<std::int8_t> rounded(static_cast<std::size_t>(kQueries * view.padded_dim));
  std::vector<float> scales(kQueries);
  prepare_shadow_queries(view, queries.data(), kQueries, rounded.data(), scales.data());
  std::vector<float> scores(static_cast<std::size_t>(kQueries * kTokens));
  kernels.shadow_logits({.keys = view,
                         .queries = rounded.data(),
                         .scales = scales.data(),
                         .num_queries = kQueries,
                         .tokens = {0, kTokens},
                         .scores = scores.data(),
                         .scores_stride = kTokens});
  std::vector<float> logits(scores.size());
  kernels.row_logits({.keys = keys.data(),
                      .key_stride = kDim,
                      .head_dim = kDim,
                      .count = kTokens,
                      .queries = queries.data(),
                      .num_queries = kQueries,
                      .logits = logits.data(),
                      .logits_stride = kTokens});

  const auto candidates = static_cast<std::int64_t>(multiple * static_cast<double>(k));
  std::vector<float> scratch;
  const auto best = [&](const std::vector<float>& of, std::int64_t query, std::int64_t count) {
    std::vector<std::int32_t> positions(static_cast<std::size_t>(count));
    std::vector<float> values(positions.size());
    EXPECT_TRUE(top_k(
        of.data() + query * kTokens, kTokens, count, positions.data(), values.data(), scratch));
    return positions;
  };
  std::int64_t found = 0;
  for (std::int64_t q = 0; q < kQueries; ++q) {
    std::vector<std::int32_t> both;
    std::ranges::set_intersection(
        best(logits, q, k), best(scores, q, candidates), std::back_inserter(both));
    found += static_cast<std::int64_t>(both.size());
  }
  return static_cast<double>(found) / static_cast<double>(kQueries * k);
}

/// At least 99 % with twice as many candidates as tokens wanted; 4 bits need four times as many
/// where keys change so much that steps grow.
void expect_recall(const Alter& alter, double int4_multiple = 2.0) {
  for (const std::int64_t k : {kTokens / 100, kTokens / 20}) {
    EXPECT_GE(recall(ShadowPrecision::kInt8, alter, k, 2.0), 0.99) << k;
    EXPECT_GE(recall(ShadowPrecision::kInt4, alter, k, int4_multiple), 0.99) << k;
  }
}

TEST(ShadowRecall, OfPlainKeys) { expect_recall(leave); }
TEST(ShadowRecall, OfKeysWithOutlierChannels) { expect_recall(add_outlier_channels); }
TEST(ShadowRecall, OfKeysThatDriftAwayFromTheFirstOnes) { expect_recall(drift, 4.0); }
TEST(ShadowRecall, OfKeysWithSinks) { expect_recall(add_sinks); }

TEST(ShadowRecall, EightBitsDoWithoutKnowingTheChannels) {
  for (const std::int64_t first_tokens : {1, 2, 16}) {
    const double found =
        recall(ShadowPrecision::kInt8, add_outlier_channels, kTokens / 100, 2.0, first_tokens);
    EXPECT_GE(found, 0.99) << first_tokens;
  }
}

}  // namespace
}  // namespace hybridgen::kernels::test
