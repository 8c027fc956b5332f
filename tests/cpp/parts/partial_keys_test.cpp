// SPDX-License-Identifier: Apache-2.0
// InfiniGen's guesses, with both implementations of the device's operations.
#include "parts/partial_keys.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device/planning.h"
#include "device/resident_cache.h"
#include "kvcache/host_kv_store.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kGroups = 2;
constexpr std::int64_t kPerGroup = 2;
constexpr std::int64_t kDim = 16;

class PartialKeysWith : public testing::TestWithParam<std::string> {
 protected:
  PartialKeysWith() {
    at::manual_seed(7);
    config_.num_layers = 1;
    config_.num_heads = kGroups * kPerGroup;
    config_.num_kv_heads = kGroups;
    config_.head_dim = kDim;
  }

  /// Keys of `count` tokens, written in pieces that begin and end anywhere.
  PartialKeys partial_keys(double column_share, const at::Tensor& keys) const {
    const std::int64_t count = keys.size(1);
    PartialKeys partial(config_, keys.options(), {.column_share = column_share}, count);
    partial.choose_columns(0, at::randn({40, kGroups * kPerGroup, kDim}));
    std::int64_t done = 0;
    for (const std::int64_t piece : {std::int64_t{20}, std::int64_t{4}, std::int64_t{100}, count}) {
      const std::int64_t next = std::min(count, done + piece);
      if (next > done) {
        partial.write(0, done, keys.narrow(1, done, next - done));
      }
      done = next;
    }
    return partial;
  }

  /// [G, N]: of a KV head's query heads the largest logit counts.
  static at::Tensor true_logits(const at::Tensor& query, const at::Tensor& keys) {
    const at::Tensor heads = query.to(at::kFloat).view({kGroups, kPerGroup, kDim});
    return at::matmul(heads, keys.to(at::kFloat).transpose(1, 2)).amax(1) /
           std::sqrt(static_cast<double>(kDim));
  }

  /// What the device's operation plans for one row by these keys.
  PlanItem planned(const PartialKeys& partial,
                   const at::Tensor& query,
                   std::int64_t tokens,
                   std::optional<std::int64_t> count = 1,
                   std::int64_t layer = 0) const {
    PlanItem item = partial.plan(tokens, count);
    item.guesses = at::empty({kGroups, tokens});
    item.places = at::empty({kGroups, item.most}, at::kInt);
    ops_->plan(query.unsqueeze(0), {.items = {&item, 1}, .layer = layer});
    return item;
  }
  at::Tensor guess(const PartialKeys& partial,
                   const at::Tensor& query,
                   std::int64_t tokens,
                   std::int64_t layer = 0) const {
    return planned(partial, query, tokens, 1, layer).guesses;
  }

  static double largest_difference(const at::Tensor& a, const at::Tensor& b) {
    return (a - b).abs().max().item<double>();
  }

  ModelConfig config_;
  std::unique_ptr<DeviceOps> ops_ = GetParam() == "aten" ? make_aten_ops() : make_cpu_ops("auto");
};

INSTANTIATE_TEST_SUITE_P(Operations,
                         PartialKeysWith,
                         testing::Values("aten", "kernels"),
                         [](const auto& one) { return one.param; });

TEST_P(PartialKeysWith, AllColumnsAndTheTrueQueryGuessTheTrueLogits) {
  for (const std::int64_t count : {1, 24, 31, 32, 33, 64, 300, 5000}) {
    const at::Tensor keys = at::randn({kGroups, count, kDim});
    const at::Tensor query = at::randn({kGroups * kPerGroup, kDim});
    const PartialKeys partial = partial_keys(1.0, keys);
    for (const std::int64_t tokens : {std::int64_t{1}, (count + 1) / 2, count}) {
      const at::Tensor guessed = guess(partial, query, tokens);
      ASSERT_EQ(guessed.sizes(), at::IntArrayRef({kGroups, tokens}));
      EXPECT_LT(largest_difference(guessed, true_logits(query, keys.narrow(1, 0, tokens))), 1e-5)
          << tokens << " of " << count;
    }
  }
}

