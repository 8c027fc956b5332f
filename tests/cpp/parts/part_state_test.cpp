// SPDX-License-Identifier: Apache-2.0
// What each part says of its state is so: with nothing to keep a new part answers as the old one,
// what is derived from keys comes back with the keys, and what must be saved does not.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "device/resident_cache.h"
#include "hybridgen/core/error.h"
#include "hybridgen/parts/part_roles.h"
#include "kernels/cpu_kernels.h"
#include "kvcache/host_kv_store.h"
#include "parts/host_pool.h"
#include "parts/partial_keys.h"
#include "parts/parts.h"
#include "parts/prompt_scores.h"
#include "selection/hgca_selector.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kGroups = 2;
constexpr std::int64_t kPerGroup = 2;
constexpr std::int64_t kDim = 8;
constexpr std::int64_t kTokens = 96;     // of which the last 16 stay on the device
constexpr std::int64_t kOffloaded = 80;  // 64 with the prompt, 16 later
constexpr std::int64_t kPrompt = 64;
constexpr std::int64_t kChosen = 12;

const SelectorShape kShape{1, kGroups, kPerGroup, kDim, kTokens};

ModelConfig config() {
  ModelConfig result;
  result.num_layers = 1;
  result.num_heads = kGroups * kPerGroup;
  result.num_kv_heads = kGroups;
  result.head_dim = kDim;
  return result;
}

/// The keys of a request in one layer, and where they lie.
struct Keys {
  explicit Keys(KeyLayout layout)
      : tensor(at::randn({kGroups, kTokens, kDim}, at::make_generator<at::CPUGeneratorImpl>(5)) *
               at::randn({1, kTokens, 1}, at::make_generator<at::CPUGeneratorImpl>(6)).exp()),
        store({.num_layers = 1,
               .num_kv_heads = kGroups,
               .head_dim = kDim,
               .capacity = kTokens,
               .key_layout = layout}),
        resident(config(), tensor.options(), kTokens) {
    const KvRowsView view{tensor.const_data_ptr(), kTokens * kDim, kDim};
    store.grow(kOffloaded);
    store.write(0, {0, kOffloaded}, view, view);
  }

  void offload(KvPart& part, TokenRange tokens) const {
    part.on_offload({.layer = 0,
                     .tokens = tokens,
                     .host = store,
                     .keys = tensor,
                     .first_row = tokens.begin,
                     .resident = resident});
  }

  at::Tensor tensor;
  HostKvStore store;
  ResidentCache resident;
};

std::vector<float> uniform(std::int64_t count, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = static_cast<float>(generator() % 1000) / 1000.0F;
  return numbers;
}

/// A prompt, its attention weights, and decode steps in which more tokens leave.
void live_through(TokenSelector& selector, const Keys& keys) {
  const std::vector<float> sums = uniform(kPerGroup * kPrompt, 1);
  for (std::int64_t g = 0; g < kGroups; ++g) {
    selector.on_prefill(0,
                        g,
                        {.tokens = {0, kPrompt},
                         .num_queries = kPerGroup,
                         .num_rows = kPrompt,
                         .sums = sums.data(),
                         .stride = kPrompt});
  }
  keys.offload(selector, {0, 48});
  const std::vector<float> weights = uniform(kPerGroup * kTokens, 2);
  for (std::int64_t step = 0; step < 32; ++step) {
    const std::int64_t first = 48 + step;
    for (std::int64_t g = 0; g < kGroups; ++g) {
      selector.on_decode(0,
                         g,
                         {.num_queries = kPerGroup,
                          .resident = {first, kPrompt + step + 1},
                          .weights = weights.data() + step,
                          .stride = kTokens - 32});
    }
    keys.offload(selector, {first, first + 1});
  }
}

/// What a selector chooses now; none if it cannot.
using Answer = std::optional<std::vector<std::int32_t>>;

