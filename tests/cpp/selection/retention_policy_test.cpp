// SPDX-License-Identifier: Apache-2.0
// What every retention policy promises, and the choices of all of them against a plain model.
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string_view>

#include "hybridgen/core/error.h"
#include "kernels/gumbel.h"
#include "retention_test_support.h"

namespace hybridgen::test {
namespace {

constexpr RetentionShape kShape{.num_layers = 2, .num_kv_heads = 2, .query_heads_per_kv_head = 2};

struct Kind {
  std::string_view name;
  const char* operation;
  std::unique_ptr<RetentionPolicy> (*make)(const RetentionShape&, std::int64_t, std::int64_t);
};

constexpr KeyformerScore kScore{.tau_end = 2.0, .num_steps = 40, .seed = 3, .request = 11};

const Kind kSinksWindow{
    "sinks_window", "[sinks and window retention]", make_sinks_window_retention};
const Kind kHeavyHitter{"heavy_hitter", "[heavy hitter retention]", make_heavy_hitter_retention};
const Kind kKeyformer{
    "keyformer",
    "[keyformer retention]",
    [](const RetentionShape& shape, std::int64_t key_tokens, std::int64_t recent) {
      return make_keyformer_retention(shape, key_tokens, recent, kScore);
    }};

std::string name_of(const ::testing::TestParamInfo<Kind>& kind) {
  return std::string(kind.param.name);
}

class AnyRetention : public ::testing::TestWithParam<Kind> {};

INSTANTIATE_TEST_SUITE_P(Retention,
                         AnyRetention,
                         ::testing::Values(kSinksWindow, kHeavyHitter, kKeyformer),
                         name_of);

/// Random numbers in fractions of 64; few of them, so that sums of them are often equal.
std::vector<float> random_weights(std::mt19937& random, std::size_t count) {
  std::vector<float> weights(count);
  for (float& weight : weights) weight = static_cast<float>(random() % 8) / 64.0F;
  return weights;
}

TEST_P(AnyRetention, KeepsAPromptShorterThanTheBudgetWholeAndGrowsToTheBudget) {
  for (std::int64_t prompt = 0; prompt <= 5; ++prompt) {
    const auto policy = GetParam().make(kShape, 2, 3);
    Positions expected(static_cast<std::size_t>(prompt));
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(prefill(*policy, std::vector<float>(expected.size())), expected);
    const std::vector<float> weights(2 * 6, 0.125F);
    for (std::int64_t position = prompt; position < 5; ++position) {
      EXPECT_EQ(policy->replace(0, 0, position, weights.data(), 6), position);
    }
    EXPECT_LT(policy->replace(0, 0, 5, weights.data(), 6), 5);
  }
}

TEST_P(AnyRetention, TakesAMissingPromptForAnEmptyOne) {
  const auto policy = GetParam().make(kShape, 2, 3);
  EXPECT_TRUE(policy->positions(0, 0).empty());
  const std::vector<float> weights(2, 1.0F);
  EXPECT_EQ(policy->replace(0, 0, 0, weights.data(), 1), 0);
}

TEST_P(AnyRetention, ABudgetAboveAllTokensTakesNoMemoryInAdvance) {
  const auto policy = GetParam().make(kShape, 2147483647, 2147483647);
  EXPECT_EQ(policy->budget(), 2 * std::int64_t{2147483647});
  EXPECT_EQ(prefill(*policy, {1, 2, 3}), (Positions{0, 1, 2}));
}

TEST_P(AnyRetention, AFullCacheDoesNotAllocate) {
  const auto policy = GetParam().make({}, 20, 30);
  prefill(*policy, std::vector<float>(10));
  const std::int32_t* const positions = policy->positions(0, 0).data();
  const double* const accumulated = policy->wants_weights() ? scores(*policy).data() : nullptr;
  std::mt19937 random(2);
  for (std::int64_t position = 10; position < 200; ++position) {
    decode(*policy, position, random_weights(random, 51));
  }
  EXPECT_EQ(policy->positions(0, 0).data(), positions);
  if (accumulated != nullptr) {
    EXPECT_EQ(scores(*policy).data(), accumulated);
  }
}

TEST_P(AnyRetention, AnotherPromptStartsAnew) {
  const auto used = GetParam().make({}, 2, 2);
  const auto fresh = GetParam().make({}, 2, 2);
  std::mt19937 random(3);
  prefill(*used, random_weights(random, 9));
  for (std::int64_t position = 9; position < 20; ++position) {
    decode(*used, position, random_weights(random, 5));
  }
  const std::vector<float> sums = random_weights(random, 7);
  EXPECT_EQ(prefill(*used, sums), prefill(*fresh, sums));
  for (std::int64_t position = 7; position < 30; ++position) {
    const std::vector<float> weights = random_weights(random, 5);
    ASSERT_EQ(decode(*used, position, weights), decode(*fresh, position, weights));
  }
}

TEST_P(AnyRetention, LayersAndHeadsDoNotTouchEachOther) {
  const auto policy = GetParam().make(kShape, 1, 2);
  const auto alone = GetParam().make(kShape, 1, 2);
  std::mt19937 random(5);
  const std::vector<float> sums = random_weights(random, 6);
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    for (std::int64_t head = 0; head < 2; ++head) policy->keep_after_prefill(layer, head, 6, sums);
  }
  alone->keep_after_prefill(1, 0, 6, sums);
  for (std::int64_t position = 6; position < 30; ++position) {
    for (std::int64_t layer = 0; layer < 2; ++layer) {
      for (std::int64_t head = 0; head < 2; ++head) {
        const std::vector<float> weights = random_weights(random, 2 * 4);
        const std::int64_t slot = policy->replace(layer, head, position, weights.data(), 4);
        if (layer == 1 && head == 0) {
          ASSERT_EQ(alone->replace(1, 0, position, weights.data(), 4), slot);
        }
      }
    }
  }
}

TEST_P(AnyRetention, RejectsAnEmptyShape) {
  const auto make = [](RetentionShape shape) { return [=] { GetParam().make(shape, 1, 1); }; };
  const char* const operation = GetParam().operation;
  expect_error<ConfigError>(make({.num_layers = 0}), {operation, "number of layers is 0", "1 to"});
  expect_error<ConfigError>(make({.num_kv_heads = -2}), {operation, "number of KV heads is -2"});
  expect_error<ConfigError>(make({.query_heads_per_kv_head = 0}),
                            {operation, "number of query heads per KV head is 0"});
}

TEST_P(AnyRetention, RejectsALayerOrHeadTheShapeLacks) {
  const auto policy = GetParam().make(kShape, 1, 1);
  const std::vector<float> numbers(4, 0.5F);
  const std::vector<std::function<void(std::int64_t, std::int64_t)>> calls = {
      [&](std::int64_t layer, std::int64_t head) { policy->positions(layer, head); },
      [&](std::int64_t layer, std::int64_t head) {
        policy->keep_after_prefill(layer, head, 4, numbers);
      },
      [&](std::int64_t layer, std::int64_t head) {
        policy->replace(layer, head, 0, numbers.data(), 1);
      }};
  const char* const operation = GetParam().operation;
  for (const auto& call : calls) {
    expect_error<ConfigError>([&] { call(2, 0); }, {operation, "layer is 2", "0 to 1", "pass"});
    expect_error<ConfigError>([&] { call(-1, 0); }, {operation, "layer is -1"});
    expect_error<ConfigError>([&] { call(0, 2); }, {operation, "KV head is 2", "0 to 1"});
    expect_error<ConfigError>([&] { call(0, -1); }, {operation, "KV head is -1"});
  }
}

TEST_P(AnyRetention, RejectsANegativeOrTooLongPrompt) {
  const auto policy = GetParam().make({}, 1, 1);
  for (const std::int64_t num_tokens : {std::int64_t{-1}, std::int64_t{1} << 31}) {
    expect_error<ConfigError>([&] { policy->keep_after_prefill(0, 0, num_tokens, {}); },
                              {GetParam().operation, "number of prompt tokens is ", "2147483647"});
  }
}

TEST_P(AnyRetention, RejectsAPositionThatIsNotTheNext) {
  const auto policy = GetParam().make({}, 2, 2);
  prefill(*policy, std::vector<float>(6));
  for (const std::int64_t position : {-1, 5, 7}) {
    expect_error<ConfigError>([&] { decode(*policy, position, std::vector<float>(5)); },
                              {GetParam().operation, "position of the new token", "allowed: 6"});
  }
  EXPECT_NO_THROW(decode(*policy, 6, std::vector<float>(5)));
}

class AScoredRetention : public AnyRetention {};

INSTANTIATE_TEST_SUITE_P(Retention,
                         AScoredRetention,
                         ::testing::Values(kHeavyHitter, kKeyformer),
                         name_of);

TEST_P(AScoredRetention, RejectsMissingSumsAndWeights) {
  const auto policy = GetParam().make(kShape, 2, 2);
  const char* const operation = GetParam().operation;
  expect_error<ConfigError>([&] { policy->keep_after_prefill(0, 0, 6, {}); },
                            {operation, "number of sums is 0", "allowed: 6"});
  prefill(*policy, std::vector<float>(6));
  expect_error<ConfigError>([&] { policy->replace(0, 0, 6, nullptr, 5); },
                            {operation, "weights is null"});
  const std::vector<float> weights(10, 0.2F);
  expect_error<ConfigError>([&] { policy->replace(0, 0, 6, weights.data(), 4); },
                            {operation, "stride of the weights is 4", "allowed: >= 5"});
}

TEST_P(AScoredRetention, NanIsANumericErrorThatNamesLayerAndHeadAndChangesNothing) {
  const auto policy = GetParam().make(kShape, 2, 2);
  const char* const operation = GetParam().operation;
  const std::vector<float> sums = {1, 2, 3, 4, 5, 6};
  policy->keep_after_prefill(1, 0, 6, sums);
  const Positions before = ascending(policy->positions(1, 0));
  const std::vector<double> scored(scores(*policy, 1, 0).begin(), scores(*policy, 1, 0).end());
  for (std::size_t at = 0; at < 6; ++at) {
    std::vector<float> bad = sums;
    bad[at] = std::numeric_limits<float>::quiet_NaN();
    expect_error<NumericError>([&] { policy->keep_after_prefill(1, 0, 6, bad); },
                               {operation, "a sum of scores of layer 1, KV head 0 is NaN"});
  }
  for (std::size_t at = 0; at < 10; ++at) {
    std::vector<float> bad(10, 0.2F);
    bad[at] = std::numeric_limits<float>::quiet_NaN();
    expect_error<NumericError>([&] { policy->replace(1, 0, 6, bad.data(), 5); },
                               {operation, "a score of layer 1, KV head 0 is NaN"});
  }
  EXPECT_EQ(ascending(policy->positions(1, 0)), before);
  EXPECT_TRUE(std::equal(scored.begin(), scored.end(), scores(*policy, 1, 0).begin()));
  const std::vector<float> good(10, 0.2F);
  EXPECT_NO_THROW(policy->replace(1, 0, 6, good.data(), 5));
}

/// The definition, without slots: a score for every token that is still there.
class Model {
 public:
  Model(std::int64_t heavy, std::int64_t recent) : heavy_(heavy), recent_(recent) {}

