// SPDX-License-Identifier: Apache-2.0
// LibTorch's operations where they have to do what the CPU's kernels do by themselves: attend in
// little memory, keep float32 logits unrounded, take the earlier of equal scores, pass NaN on.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "device/device_ops.h"
#include "support/peak_bytes.h"

namespace hybridgen {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

struct Attended {
  std::int64_t rows;
  std::int64_t keys;
  std::int64_t block;
  bool causal;
};

class AttentionInBlocks : public ::testing::TestWithParam<Attended> {};

INSTANTIATE_TEST_SUITE_P(Sizes,
                         AttentionInBlocks,
                         ::testing::Values(Attended{7, 29, 1, false},
                                           Attended{7, 29, 5, false},
                                           Attended{1, 30, 10, false},
                                           Attended{7, 29, 29, false},
                                           Attended{3, 1, 4, false},
                                           Attended{13, 13, 1, true},
                                           Attended{13, 13, 5, true},
                                           Attended{24, 24, 8, true},
                                           Attended{13, 13, 12, true},
                                           Attended{1, 1, 1, true}));

TEST_P(AttentionInBlocks, IsAttentionOverAllKeysAtOnce) {
  at::manual_seed(11);
  constexpr std::int64_t kHeads = 6;
  constexpr std::int64_t kGroups = 2;
  constexpr std::int64_t kHeadDim = 24;
  const auto [rows, count, block, causal] = GetParam();
  const at::Tensor query = at::randn({rows, kHeads, kHeadDim}) * 3.0;
  const at::Tensor keys = at::randn({kGroups, count, kHeadDim});
  const at::Tensor values = at::randn({kGroups, count, kHeadDim});
  const PartialAttention blocked =
      make_aten_ops(kHeads * rows * block)->partial_attention(query, keys, values, causal);
  // Every merge scales by exp(lse - lse'), whose argument is off by a rounding of either.
  const double merges = std::ceil(static_cast<double>(count) / static_cast<double>(block));
  for (const auto& ops : {make_aten_ops(), make_cpu_ops("auto")}) {
    const PartialAttention whole = ops->partial_attention(query, keys, values, causal);
    const double largest_lse = whole.lse.abs().max().item<double>();
    const double largest_value = values.abs().max().item<double>();
    // The sum of `count` products, and of as many exponentials, may be in another order.
    const double roundings = merges * (2.0 * largest_lse + 4.0) + static_cast<double>(count);
    EXPECT_LE((blocked.out - whole.out).abs().max().item<double>(),
              roundings * kEpsilon * largest_value)
        << ops->name();
    EXPECT_LE((blocked.lse - whole.lse).abs().max().item<double>(),
              roundings * kEpsilon * (1.0 + largest_lse))
        << ops->name();
  }
}

TEST(AttentionInBlocks, TakesNoMoreMemoryForMoreKeys) {
  constexpr std::int64_t kRows = 64;
  constexpr std::int64_t kHeads = 8;
  constexpr std::int64_t kGroups = 2;
  constexpr std::int64_t kHeadDim = 16;
  constexpr std::int64_t kElements = std::int64_t{1} << 16;  // 128 keys
  constexpr std::int64_t kBlock = kElements / (kHeads * kRows);
  const auto ops = make_aten_ops(kElements);
  const at::Tensor query = at::randn({kRows, kHeads, kHeadDim});
  // Two tensors of logits, the keys or the values of a block; the query, the sum so far, a block's
  // output and two temporary ones of their merge.
  const std::int64_t most = 4 * (2 * kElements + kGroups * kBlock * kHeadDim) +
                            5 * 4 * kRows * kHeads * kHeadDim +
                            8 * 4 * kRows * kHeads;  // log-sum-exps and shares
  for (const std::int64_t count : {500, 4000}) {
    const at::Tensor keys = at::randn({kGroups, count, kHeadDim}).to(at::kBFloat16);
    const testing::PeakBytes memory;
    ops->partial_attention(query, keys, keys, /*causal=*/false);
    EXPECT_LE(memory.peak(), most) << count;
    EXPECT_GT(memory.peak(), 4 * kElements) << "nothing was counted";
  }
}

class Operations : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<DeviceOps> ops_ = GetParam() == "aten" ? make_aten_ops() : make_cpu_ops("auto");
};

INSTANTIATE_TEST_SUITE_P(Both,
                         Operations,
                         ::testing::Values("kernels", "aten"),
                         [](const auto& name) { return name.param; });

