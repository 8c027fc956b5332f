// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using Ids = std::vector<std::int64_t>;

SampledToken sample(const SamplingOptions& options,
                    std::vector<float> logits,
                    const Ids& context = {},
                    std::int64_t num_generated = 0) {
  return Sampler(options).sample(logits, context, num_generated);
}

/// Logits whose softmax is `probabilities`.
std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)) + 3.0F);
  return logits;
}

/// All tokens that come out over many draws: the set the filters keep.
std::set<std::int64_t> support(SamplingOptions options, const std::vector<float>& logits) {
  if (options.temperature == 0.0F) options.temperature = 1.0F;
  std::set<std::int64_t> tokens;
  Sampler sampler(options);
  for (std::int64_t i = 0; i < 2000; ++i) {
    std::vector<float> copy = logits;
    tokens.insert(sampler.sample(copy, {}, i).token);
  }
  return tokens;
}

double exact_logprob(const std::vector<float>& logits, std::int64_t token) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  return static_cast<double>(logits[static_cast<std::size_t>(token)]) - std::log(sum);
}

std::vector<float> random_logits(std::size_t count, float spread, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, spread);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

TEST(Sampler, GreedyTakesTheLargestLogitAndTheLowestIdOnTies) {
  EXPECT_EQ(sample({}, {1, 5, 2, 5}).token, 1);
  EXPECT_EQ(sample({}, {7, 7, 7}).token, 0);
  EXPECT_EQ(sample({}, {-kInfinity, -3, -kInfinity}).token, 1);
  EXPECT_TRUE(sample({}, {1, 5, 2, 5}).is_greedy);
}

TEST(Sampler, GreedyFindsTheLargestAtAnyPlace) {
  for (const std::size_t size : {1U, 15U, 16U, 17U, 100U, 1500U}) {
    for (const std::size_t place : {std::size_t{0}, size / 2, size - 1}) {
      std::vector<float> logits = random_logits(size, 1.0F);
      logits[place] = 50.0F;
      EXPECT_EQ(sample({}, logits).token, static_cast<std::int64_t>(place)) << "of " << size;
    }
  }
}

TEST(Sampler, LogprobIsTheLogSoftmaxOfTheLogitsAsGiven) {
  for (const float spread : {0.1F, 3.0F, 30.0F}) {
    const std::vector<float> logits = random_logits(5000, spread);
    const SampledToken sampled = sample({}, logits);
    EXPECT_NEAR(static_cast<double>(sampled.logprob), exact_logprob(logits, sampled.token), 2e-6);
  }
}

TEST(Sampler, PenaltyTemperatureAndFiltersDoNotChangeTheReportedLogprob) {
  SamplingOptions options;
  options.temperature = 0.7F;
  options.top_k = 3;
  options.top_p = 0.9F;
  options.repetition_penalty = 1.7F;
  const std::vector<float> logits = {2.0F, 1.5F, -1.0F, 1.0F, 0.5F};
  for (std::int64_t i = 0; i < 50; ++i) {
    const SampledToken sampled = sample(options, logits, {0, 2, 2}, i);
    EXPECT_NEAR(static_cast<double>(sampled.logprob), exact_logprob(logits, sampled.token), 1e-6);
    EXPECT_EQ(sampled.is_greedy, sampled.token == 0);
  }
}

TEST(Sampler, ScoreReportsAnyTokenAsSampleWould) {
  const std::vector<float> logits = random_logits(300, 2.0F);
  SamplingOptions options;
  options.num_logprobs = 3;
  const Sampler sampler(options);
  const SampledToken greedy = sample(options, logits);
  const SampledToken scored = sampler.score(logits, greedy.token, 3);
  EXPECT_EQ(scored.token, greedy.token);
  EXPECT_EQ(scored.logprob, greedy.logprob);
  EXPECT_EQ(scored.top_logprobs, greedy.top_logprobs);
  EXPECT_TRUE(scored.is_greedy);

  const std::int64_t other = (greedy.token + 1) % 300;
  EXPECT_FALSE(sampler.score(logits, other, -1).is_greedy);
  EXPECT_NEAR(static_cast<double>(sampler.score(logits, other, -1).logprob),
              exact_logprob(logits, other),
              2e-6);
}