Answer answer_of(const TokenSelector& selector) {
  std::vector<std::int32_t> answer;
  std::vector<std::int32_t> planned;
  std::vector<float> scratch;
  const std::vector<float> logits = uniform(kOffloaded, 3);
  const std::vector<float> queries = uniform(kPerGroup * kDim, 4);
  try {
    for (std::int64_t g = 0; g < kGroups; ++g) {
      if (selector.strategy() == SelectionStrategy::kPreQkt) {
        std::ranges::copy(selector.plan({0, g, kOffloaded, kChosen, queries}, planned),
                          std::back_inserter(answer));
        continue;
      }
      for (std::int64_t r = 0; r < kPerGroup; ++r) {
        std::vector<std::int32_t> positions(kChosen);
        std::vector<float> values(kChosen);
        selector.select(0, g * kPerGroup + r, logits, positions, values, scratch);
        std::ranges::copy(positions, std::back_inserter(answer));
      }
    }
  } catch (const std::exception&) {
    return std::nullopt;
  }
  return answer;
}

struct Case {
  std::string name;
  std::function<std::unique_ptr<TokenSelector>()> make;
  PartState state;
};

Case of_registry(const std::string& name, PartState state) {
  return {name, [name] { return make_selector(name, kShape); }, state};
}

class Selectors : public ::testing::TestWithParam<Case> {};

TEST_P(Selectors, SayWhatOfTheirStateComesBackWithTheKeys) {
  const Keys keys(KeyLayout::kBlocked);
  const auto lived = GetParam().make();
  live_through(*lived, keys);
  const auto told = GetParam().make();
  keys.offload(*told, {0, kOffloaded});
  const auto fresh = GetParam().make();
  const Answer expected = answer_of(*lived);
  ASSERT_TRUE(expected);
  EXPECT_EQ(lived->state(), GetParam().state);
  EXPECT_EQ(answer_of(*told) == expected, !lived->state().saved);
  EXPECT_EQ(answer_of(*fresh) == expected, lived->state() == PartState{});
}

INSTANTIATE_TEST_SUITE_P(
    All,
    Selectors,
    ::testing::Values(of_registry("topk", {}),
                      of_registry("sinks_recent", {}),
                      of_registry("block_digests", {.from_keys = true, .saved = false}),
                      of_registry("h2o", {.from_keys = false, .saved = true}),
                      of_registry("keyformer", {.from_keys = false, .saved = true}),
                      Case{"hgca",
                           [] {
                             return make_hgca_selector(kShape,
                                                       {.beta = 1.0, .keep_min = 1, .groups = 2});
                           },
                           {.from_keys = false, .saved = true}}),
    [](const auto& one) { return one.param.name; });

TEST(PartialKeysState, IsTheColumnsWhatTheyKeepOfTheKeysComesBack) {
  const Keys keys(KeyLayout::kRows);
  const auto ops = make_aten_ops();
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
  const at::Tensor prompt = at::randn({30, kGroups * kPerGroup, kDim}, generator);
  const at::Tensor query = at::randn({kGroups * kPerGroup, kDim}, generator);
  const auto make = [&] {
    return PartialKeys(config(), keys.tensor.options(), {.column_share = 0.25}, kTokens);
  };
  const auto plan_of = [&](const PartialKeys& part) {
    PlanItem item = part.plan(kOffloaded, kChosen);
    item.guesses = at::empty({kGroups, kOffloaded});
    item.places = at::empty({kGroups, kChosen}, at::kInt);
    ops->plan(query.unsqueeze(0), {.items = {&item, 1}});
    return item.places;
  };
  PartialKeys lived = make();
  lived.choose_columns(0, prompt);
  for (std::int64_t t = 0; t < kOffloaded; t += 20) keys.offload(lived, {t, t + 20});
  PartialKeys restored = make();
  restored.choose_columns(0, prompt);  // stands for columns that were saved
  keys.offload(restored, {0, kOffloaded});
  PartialKeys told = make();
  keys.offload(told, {0, kOffloaded});
  EXPECT_EQ(lived.state(), (PartState{.from_keys = true, .saved = true}));
  EXPECT_TRUE(at::equal(plan_of(restored), plan_of(lived)));
  EXPECT_FALSE(at::equal(plan_of(told), plan_of(lived)));
}