TEST_P(Operations, GiveFloat32LogitsUnrounded) {
  at::manual_seed(3);
  for (const auto type : {at::kBFloat16, at::kHalf}) {
    const at::Tensor x = at::randn({3, 64}).to(type);
    const at::Tensor weight = at::randn({50, 64}).to(type);
    const at::Tensor bias = at::randn({50}).to(type);
    for (const at::Tensor& added : {bias, at::Tensor()}) {
      at::Tensor exact = x.to(at::kDouble).matmul(weight.to(at::kDouble).t());
      const at::Tensor sizes = x.to(at::kDouble).abs().matmul(weight.to(at::kDouble).abs().t());
      if (added.defined()) {
        exact += added;
      }
      at::Tensor y = at::empty({3, 50}, at::kFloat);
      ops_->linear(x, LinearWeight(weight), added, y);
      // Products of 16-bit numbers are exact in float32; 65 sums are rounded once each.
      EXPECT_TRUE(((y - exact).abs() <= 65 * kEpsilon * (sizes + 4.0)).all().item<bool>());
    }
  }
}

/// Places of the `count` largest of each row of scores: keys of one dimension, each the product of
/// itself with a query of 1, in blocks whose rest is NaN.
at::Tensor largest_places(const DeviceOps& ops, const at::Tensor& scores, std::int64_t count) {
  const std::int64_t rows = scores.size(0);
  const std::int64_t tokens = scores.size(1);
  const std::int64_t blocks = (tokens + 31) / 32;
  const at::Tensor keys =
      at::full({rows, blocks * 32}, std::numeric_limits<float>::quiet_NaN(), at::kFloat);
  keys.narrow(1, 0, tokens).copy_(scores);
  const at::Tensor blocked = keys.view({1, rows, blocks, 1, 32});
  const at::Tensor columns = at::ones({1, rows, 1, 1}, at::kFloat);
  const PlanItem item{.columns = &columns,
                      .keys = &blocked,
                      .num_tokens = tokens,
                      .most = count,
                      .guesses = at::empty({rows, tokens}, at::kFloat),
                      .places = at::empty({rows, count}, at::kInt)};
  ops.plan(at::ones({1, rows, 1}, at::kFloat), {.items = {&item, 1}});
  EXPECT_TRUE(item.guesses.equal(scores) || scores.isnan().any().item<bool>());
  return item.places;
}

TEST_P(Operations, TakeTheEarlierOfEqualScores) {
  at::manual_seed(5);
  // Few different scores, of zeros of either sign too, in rows long and short.
  for (const std::int64_t count : {9, 300, 5000}) {
    at::Tensor scores = at::randint(-2, 3, {3, count}, at::kFloat);
    scores.select(0, 1).mul_(-0.0);
    for (const std::int64_t wanted : {std::int64_t{1}, count / 3, count}) {
      const at::Tensor chosen = largest_places(*ops_, scores, wanted);
      for (std::int64_t row = 0; row < 3; ++row) {
        const float* const score = scores.const_data_ptr<float>() + row * count;
        std::vector<std::int32_t> order(static_cast<std::size_t>(count));
        std::iota(order.begin(), order.end(), 0);
        std::ranges::stable_sort(
            order, [&](std::int32_t a, std::int32_t b) { return score[a] > score[b]; });
        order.resize(static_cast<std::size_t>(wanted));
        std::ranges::sort(order);
        const std::int32_t* const got = chosen.const_data_ptr<std::int32_t>() + row * wanted;
        EXPECT_TRUE(std::ranges::equal(order, std::span(got, order.size()))) << count;
      }
    }
  }
}

TEST_P(Operations, RefuseToRankNaN) {
  at::Tensor scores = at::full({2, 40}, 1.0, at::kFloat);
  scores.select(0, 1).select(0, 17).fill_(std::numeric_limits<float>::quiet_NaN());
  const at::Tensor places = largest_places(*ops_, scores, 3);
  EXPECT_TRUE((places == scores.size(1)).all().item<bool>()) << "a place that is none, if any";
}

/// What one query head makes of resident tokens with such logits, whose values are 1.
double merged(const DeviceOps& ops, const std::vector<float>& of_tokens) {
  const auto count = static_cast<std::int64_t>(of_tokens.size());
  const at::Tensor query = at::ones({1, 1, 1}, at::kFloat);
  at::Tensor keys = at::empty({1, count, 1}, at::kFloat);  // the logits, at a scale of 1
  std::ranges::copy(of_tokens, keys.mutable_data_ptr<float>());
  const at::Tensor values = at::ones({1, count, 1}, at::kFloat);
  at::Tensor logits = at::empty({count}, at::kFloat);
  at::Tensor weights = at::empty({count}, at::kFloat);
  at::Tensor parts = at::empty({attention_scratch(1, 1, count, 0)}, at::kFloat);
  at::Tensor out = at::empty({1, 1, 1}, at::kFloat);
  const AttentionItem item{.keys = &keys,
                           .values = &values,
                           .num_resident = count,
                           .resident_logits = &logits,
                           .merged_logits = &weights,
                           .parts = &parts};
  ops.resident_logits(query, {.items = {&item, 1}});
  ops.merge(query, {.items = {&item, 1}}, out);
  return out.view({-1}).select(0, 0).item<double>();
}