TEST(Sampler, TopLogprobsAreTheMostLikelyInOrderAndOnlyWhenAskedFor) {
  SamplingOptions options;
  const std::vector<float> logits = {0, 3, 1, 3, 2};
  EXPECT_TRUE(sample(options, logits).top_logprobs.empty());
  options.num_logprobs = 0;
  EXPECT_TRUE(sample(options, logits).top_logprobs.empty());
  options.num_logprobs = 3;
  const auto top = sample(options, logits).top_logprobs;
  ASSERT_EQ(top.size(), 3U);
  EXPECT_EQ(top[0].first, 1);
  EXPECT_EQ(top[1].first, 3);
  EXPECT_EQ(top[2].first, 4);
  for (const auto& [token, logprob] : top) {
    EXPECT_NEAR(static_cast<double>(logprob), exact_logprob(logits, token), 1e-6);
  }
  options.num_logprobs = 100;
  EXPECT_EQ(sample(options, logits).top_logprobs.size(), 5U);
}

TEST(Sampler, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogitsOncePerToken) {
  SamplingOptions options;
  options.repetition_penalty = 2.0F;
  std::vector<float> logits = {4.0F, -1.0F, 3.0F, -1.5F, 0.0F};
  Sampler sampler(options);
  const SampledToken sampled = sampler.sample(logits, Ids{0, 1, 0, 0, 4}, 3);
  EXPECT_EQ(logits, (std::vector<float>{2.0F, -2.0F, 3.0F, -1.5F, 0.0F}));
  EXPECT_EQ(sampled.token, 2);
  EXPECT_FALSE(sampled.is_greedy);  // token 0 had the largest logit as given
}

TEST(Sampler, PenaltyOfOneCallLeavesNoTraceInTheNext) {
  SamplingOptions options;
  options.repetition_penalty = 2.0F;
  Sampler sampler(options);
  std::vector<float> first = random_logits(200, 1.0F);
  sampler.sample(first, Ids{0, 63, 64, 199}, 0);
  const std::vector<float> given = random_logits(200, 1.0F, 2);
  std::vector<float> second = given;
  sampler.sample(second, Ids{64}, 1);
  for (std::size_t i = 0; i < given.size(); ++i) {
    const float expected = i != 64 ? given[i] : given[i] > 0 ? given[i] / 2 : given[i] * 2;
    EXPECT_EQ(second[i], expected) << "token " << i;
  }
}

// By hand, in vLLM's order: bias, repetition over all tokens, frequency and presence over generated
// ones. Token 0 is in the prompt, 1 and 2 were generated (2 twice), 3 is in both, 4 in neither.
TEST(Sampler, BiasAndPenaltiesAreAppliedInOrderEachOverItsTokens) {
  SamplingOptions options;
  options.logit_bias = {{0, 2.0F}, {2, -5.0F}, {4, 0.5F}};
  options.repetition_penalty = 2.0F;
  options.frequency_penalty = 0.5F;
  options.presence_penalty = 0.25F;
  std::vector<float> logits = {4.0F, 3.0F, 1.0F, -1.0F, 0.0F};
  Sampler sampler(options);
  const SampledToken sampled = sampler.sample(logits, Ids{0, 3, 0, 2, 1, 3, 2}, 4);
  EXPECT_EQ(logits,
            (std::vector<float>{
                (4.0F + 2.0F) / 2.0F,                        // not generated
                3.0F / 2.0F - 0.5F - 0.25F,                  // once
                (1.0F - 5.0F) * 2.0F - 2.0F * 0.5F - 0.25F,  // twice
                -1.0F * 2.0F - 0.5F - 0.25F,                 // once, the prompt's does not count
                0.0F + 0.5F,                                 // never seen
            }));
  EXPECT_EQ(sampled.token, 0);
  const std::vector<float> given = {4.0F, 3.0F, 1.0F, -1.0F, 0.0F};
  EXPECT_NEAR(static_cast<double>(sampled.logprob), exact_logprob(given, 0), 1e-6);
}