TEST_P(PartialKeysWith, KeysAndQueriesOfBfloat16LoseNoMoreThanTheirRounding) {
  const at::Tensor keys = at::randn({kGroups, 100, kDim}, at::kBFloat16);
  const at::Tensor query = at::randn({kGroups * kPerGroup, kDim}, at::kBFloat16);
  const PartialKeys partial = partial_keys(1.0, keys);
  // Turned keys and queries are rounded once each: 2^-8 of sums of 16 products of size about 1.
  EXPECT_LT(largest_difference(guess(partial, query, 100), true_logits(query, keys)),
            2.0 / 256.0 * kDim / std::sqrt(static_cast<double>(kDim)));
}

TEST_P(PartialKeysWith, FewColumnsGuessOtherLogits) {
  const at::Tensor keys = at::randn({kGroups, 24, kDim});
  const at::Tensor query = at::randn({kGroups * kPerGroup, kDim});
  const PartialKeys partial = partial_keys(0.25, keys);
  EXPECT_GT(largest_difference(guess(partial, query, 24), true_logits(query, keys)), 0.1);
}

// Two tokens of a step, and one of the next.
TEST_P(PartialKeysWith, ATokenReplacesAnotherOneInEveryHead) {
  constexpr std::int64_t kLayers = 2;
  config_.num_layers = kLayers;
  const at::Tensor keys = at::randn({kLayers, kGroups, 70, kDim});
  const at::Tensor query = at::randn({kGroups * kPerGroup, kDim});
  PartialKeys partial(config_, keys.options(), {.column_share = 1.0}, 70);
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    partial.choose_columns(layer, at::randn({40, kGroups * kPerGroup, kDim}));
    partial.write(layer, 0, keys.select(0, layer));
  }
  ResidentCache resident(config_, at::TensorOptions(at::kFloat), 9);
  resident.all_keys().normal_();
  for (const std::int64_t token : {3, 4, 7}) {
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      for (std::int64_t g = 0; g < kGroups; ++g) {
        const std::int64_t slot = (40 + 29 * g + 7 * layer + 11 * token) % 70;
        partial.on_replace({.layer = layer,
                            .kv_head = g,
                            .slot = slot,
                            .resident = resident,
                            .resident_slot = token});
        keys.select(0, layer).select(0, g).select(0, slot).copy_(
            resident.keys(layer).select(0, g).select(0, token));
      }
    }
    if (token == 4) {
      partial.end_step();
    }
  }
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    EXPECT_LT(largest_difference(guess(partial, query, 70, layer),
                                 true_logits(query, keys.select(0, layer))),
              1e-5);
  }
}

// Rows of a resident cache, of all layers at once, beside those that come layer by layer.
TEST_P(PartialKeysWith, ResidentRowsLeaveEveryLayer) {
  constexpr std::int64_t kLayers = 3;
  config_.num_layers = kLayers;
  ResidentCache resident(config_, at::TensorOptions(at::kFloat), 50);
  resident.all_keys().normal_();
  const HostKvStore host(
      {.num_layers = kLayers, .num_kv_heads = kGroups, .head_dim = kDim, .capacity = 50});
  const auto make = [&] {
    at::manual_seed(3);
    PartialKeys partial(config_, at::TensorOptions(at::kFloat), {.column_share = 0.25}, 50);
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      partial.choose_columns(layer, at::randn({40, kGroups * kPerGroup, kDim}));
    }
    return partial;
  };
  PartialKeys together = make();
  PartialKeys apart = make();
  for (const TokenRange tokens : {TokenRange{0, 30}, TokenRange{30, 31}, TokenRange{31, 45}}) {
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      together.on_offload({.layer = layer,
                           .tokens = tokens,
                           .host = host,
                           .keys = resident.keys(layer),
                           .first_row = tokens.begin + 5,
                           .resident = resident});
      apart.write(
          layer, tokens.begin, resident.keys(layer).narrow(1, tokens.begin + 5, tokens.size()));
    }
  }
  const at::Tensor query = at::randn({kGroups * kPerGroup, kDim});
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    EXPECT_TRUE(at::equal(guess(together, query, 45, layer), guess(apart, query, 45, layer)));
  }
}

