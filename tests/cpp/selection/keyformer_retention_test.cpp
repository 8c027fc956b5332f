// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <random>

#include "hybridgen/core/error.h"
#include "kernels/gumbel.h"
#include "retention_test_support.h"
#include "selection/keyformer_scores.h"

namespace hybridgen::test {
namespace {

const std::vector<float> kWeights = {1.0F / 7, 2.0F / 7, 4.0F / 7};  // logits 0, ln 2, 2 ln 2

void expect_row(const std::vector<float>& weights,
                const std::vector<float>& noise,
                double tau,
                const std::vector<double>& expected) {
  std::vector<float> scores;
  for (const float draw : noise) scores.push_back(std::exp(-draw));
  const float scale = keyformer_scores(weights, scores, tau, scores);
  for (std::size_t j = 0; j < expected.size(); ++j) {
    EXPECT_NEAR(scores[j] * scale, expected[j], 5e-6) << "tau " << tau << ", token " << j;
  }
}

TEST(KeyformerScores, AreTheSoftmaxOfTemperedNoisyLogits) {
  expect_row(kWeights, {0, 0, 0}, 1.0, {1.0 / 7, 2.0 / 7, 4.0 / 7});
  expect_row(kWeights, {0, 0, 0}, 2.0, {0.22654, 0.32038, 0.45308});
  expect_row(kWeights, {std::log(4.0F), 0, 0}, 1.0, {0.4, 0.2, 0.4});
}

TEST(KeyformerScores, GiveATokenWithoutWeightNothing) {
  expect_row({0.0F, 0.5F, 0.5F}, {15.0F, 0.0F, 0.0F}, 2.0, {0.0, 0.5, 0.5});
  expect_row({0.0F, 0.0F}, {1.0F, 2.0F}, 2.0, {0.0, 0.0});
}

TEST(KeyformerScores, StandTheSmallestAndTheLargestTemperatures) {
  expect_row(kWeights, {16, 0, 0}, std::numeric_limits<double>::denorm_min(), {1, 0, 0});
  expect_row({0.5F, 0.5F}, {1, 1}, std::numeric_limits<double>::denorm_min(), {0.5, 0.5});
  expect_row(kWeights, {16, 0, 0}, std::numeric_limits<double>::max(), {1.0 / 3, 1.0 / 3, 1.0 / 3});
}

TEST(KeyformerScores, OfAPromptAddUpToItsLengthAndFavourEarlyTokensWhenTempered) {
  constexpr std::size_t kTokens = 12;
  std::mt19937 random(4);
  std::vector<double> sums(kTokens);
  for (std::size_t row = 0; row < kTokens; ++row) {
    std::vector<float> weights(row + 1);
    for (float& weight : weights) weight = 0.01F + static_cast<float>(random() % 1000);
    std::vector<float> scores(row + 1);
    const float scale = keyformer_scores(weights, {}, 1e30, scores);
    for (std::size_t j = 0; j <= row; ++j) sums[j] += scores[j] * scale;
  }
  double total = 0.0;
  double tail = 0.0;  // 1/(j+1) + 1/(j+2) + ... of the last token backwards
  for (std::size_t j = kTokens; j-- > 0;) {
    tail += 1.0 / static_cast<double>(j + 1);
    EXPECT_NEAR(sums[j], tail, 1e-5);
    total += sums[j];
  }
  EXPECT_TRUE(std::is_sorted(sums.begin(), sums.end(), std::greater_equal<>()));
  EXPECT_NEAR(total, kTokens, 1e-5);
}

TEST(KeyformerTau, GoesFromTheFirstToTheLastInEqualSteps) {
  const KeyformerScore score{.tau_init = 1.0, .tau_end = 2.0, .num_steps = 128};
  EXPECT_EQ(score.tau(0), 1.0);
  EXPECT_EQ(score.tau(1), 1.0078125);
  EXPECT_EQ(score.tau(64), 1.5);
  EXPECT_EQ(score.tau(128), 2.0);
}

TEST(KeyformerTau, StaysAtTheLast) {
  const KeyformerScore score{.tau_init = 2.0, .tau_end = 0.1, .num_steps = 3};
  EXPECT_EQ(score.tau(3), 0.1);
  EXPECT_EQ(score.tau(1000000), 0.1);
}

TEST(KeyformerRetention, TempersEveryStepByItsNumberAfterThePrompt) {
  const auto policy = make_keyformer_retention(
      {}, 8, 8, {.tau_init = 1.0, .tau_end = 3.0, .num_steps = 2, .noise = false});
  prefill(*policy, {0, 0});
  decode(*policy, 2, kWeights);  // tau 2
  const double root = std::sqrt(2.0);
  const double first = 1.0 / (3.0 + root);
  expect_scores(*policy, {first, first * root, first * 2.0});
  decode(*policy, 3, {0.125F, 0.125F, 0.375F, 0.375F});  // tau 3
  const double cube_root = std::cbrt(3.0);
  const double second = 1.0 / (2.0 + 2.0 * cube_root);
  expect_scores(*policy,
                {first + second,
                 first * root + second,
                 first * 2.0 + second * cube_root,
                 second * cube_root});
}

TEST(KeyformerRetention, DrawsTheNoiseOfTheKvHeadForTheTokensPositions) {
  const RetentionShape shape{.num_layers = 4, .num_kv_heads = 3, .query_heads_per_kv_head = 2};
  const KeyformerScore score{.tau_end = 2.0, .num_steps = 1, .seed = 5, .request = 6};
  const auto policy = make_keyformer_retention(shape, 1, 1, score);
  const std::vector<float> sums = {0, 0, 7, 0, 0};
  policy->keep_after_prefill(3, 2, 5, sums);  // keeps 2 and 4
  const std::vector<float> weights = {0.5F, 0.25F, 0.25F, 0.125F, 0.375F, 0.5F};
  EXPECT_EQ(policy->replace(3, 2, 5, weights.data(), 3), 1);

  const std::int64_t attended[] = {2, 4, 5};
  double expected[] = {7, 0, 0};
  const kernels::GumbelKey key{.seed = 5, .request = 6, .layer = 3, .kv_head = 2, .row = 5};
  for (std::size_t head = 0; head < 2; ++head) {
    double noisy[3];
    double total = 0.0;
    for (std::size_t j = 0; j < 3; ++j) {
      noisy[j] =
          std::exp((std::log(weights[3 * head + j]) + kernels::gumbel_at(key, attended[j])) / 2.0);
      total += noisy[j];
    }
    for (std::size_t j = 0; j < 3; ++j) expected[j] += noisy[j] / total;
  }
  EXPECT_NEAR(scores(*policy, 3, 2)[0], expected[0], 1e-5);
  EXPECT_NEAR(scores(*policy, 3, 2)[1], expected[2], 1e-5);
  EXPECT_NEAR(expected[0] + expected[1] + expected[2], 9.0, 1e-5);
}

TEST(KeyformerRetention, AfterThePromptAGeneratedTokenCanBecomeAKeyToken) {
  const auto policy = make_keyformer_retention({}, 1, 2, {.tau_end = 1.0, .noise = false});
  EXPECT_EQ(prefill(*policy, {2.0F, 1.0F, 0.5F, 0.5F}), (Positions{0, 2, 3}));
  decode(*policy, 4, {0.0F, 0.0F, 0.0F, 1.0F});
  EXPECT_EQ(kept(*policy), (Positions{0, 3, 4}));
  // Token 4 lies in slot 1; with score 3 it outdoes token 0 once it is no longer recent.
  decode(*policy, 5, {0.0F, 1.0F, 0.0F, 0.0F});
  EXPECT_EQ(kept(*policy), (Positions{0, 4, 5}));
  decode(*policy, 6, {0.0F, 1.0F, 0.0F, 0.0F});
  EXPECT_EQ(kept(*policy), (Positions{4, 5, 6}));
}

TEST(KeyformerRetention, WithoutNoiseAtTauOneIsExactlyTheHeavyHitters) {
  const auto keyformer =
      make_keyformer_retention({}, 5, 3, {.tau_init = 1.0, .tau_end = 1.0, .noise = false});
  const auto heavy = make_heavy_hitter_retention({}, 5, 3);
  std::mt19937 random(12);
  const auto draw = [&](std::size_t count) {
    std::vector<float> numbers(count);
    for (float& number : numbers) number = static_cast<float>(random() % 1000) / 4000.0F;
    return numbers;
  };
  const std::vector<float> sums = draw(20);
  EXPECT_EQ(prefill(*keyformer, sums), prefill(*heavy, sums));
  for (std::int64_t position = 20; position < 300; ++position) {
    const std::vector<float> weights = draw(9);
    ASSERT_EQ(decode(*keyformer, position, weights), decode(*heavy, position, weights));
    const std::span<const double> ours = scores(*keyformer);
    const std::span<const double> theirs = scores(*heavy);
    ASSERT_TRUE(std::equal(ours.begin(), ours.end(), theirs.begin(), theirs.end()));
  }
}

/// A request whose steps can be taken one by one.
class Request {
 public:
  Request(std::uint64_t seed, std::uint64_t request)
      : policy_(make_keyformer_retention(
            {}, 6, 2, {.num_steps = 50, .seed = seed, .request = request})) {
    prefill(*policy_, std::vector<float>(20, 0.1F));
  }