TEST(Sampler, NegativePenaltiesMakeGeneratedTokensLikelier) {
  SamplingOptions options;
  options.presence_penalty = -2.0F;
  EXPECT_EQ(sample(options, {1.0F, 2.0F, 0.0F}, Ids{0}, 0).token, 1);  // of the prompt
  EXPECT_EQ(sample(options, {1.0F, 2.0F, 0.0F}, Ids{0}, 1).token, 0);
  options.presence_penalty = 0.0F;
  options.frequency_penalty = -2.0F;
  EXPECT_EQ(sample(options, {-1.0F, 2.0F, 0.0F}, Ids{0}, 1).token, 1);
  EXPECT_EQ(sample(options, {-1.0F, 2.0F, 0.0F}, Ids{0, 0}, 2).token, 0);
}

TEST(Sampler, CountsOfOneCallLeaveNoTraceInTheNext) {
  SamplingOptions options;
  options.frequency_penalty = 1.0F;
  Sampler sampler(options);
  std::vector<float> first = {0.0F, 0.0F, 0.0F};
  sampler.sample(first, Ids{1, 1, 2}, 3);
  EXPECT_EQ(first, (std::vector<float>{0.0F, -2.0F, -1.0F}));
  std::vector<float> second = {0.0F, 0.0F, 0.0F};
  sampler.sample(second, Ids{2}, 1);
  EXPECT_EQ(second, (std::vector<float>{0.0F, 0.0F, -1.0F}));
}

TEST(Sampler, ABiasForbidsOrForcesATokenAndNothingBecomesInfinite) {
  SamplingOptions options;
  options.logit_bias = {{1, -100.0F}, {2, 100.0F}};
  EXPECT_EQ(sample(options, {0.0F, 9.0F, -9.0F}).token, 2);
  std::vector<float> logits = {0.0F, -kInfinity, std::numeric_limits<float>::max()};
  Sampler(options).sample(logits, {}, 0);
  EXPECT_EQ(logits[1], -kInfinity);
  EXPECT_EQ(logits[2], std::numeric_limits<float>::max());
  options.logit_bias = {{3, 1.0F}};
  EXPECT_THROW(sample(options, {0.0F, 1.0F, 2.0F}), ConfigError);
}

TEST(Sampler, StopTokensAreOutUntilMinTokensWereGenerated) {
  SamplingOptions options;
  options.min_tokens = 2;
  options.stop_token_ids = {1, 99};  // 99 lies outside this vocabulary
  const std::vector<float> logits = {0, 9, 5};
  EXPECT_EQ(sample(options, logits, {}, 0).token, 2);
  EXPECT_EQ(sample(options, logits, {}, 1).token, 2);
  EXPECT_EQ(sample(options, logits, {}, 2).token, 1);
}

TEST(Sampler, PaddingIdsAreNeitherChosenNorListed) {
  SamplingOptions options;
  options.valid_vocab = 3;
  options.num_logprobs = 5;
  const std::vector<float> logits = {1, 2, 0, 50, 60};
  const SampledToken sampled = sample(options, logits);
  EXPECT_EQ(sampled.token, 1);
  EXPECT_TRUE(sampled.is_greedy);
  EXPECT_EQ(sampled.top_logprobs.size(), 3U);
  EXPECT_NEAR(static_cast<double>(sampled.logprob), exact_logprob(logits, 1), 1e-5);
  EXPECT_EQ(support(options, {1, 1, 1, 9, 9}), (std::set<std::int64_t>{0, 1, 2}));
}

TEST(Sampler, TopKKeepsTheKLargestAndTheirTies) {
  SamplingOptions options;
  options.top_k = 2;
  EXPECT_EQ(support(options, {1, 3, 2, 0}), (std::set<std::int64_t>{1, 2}));
  EXPECT_EQ(support(options, {2, 3, 2, 0}), (std::set<std::int64_t>{0, 1, 2}));
  options.top_k = 100;
  EXPECT_EQ(support(options, {1, 1, 1, 1}).size(), 4U);
}