  /// Adds the newest token's row, then drops until the budget holds.
  void add(const std::map<std::int64_t, double>& row) {
    for (const auto& [position, score] : row) scores_[position] += score;
  }
  void drop() {
    while (static_cast<std::int64_t>(scores_.size()) > heavy_ + recent_) {
      const std::int64_t newest = scores_.rbegin()->first;
      auto worst = scores_.begin();
      for (auto it = scores_.begin(); it->first <= newest - recent_; ++it) {
        if (it->second <= worst->second) worst = it;  // positions ascend: the newer of equal ones
      }
      dropped_mass_ += worst->second;
      dropped_.insert(worst->first);
      scores_.erase(worst);
    }
  }

  const std::map<std::int64_t, double>& scores() const { return scores_; }
  const std::set<std::int64_t>& dropped() const { return dropped_; }
  double mass() const {
    double sum = dropped_mass_;
    for (const auto& [position, score] : scores_) sum += score;
    return sum;
  }

 private:
  std::int64_t heavy_;
  std::int64_t recent_;
  std::map<std::int64_t, double> scores_;
  std::set<std::int64_t> dropped_;
  double dropped_mass_ = 0.0;
};

/// A row of `count` weights that adds up to 1: a few of 64 equal shares each, or a random softmax.
std::vector<float> softmax_row(std::mt19937& random, std::size_t count, bool coarse) {
  std::vector<float> weights(count, 0.0F);
  if (coarse) {
    for (int share = 0; share < 64; ++share) weights[random() % count] += 1.0F / 64.0F;
    return weights;
  }
  std::normal_distribution<double> logits(0.0, 2.0);
  double total = 0.0;
  for (float& weight : weights) {
    weight = static_cast<float>(std::exp(logits(random)));
    total += weight;
  }
  for (float& weight : weights) weight = static_cast<float>(weight / total);
  return weights;
}

/// Keyformer's scores of a row by their definition, in float64.
std::vector<double> tempered(const std::vector<float>& weights,
                             std::span<const std::int32_t> positions,
                             const kernels::GumbelKey& key,
                             double tau) {
  std::vector<double> scores;
  double total = 0.0;
  for (std::size_t j = 0; j < weights.size(); ++j) {
    const double noise = kernels::gumbel_at(key, positions[j]);
    scores.push_back(weights[j] == 0.0F ? 0.0 : std::exp((std::log(weights[j]) + noise) / tau));
    total += scores.back();
  }
  for (double& score : scores) score /= total;
  return scores;
}

/// Runs a random request through `policy` and the model; `coarse` makes equal scores common.
void expect_model(const Kind& kind, std::uint32_t seed, bool coarse) {
  std::mt19937 random(seed);
  const bool noisy = kind.name == kKeyformer.name;
  const auto any_below = [&](std::size_t end) { return static_cast<std::int64_t>(random() % end); };
  const std::int64_t heavy = any_below(6);
  const std::int64_t recent = 1 + any_below(5);
  const std::int64_t prompt = any_below(25);
  const std::int64_t num_heads = 1 + any_below(3);
  const auto policy = kind.make({.query_heads_per_kv_head = num_heads}, heavy, recent);
  Model model(heavy, recent);

  std::vector<float> sums(static_cast<std::size_t>(prompt));
  for (std::size_t row = 0; row < sums.size(); ++row) {
    for (std::int64_t head = 0; head < num_heads; ++head) {
      const std::vector<float> weights = softmax_row(random, row + 1, coarse);
      for (std::size_t j = 0; j <= row; ++j) sums[j] += weights[j];
    }
  }
  std::map<std::int64_t, double> prompt_row;
  for (std::size_t j = 0; j < sums.size(); ++j) prompt_row[static_cast<std::int64_t>(j)] = sums[j];
  model.add(prompt_row);
  // All at once: dropping one by one gives the same, as only the lowest scores go.
  model.drop();
  const Positions chosen = prefill(*policy, sums);
  ASSERT_TRUE(std::is_sorted(chosen.begin(), chosen.end()));

  for (std::int64_t position = prompt; position < prompt + 60; ++position) {
    const std::span<const std::int32_t> slots = policy->positions(0, 0);
    Positions attended(slots.begin(), slots.end());
    attended.push_back(static_cast<std::int32_t>(position));
    const std::size_t stride = attended.size() + random() % 3;
    std::vector<float> weights(stride * static_cast<std::size_t>(num_heads), -1.0F);
    std::map<std::int64_t, double> row;
    for (std::int64_t head = 0; head < num_heads; ++head) {
      const std::vector<float> one = softmax_row(random, attended.size(), coarse);
      std::copy(one.begin(), one.end(), weights.begin() + head * static_cast<std::int64_t>(stride));
      std::vector<double> added(one.begin(), one.end());
      if (noisy) {
        const kernels::GumbelKey key{.seed = kScore.seed,
                                     .request = kScore.request,
                                     .layer = 0,
                                     .kv_head = 0,
                                     .row = position};
        added = tempered(one, attended, key, kScore.tau(position - prompt + 1));
      }
      for (std::size_t j = 0; j < attended.size(); ++j) row[attended[j]] += added[j];
    }
    model.add(row);
    model.drop();
    const std::int64_t slot =
        policy->replace(0, 0, position, weights.data(), static_cast<std::int64_t>(stride));
    const std::span<const std::int32_t> now = policy->positions(0, 0);
    ASSERT_EQ(now[static_cast<std::size_t>(slot)], position);
    ASSERT_EQ(now.size(), model.scores().size());
    for (std::size_t j = 0; j < now.size(); ++j) {
      ASSERT_FALSE(model.dropped().contains(now[j])) << "a dropped token is back: " << now[j];
      ASSERT_TRUE(model.scores().contains(now[j])) << "seed " << seed << ", at " << position;
      ASSERT_NEAR(scores(*policy)[j], model.scores().at(now[j]), 1e-4);
      if (static_cast<std::int64_t>(j) != slot) {
        ASSERT_EQ(now[j], attended[j]);
      }
    }
    ASSERT_NEAR(model.mass(), static_cast<double>((position + 1) * num_heads), 1e-4);
  }
}

TEST_P(AScoredRetention, ChoosesAsThePlainModelDoes) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    expect_model(GetParam(), seed, false);
    if (HasFatalFailure()) return;
  }
}

TEST(HeavyHitterRetention, ChoosesAsThePlainModelDoesWhenScoresAreOftenEqual) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    expect_model(kHeavyHitter, seed, true);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace hybridgen::test