// Resident tokens, alone and beside what the host sent: chosen tokens of each head's own, tokens
// that all heads share, or a finished attention.
TEST_P(Operations, LeaveTheLogSumExpOfAllThatTheyMerged) {
  constexpr std::int64_t kHeads = 4;
  constexpr std::int64_t kDim = 8;
  constexpr std::int64_t kResident = 300;
  constexpr std::int64_t kChosen = 3;
  const at::Tensor query = at::randn({1, kHeads, kDim});
  const at::Tensor keys = at::randn({2, kResident, kDim});
  const at::Tensor values = at::randn({2, kResident, kDim});
  const std::vector<std::int64_t> sizes{kChosen, kChosen};
  HostPayload shared;
  shared.count = kChosen;
  shared.room = kChosen;
  shared.logits = at::randn({kHeads * kChosen}) + 5.0;
  shared.values = at::randn({2, kChosen, kDim});
  shared.union_sizes = sizes;
  shared.device_union_sizes = at::full({2}, kChosen, at::kLong);
  HostPayload own = shared;
  own.index = at::arange(kChosen, at::kInt).repeat({kHeads});
  // KV heads with more room than tokens, and as few as one, or none.
  constexpr std::int64_t kRoom = kChosen + 2;
  const at::Tensor ragged_logits = at::randn({2, 2 * kRoom}) + 5.0;
  const auto ragged = [&](const std::vector<std::int64_t>& in_use) {
    HostPayload payload = shared;
    payload.room = kRoom;
    payload.logits = ragged_logits.view({-1});
    payload.union_sizes = in_use;
    payload.device_union_sizes = at::tensor(in_use, at::kLong);
    return payload;
  };
  const auto of_ragged = [&](const std::vector<std::int64_t>& in_use) {
    at::Tensor logits = at::full({kHeads, kChosen}, -std::numeric_limits<double>::infinity());
    for (std::int64_t h = 0; h < kHeads; ++h) {
      const std::int64_t count = in_use[static_cast<std::size_t>(h / 2)];
      logits.select(0, h)
          .narrow(0, 0, count)
          .copy_(ragged_logits.select(0, h / 2).narrow(0, h % 2 * count, count));
    }
    return logits;
  };
  HostPayload finished;
  finished.output = at::randn({kHeads, kDim});
  finished.lse = at::randn({kHeads}) + 6.0;
  const at::Tensor by_hand =
      at::matmul(query[0].view({2, 2, kDim}).to(at::kDouble), keys.to(at::kDouble).transpose(1, 2))
          .view({kHeads, kResident}) /
      std::sqrt(static_cast<double>(kDim));
  const auto expected = [&](const at::Tensor& others) {
    return at::logsumexp(at::cat({by_hand, others.to(at::kDouble).view({kHeads, -1})}, 1), {1});
  };
  const auto found = [&](const HostPayload* payload) {
    at::Tensor logits = at::empty({kHeads * kResident});
    at::Tensor merged = at::empty({kHeads * (kResident + kChosen)});
    at::Tensor parts = at::empty({attention_scratch(kHeads, kDim, kResident, kChosen)});
    at::Tensor out = at::empty({1, kHeads, kDim});
    at::Tensor lse = at::empty({kHeads});
    const AttentionItem item{.keys = &keys,
                             .values = &values,
                             .num_resident = kResident,
                             .payload = payload,
                             .resident_logits = &logits,
                             .merged_logits = &merged,
                             .parts = &parts,
                             .lse = &lse};
    ops_->resident_logits(query, {.items = {&item, 1}});
    ops_->merge(query, {.items = {&item, 1}}, out);
    return lse;
  };
  const auto expect_near = [](const at::Tensor& lse, const at::Tensor& reference) {
    EXPECT_TRUE(at::allclose(lse.to(at::kDouble), reference, 0.0, 1e-5)) << lse << reference;
  };
  expect_near(found(nullptr), expected(at::empty({kHeads, 0})));
  expect_near(found(&shared), expected(shared.logits));
  expect_near(found(&own), expected(own.logits));
  for (const std::vector<std::int64_t>& in_use :
       {std::vector<std::int64_t>{kChosen, 1}, {kChosen, 0}, {0, kChosen}}) {
    const HostPayload payload = ragged(in_use);
    expect_near(found(&payload), expected(of_ragged(in_use)));
  }
  expect_near(found(&finished), expected(finished.lse));
}

TEST_P(Operations, PassNaNAndInfiniteLogitsOn) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_NEAR(merged(*ops_, {0.0F, 1.0F, -kInfinity}), 1.0, 1e-6);
  EXPECT_EQ(merged(*ops_, {-kInfinity, -kInfinity}), 0.0);
  EXPECT_TRUE(
      std::isnan(merged(*ops_, {0.0F, std::numeric_limits<float>::quiet_NaN(), 1.0F, 2.0F})));
  EXPECT_TRUE(std::isnan(merged(*ops_, {0.0F, kInfinity, 1.0F})));
}

}  // namespace
}  // namespace hybridgen