TEST(Sampler, TopKOfOneIsGreedyAtAnyTemperature) {
  SamplingOptions options;
  options.top_k = 1;
  options.temperature = 100.0F;
  const std::vector<float> logits = random_logits(500, 1.0F);
  EXPECT_EQ(support(options, logits), std::set<std::int64_t>{sample({}, logits).token});
}

TEST(Sampler, TopPKeepsTheSmallestSetOfThatMass) {
  const std::vector<float> logits = logits_of({0.15, 0.5, 0.05, 0.3});
  SamplingOptions options;
  const auto kept = [&](float top_p) {
    options.top_p = top_p;
    return support(options, logits);
  };
  EXPECT_EQ(kept(0.01F), (std::set<std::int64_t>{1}));  // always one
  EXPECT_EQ(kept(0.49F), (std::set<std::int64_t>{1}));
  EXPECT_EQ(kept(0.51F), (std::set<std::int64_t>{1, 3}));
  EXPECT_EQ(kept(0.79F), (std::set<std::int64_t>{1, 3}));
  EXPECT_EQ(kept(0.81F), (std::set<std::int64_t>{0, 1, 3}));
  EXPECT_EQ(kept(0.96F), (std::set<std::int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(kept(1.0F), (std::set<std::int64_t>{0, 1, 2, 3}));
}

TEST(Sampler, TopPTakesLowerIdsFirstAmongEqualOnes) {
  SamplingOptions options;
  options.top_p = 0.45F;
  EXPECT_EQ(support(options, {1, 1, 1, 1}), (std::set<std::int64_t>{0, 1}));
}

TEST(Sampler, TopPCountsTheMassLeftByTopK) {
  SamplingOptions options;
  options.top_k = 2;  // leaves 0.5 and 0.3, that is 0.625 and 0.375
  options.top_p = 0.6F;
  EXPECT_EQ(support(options, logits_of({0.15, 0.5, 0.05, 0.3})), (std::set<std::int64_t>{1}));
}

TEST(Sampler, MinPDropsWhatIsTooFarBelowTheLargest) {
  const std::vector<float> logits = logits_of({0.15, 0.5, 0.05, 0.3});
  SamplingOptions options;
  const auto kept = [&](float min_p) {
    options.min_p = min_p;
    return support(options, logits);
  };
  EXPECT_EQ(kept(0.0F).size(), 4U);
  EXPECT_EQ(kept(0.2F), (std::set<std::int64_t>{0, 1, 3}));
  EXPECT_EQ(kept(0.5F), (std::set<std::int64_t>{1, 3}));
  EXPECT_EQ(kept(1.0F), (std::set<std::int64_t>{1}));
}

TEST(Sampler, FiltersSeeTheTemperature) {
  const std::vector<float> logits = logits_of({0.4, 0.6});
  SamplingOptions options;
  options.top_p = 0.7F;
  options.temperature = 1.0F;
  EXPECT_EQ(support(options, logits).size(), 2U);
  options.temperature = 0.2F;  // 0.6^5 / (0.6^5 + 0.4^5) = 0.88
  EXPECT_EQ(support(options, logits), (std::set<std::int64_t>{1}));
}

TEST(Sampler, ATinyTemperatureIsGreedy) {
  SamplingOptions options;
  options.temperature = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(support(options, {1.0F, -kInfinity, 2.0F, -5.0F}), std::set<std::int64_t>{2});
}

/// Sum of (observed - expected)^2 / expected over the tokens.
double chi_square(const SamplingOptions& options,
                  const std::vector<float>& logits,
                  const std::vector<double>& expected,
                  std::int64_t draws) {
  Sampler sampler(options);
  std::vector<double> observed(expected.size());
  for (std::int64_t i = 0; i < draws; ++i) {
    std::vector<float> copy = logits;
    ++observed[static_cast<std::size_t>(sampler.sample(copy, {}, i).token)];
  }
  double sum = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double wanted = expected[i] * static_cast<double>(draws);
    if (wanted > 0) sum += (observed[i] - wanted) * (observed[i] - wanted) / wanted;
    if (wanted == 0 && observed[i] > 0) return std::numeric_limits<double>::infinity();
  }
  return sum;
}

// Seeds are fixed, so these do not flicker; 99.9 % points of chi-square.
TEST(Sampler, DrawsFollowTheSoftmax) {
  const std::vector<double> p = {0.15, 0.5, 0.05, 0.3};
  SamplingOptions options;
  options.temperature = 1.0F;
  options.seed = 11;
  EXPECT_LT(chi_square(options, logits_of(p), p, 20000), 16.27);  // 3 degrees of freedom
}

TEST(Sampler, DrawsFollowTheSoftmaxAtTheTemperature) {
  const std::vector<double> p = {0.15, 0.5, 0.05, 0.3};
  std::vector<double> tempered;
  for (const double value : p) tempered.push_back(std::sqrt(value));  // temperature 2
  const double sum = std::accumulate(tempered.begin(), tempered.end(), 0.0);
  for (double& value : tempered) value /= sum;
  SamplingOptions options;
  options.temperature = 2.0F;
  options.seed = 12;
  EXPECT_LT(chi_square(options, logits_of(p), tempered, 20000), 16.27);
}

TEST(Sampler, DrawsFollowTheRenormalisedDistributionAfterFilters) {
  SamplingOptions options;
  options.temperature = 1.0F;
  options.top_p = 0.9F;  // drops 0.05
  options.seed = 13;
  EXPECT_LT(chi_square(options,
                       logits_of({0.15, 0.5, 0.05, 0.3}),
                       {0.15 / 0.95, 0.5 / 0.95, 0.0, 0.3 / 0.95},
                       20000),
            13.82);  // 2 degrees of freedom
}

TEST(Sampler, ADrawDependsOnSeedAndIndexAndNothingElse) {
  SamplingOptions options;
  options.temperature = 1.0F;
  options.seed = 5;
  const std::vector<float> logits = random_logits(1000, 1.0F);
  Sampler in_order(options);
  Sampler beside_others(options);
  Ids straight;
  for (std::int64_t i = 0; i < 20; ++i) {
    std::vector<float> copy = logits;
    straight.push_back(in_order.sample(copy, {}, i).token);
  }
  for (std::int64_t i = 19; i >= 0; --i) {
    std::vector<float> noise = random_logits(1000, 2.0F, static_cast<unsigned>(i));
    beside_others.sample(noise, {}, i + 100);
    std::vector<float> copy = logits;
    EXPECT_EQ(beside_others.sample(copy, {}, i).token, straight[static_cast<std::size_t>(i)]);
  }
  options.seed = 6;
  Ids reseeded;
  for (std::int64_t i = 0; i < 20; ++i) reseeded.push_back(sample(options, logits, {}, i).token);
  EXPECT_NE(reseeded, straight);
}

TEST(Sampler, FiltersThatKeepAllDoNotChangeTheDraw) {
  SamplingOptions options;
  options.temperature = 1.0F;
  SamplingOptions filtered = options;
  filtered.top_k = 1000;
  filtered.top_p = std::nextafter(1.0F, 0.0F);
  filtered.min_p = 1e-30F;
  const std::vector<float> logits = random_logits(1000, 0.5F);
  for (std::int64_t i = 0; i < 30; ++i) {
    EXPECT_EQ(sample(options, logits, {}, i).token, sample(filtered, logits, {}, i).token);
  }
}

TEST(Sampler, LogitsThatAreNotNumbersAreNumericErrors) {
  for (const float bad : {kNan, kInfinity}) {
    for (const std::size_t place : {0U, 5U, 16U, 39U}) {
      std::vector<float> logits(40, 1.0F);
      logits[place] = bad;
      Sampler sampler({});
      EXPECT_THROW(static_cast<void>(sampler.score(logits, 0, -1)), NumericError);
      try {
        sampler.sample(logits, {}, 0);
        ADD_FAILURE() << "accepted " << bad << " at " << place;
      } catch (const NumericError& error) {
        EXPECT_NE(std::string(error.what()).find("token " + std::to_string(place) + " "),
                  std::string::npos)
            << error.what();
      }
    }
  }
  EXPECT_THROW(sample({}, {-kInfinity, -kInfinity}), NumericError);
}

TEST(Sampler, ThrowsWhenNoTokenIsLeft) {
  SamplingOptions options;
  options.min_tokens = 1;
  options.stop_token_ids = {0, 1};
  EXPECT_THROW(sample(options, {1, 2}), NumericError);
}

TEST(Sampler, RejectsIdsOutsideTheVocabulary) {
  SamplingOptions options;
  options.repetition_penalty = 1.1F;
  EXPECT_THROW(sample(options, {1, 2}, {2}), ConfigError);
  EXPECT_THROW(sample(options, {1, 2}, {-1}), ConfigError);
  EXPECT_THROW(sample({}, {}), ConfigError);
  const std::vector<float> logits = {1, 2};
  EXPECT_THROW(static_cast<void>(Sampler({}).score(logits, 2, -1)), ConfigError);
  EXPECT_THROW(static_cast<void>(Sampler({}).score(logits, -1, -1)), ConfigError);
}

struct BadOption {
  const char* name;
  std::function<void(SamplingOptions&)> spoil;
};

class SamplingOptionsReject : public testing::TestWithParam<BadOption> {};

TEST_P(SamplingOptionsReject, AndNameTheOption) {
  SamplingOptions options;
  GetParam().spoil(options);
  try {
    options.validate();
    ADD_FAILURE() << "accepted a bad " << GetParam().name;
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find(GetParam().name), std::string::npos) << error.what();
  }
  EXPECT_THROW(Sampler{options}, ConfigError);
}