TEST_P(PartialKeysWith, PlanTheBestGuessesInTokenOrder) {
  const at::Tensor keys = at::randn({kGroups, 300, kDim});
  const at::Tensor query = at::randn({kGroups * kPerGroup, kDim});
  const PartialKeys partial = partial_keys(0.25, keys);
  const at::Tensor guessed = guess(partial, query, 300);
  for (const std::int64_t count : {1, 5, 300}) {
    const PlanItem item = planned(partial, query, 300, count);
    ASSERT_EQ(item.most, count);
    const at::Tensor places = item.places.to(at::kLong);
    const at::Tensor best = std::get<0>(at::topk(guessed, count, -1));
    EXPECT_TRUE(at::equal(std::get<0>(at::sort(guessed.gather(1, places), -1, true)), best));
    EXPECT_TRUE(at::equal(std::get<0>(at::sort(places, -1)), places));
  }
}

TEST_P(PartialKeysWith, ANaNLeavesNoPlace) {
  for (const std::int64_t at : {0, 77, 299}) {
    const at::Tensor keys = at::randn({kGroups, 300, kDim});
    keys.select(0, 1).select(0, at).fill_(std::numeric_limits<float>::quiet_NaN());
    const PartialKeys partial = partial_keys(0.25, keys);
    const at::Tensor query = at::randn({kGroups * kPerGroup, kDim});
    for (const std::optional<std::int64_t> count : {std::optional<std::int64_t>(5), {}}) {
      EXPECT_TRUE((planned(partial, query, 300, count).places == 300).all().item<bool>());
    }
  }
}

// ---- How many

at::Tensor guesses(std::initializer_list<std::initializer_list<float>> rows) {
  std::vector<float> numbers;
  for (const auto& row : rows) {
    numbers.insert(numbers.end(), row.begin(), row.end());
  }
  const auto count = static_cast<std::int64_t>(rows.size());
  return at::tensor(numbers).view({count, -1});
}

std::int64_t fetch_count(const at::Tensor& guesses, double alpha, const TokenCount& most) {
  return count_near(guesses, alpha, most.resolve(guesses.size(1))).item<std::int64_t>();
}

TEST(FetchCount, CountsWhatIsStrictlyWithinAlphaOfTheLargestGuess) {
  // 1.0 is exactly alpha away.
  EXPECT_EQ(fetch_count(guesses({{5.0F, 4.0F, 0.9F, 1.0F}}), 4.0, TokenCount::all()), 2);
}

TEST(FetchCount, IsTheMeanOverTheHeadsRoundedDown) {
  // Two tokens of the first head and three of the second.
  EXPECT_EQ(
      fetch_count(
          guesses({{5.0F, 4.0F, 0.9F, 1.0F}, {5.0F, 4.0F, 3.0F, 1.0F}}), 4.0, TokenCount::all()),
      2);
}

TEST(FetchCount, IsAtLeastOne) {
  // Strictly within 0 of the largest guess is nothing.
  EXPECT_EQ(fetch_count(guesses({{5.0F, 4.0F}}), 0.0, TokenCount::all()), 1);
}

TEST(FetchCount, IsCapped) {
  const at::Tensor equal = at::zeros({2, 10});
  EXPECT_EQ(fetch_count(equal, 4.0, TokenCount::all()), 10);
  EXPECT_EQ(fetch_count(equal, 4.0, TokenCount::share(0.35)), 3);
  EXPECT_EQ(fetch_count(equal, 4.0, TokenCount::count(1)), 1);
  EXPECT_EQ(fetch_count(equal, 4.0, TokenCount::count(99)), 10);
}

}  // namespace
}  // namespace hybridgen