TEST(ShadowState, IsHowManyKeysCalibratedItTheCopyComesBack) {
  const Keys keys(KeyLayout::kRows);
  const PartFactory factory = shadow_scoring_part(ShadowPrecision::kInt4, 2.0);
  const PartContext context{.config = config(), .request = {}, .max_offloaded = kTokens};
  const auto make = [&](std::int64_t calibrated_by) {
    std::unique_ptr<KvPart> part = factory.make(context);
    part->before_step(calibrated_by, &keys.store);
    keys.offload(*part, {calibrated_by, kOffloaded});
    return part;
  };
  const auto scores_of = [&](const KvPart& part) {
    const auto& proxy = dynamic_cast<const KeyProxy&>(part);
    KeyProxy::Queries prepared;
    proxy.prepare(0, 1, uniform(kPerGroup * kDim, 4), prepared);
    std::vector<float> scores(kPerGroup * kOffloaded);
    proxy.score(kernels::cpu_kernels(kernels::resolve_isa("auto")),
                0,
                1,
                prepared,
                {0, kOffloaded},
                scores.data(),
                kOffloaded);
    return scores;
  };
  std::unique_ptr<KvPart> lived = factory.make(context);
  lived->before_step(48, &keys.store);
  for (std::int64_t t = 48; t < kOffloaded; ++t) keys.offload(*lived, {t, t + 1});
  EXPECT_EQ(lived->state(), (PartState{.from_keys = true, .saved = true}));
  EXPECT_EQ(scores_of(*make(48)), scores_of(*lived));
  EXPECT_NE(scores_of(*make(kOffloaded)), scores_of(*lived));
}

TEST(HostPoolState, IsWhatWasFetchedWhichKeysDoNotTell) {
  const Keys keys(KeyLayout::kRows);
  const auto make = [&] {
    HostPool pool(1, kGroups, kOffloaded, PoolPolicy::kCounter);
    keys.offload(pool, {0, kOffloaded});
    return pool;
  };
  HostPool lived = make();
  const std::vector<std::int32_t> fetched = {0, 1, 2};
  lived.on_fetch(0, 0, fetched);
  EXPECT_EQ(lived.state(), (PartState{.from_keys = false, .saved = true}));
  EXPECT_EQ(lived.replace(0, 0), 3);
  EXPECT_EQ(make().replace(0, 0), 0);
}

TEST(RetentionState, IsWhoWasKeptWhichKeysDoNotTell) {
  const auto policy = make_sinks_window_retention({1, kGroups, kPerGroup}, 2, 4);
  policy->keep_after_prefill(0, 0, 20, {});
  EXPECT_EQ(policy->state(), (PartState{.from_keys = false, .saved = true}));
  EXPECT_EQ(policy->positions(0, 0).size(), 6U);
  EXPECT_TRUE(make_sinks_window_retention({1, kGroups, kPerGroup}, 2, 4)->positions(0, 0).empty());
}

TEST(PromptScoresState, IsNothingOnceAPolicyHasChosenByThem) {
  const ModelConfig shape = config();
  const auto part =
      prompt_scores_part().make({.config = shape, .request = {}, .prompt_capacity = 30});
  auto& scores = dynamic_cast<PromptScores&>(*part);
  const std::vector<float> sums(static_cast<std::size_t>(kPerGroup * 30), 0.5F);
  scores.on_prefill(0,
                    0,
                    {.tokens = {0, 30},
                     .num_queries = kPerGroup,
                     .num_rows = 30,
                     .sums = sums.data(),
                     .stride = 30});
  ASSERT_EQ(scores.sums(0, 0, 30).size(), 30U);
  for (const float sum : scores.sums(0, 0, 30)) {
    EXPECT_EQ(sum, 0.5F * static_cast<float>(kPerGroup));
  }
  scores.forget();
  EXPECT_EQ(scores.state(), PartState{});
  EXPECT_TRUE(scores.sums(0, 0, 30).empty());
}

}  // namespace
}  // namespace hybridgen