const BadOption kBadOptions[] = {
    {"temperature", [](SamplingOptions& o) { o.temperature = -0.1F; }},
    {"temperature", [](SamplingOptions& o) { o.temperature = kInfinity; }},
    {"temperature", [](SamplingOptions& o) { o.temperature = kNan; }},
    {"top_k", [](SamplingOptions& o) { o.top_k = -1; }},
    {"top_p", [](SamplingOptions& o) { o.top_p = 0.0F; }},
    {"top_p", [](SamplingOptions& o) { o.top_p = 1.1F; }},
    {"top_p", [](SamplingOptions& o) { o.top_p = kNan; }},
    {"min_p", [](SamplingOptions& o) { o.min_p = -0.1F; }},
    {"min_p", [](SamplingOptions& o) { o.min_p = 1.1F; }},
    {"repetition_penalty", [](SamplingOptions& o) { o.repetition_penalty = 0.0F; }},
    {"repetition_penalty", [](SamplingOptions& o) { o.repetition_penalty = kInfinity; }},
    {"presence_penalty", [](SamplingOptions& o) { o.presence_penalty = 2.1F; }},
    {"presence_penalty", [](SamplingOptions& o) { o.presence_penalty = kNan; }},
    {"frequency_penalty", [](SamplingOptions& o) { o.frequency_penalty = -2.1F; }},
    {"logit_bias", [](SamplingOptions& o) { o.logit_bias = {{3, kInfinity}}; }},
    {"logit_bias", [](SamplingOptions& o) { o.logit_bias = {{-1, 1.0F}}; }},
    {"max_tokens", [](SamplingOptions& o) { o.max_tokens = 0; }},
    {"min_tokens", [](SamplingOptions& o) { o.min_tokens = -1; }},
    {"min_tokens", [](SamplingOptions& o) { o.min_tokens = o.max_tokens + 1; }},
    {"logprobs", [](SamplingOptions& o) { o.num_logprobs = -2; }},
    {"prompt_logprobs", [](SamplingOptions& o) { o.num_prompt_logprobs = -2; }},
    {"valid_vocab", [](SamplingOptions& o) { o.valid_vocab = -1; }},
};

INSTANTIATE_TEST_SUITE_P(EveryOption, SamplingOptionsReject, testing::ValuesIn(kBadOptions));

TEST(SamplingOptions, DefaultsAreValid) { EXPECT_NO_THROW(SamplingOptions().validate()); }

}  // namespace
}  // namespace hybridgen