  void step() { slots_.push_back(decode(*policy_, next_++, std::vector<float>(9, 1.0F / 9))); }
  const std::vector<std::int64_t>& slots() const { return slots_; }

 private:
  std::unique_ptr<RetentionPolicy> policy_;
  std::int64_t next_ = 20;
  std::vector<std::int64_t> slots_;
};

TEST(KeyformerRetention, ARequestChoosesTheSameWhateverRunsBesideIt) {
  Request alone(1, 7);
  for (int i = 0; i < 50; ++i) alone.step();

  Request first(1, 7);
  Request second(1, 8);
  for (int i = 0; i < 50; ++i) {
    second.step();
    if (i % 3 == 0) continue;
    first.step();
  }
  while (first.slots().size() < 50) first.step();
  EXPECT_EQ(first.slots(), alone.slots());
  EXPECT_NE(second.slots(), alone.slots());
}

TEST(KeyformerRetention, AnotherSeedChoosesOtherwise) {
  Request one(1, 7);
  Request other(2, 7);
  for (int i = 0; i < 50; ++i) {
    one.step();
    other.step();
  }
  EXPECT_NE(one.slots(), other.slots());
}

TEST(KeyformerRetention, RejectsCountsAndTemperaturesOutOfRange) {
  constexpr const char* kName = "[keyformer retention]";
  const auto make = [](std::int64_t key_tokens, std::int64_t recent, const KeyformerScore& score) {
    return [=] { make_keyformer_retention({}, key_tokens, recent, score); };
  };
  expect_error<ConfigError>(make(-1, 1, {}), {kName, "key tokens is -1", "allowed: 0 to ", "pass"});
  expect_error<ConfigError>(make(1, 0, {}), {kName, "recent is 0", "allowed: 1 to "});
  expect_error<ConfigError>(make(1, std::int64_t{1} << 31, {}), {kName, "2147483648"});
  expect_error<ConfigError>(make(1, 1, {.num_steps = 0}), {kName, "num_steps is 0", "pass"});
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  for (const double tau : {0.0, -1.0, kInfinity, kNaN}) {
    expect_error<ConfigError>(make(1, 1, {.tau_init = tau}), {kName, "tau_init is ", "> 0"});
    expect_error<ConfigError>(make(1, 1, {.tau_end = tau}), {kName, "tau_end is ", "> 0"});
  }
}

}  // namespace
}  // namespace hybridgen::test
