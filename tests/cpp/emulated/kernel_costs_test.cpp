// SPDX-License-Identifier: Apache-2.0
// What a launch of our kernels reads and writes on a timed device, worked by hand: 2 KV heads of 4
// query heads with 8 dimensions each, in 16 bits.
#include "device/kernel_costs.h"

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace hybridgen {
namespace {

using emulated::OperationKind;
using emulated::TimedOperation;

constexpr std::int64_t kHeads = 8;
constexpr std::int64_t kKvHeads = 2;
constexpr std::int64_t kDim = 8;
constexpr std::int64_t kQuery = kHeads * kDim * 2;       // bytes of a query
constexpr std::int64_t kRow = kKvHeads * kDim * 2;       // of a token's keys
constexpr std::int64_t kPart = kHeads * (kDim + 2) * 4;  // of a part's results
constexpr std::int64_t kDescribed = sizeof(kernels::PayloadCopy);

at::Tensor shaped(at::IntArrayRef sizes, at::ScalarType type = at::kHalf) {
  return at::empty(sizes, at::TensorOptions().dtype(type).device(at::kMeta));
}

/// A request of 300 resident tokens, in buffers with room for 1,000.
class KernelCosts : public ::testing::Test {
 protected:
  AttentionItem item(const HostPayload* payload = nullptr) const {
    return {.keys = &cache_,
            .values = &cache_,
            .first_slot = 7,
            .num_resident = 300,
            .payload = payload};
  }

  /// Of up to 20 tokens a query head, rows for 40 tokens.
  HostPayload payload(bool has_keys, bool has_own_choices) {
    HostPayload payload;
    payload.count = 20;
    payload.values = shaped({kKvHeads, 40, kDim});
    payload.union_sizes = union_sizes_;
    if (has_own_choices) payload.index = shaped({kHeads * 20}, at::kInt);
    if (has_keys) {
      payload.keys = payload.values;
    } else {
      payload.logits = shaped({kHeads * 20}, at::kFloat);
    }
    staged_ = payload;
    payload.staged = &staged_;
    return payload;
  }

  TimedOperation merged(const AttentionItem& item) const { return merge_cost(query_, {&item, 1}); }
  TimedOperation fetched(const AttentionItem& item) const {
    return fetch_cost({.items = {&item, 1}, .num_heads = kHeads});
  }

  at::Tensor cache_ = shaped({kKvHeads, 1'000, kDim});
  at::Tensor query_ = shaped({1, kHeads, kDim});
  std::vector<std::int64_t> union_sizes_{20, 15};
  HostPayload staged_;
};

TEST_F(KernelCosts, ResidentTokensAreReadOnceForAllQueryHeadsAndLeaveAResultPerPart) {
  AttentionItem one = item();
  const TimedOperation cost = resident_cost(query_, {&one, 1});
  EXPECT_EQ(cost.kind, OperationKind::kElementwise);
  EXPECT_EQ(cost.bytes_read, 2 * 300 * kRow + kQuery);
  EXPECT_EQ(cost.bytes_written, 2 * kPart);
  EXPECT_EQ(cost.flops, 2 * 2.0 * kHeads * 300 * kDim);
  one.wants_weights = true;
  EXPECT_EQ(resident_cost(query_, {&one, 1}).bytes_written, 2 * kPart + kHeads * 300 * 4);
}

TEST_F(KernelCosts, WeightsAloneReadKeysAndNoValues) {
  constexpr std::int64_t kSums = kHeads * 2 * 4;  // peaks and sums of a part
  HostPayload sent = payload(/*has_keys=*/true, /*has_own_choices=*/false);
  AttentionItem one = item(&sent);
  one.wants_weights = true;
  const TimedOperation resident = resident_cost(query_, {&one, 1}, /*weights_only=*/true);
  EXPECT_EQ(resident.bytes_read, 300 * kRow + kQuery);
  EXPECT_EQ(resident.bytes_written, 2 * kSums + kHeads * 300 * 4);
  EXPECT_EQ(resident.flops, 2.0 * kHeads * 300 * kDim);
  const TimedOperation cost = weigh_cost(query_, {&one, 1});
  const std::int64_t logits = (kHeads * 300 + 4 * 35) * 4;
  EXPECT_EQ(cost.bytes_read, 2 * kSums + 35 * kDim * 2 + 2 * 8 + kQuery + kSums + logits);
  EXPECT_EQ(cost.bytes_written, kSums + logits + 4 * 35 * 4);
  EXPECT_EQ(cost.flops, 2.0 * 4 * 35 * kDim);
}

TEST_F(KernelCosts, KeptValuesAreReadOnceForAllQueryHeads) {
  HostPayload sent = payload(/*has_keys=*/false, /*has_own_choices=*/true);
  AttentionItem one = item(&sent);
  PlanItem kept{.num_tokens = 499, .most = 50};
  const auto cost_of = [&] { return sum_kept_cost({&one, 1}, {&kept, 1}, query_); };
  // 35 fetched rows of a KV head with 20 places a query head, 4 * 50 resident ones and the newest.
  EXPECT_EQ(cost_of().bytes_read,
            201 * kRow + kHeads * (51 + 50) * 4 + 35 * kDim * 2 + kHeads * 20 * 4);
  EXPECT_EQ(cost_of().bytes_written, kQuery);
  EXPECT_EQ(cost_of().flops, 2.0 * kHeads * 51 * kDim);
  one.payload = nullptr;
  kept.most = 257;
  constexpr std::int64_t kParts = 2 * kHeads * kDim * 4;
  EXPECT_EQ(cost_of().bytes_read, 300 * kRow + kHeads * (258 + 257) * 4 + kParts);
  EXPECT_EQ(cost_of().bytes_written, kQuery + kParts);
}

TEST_F(KernelCosts, AMergeWithoutAPayloadJoinsTheParts) {
  const TimedOperation cost = merged(item());
  EXPECT_EQ(cost.bytes_read, 2 * kPart);
  EXPECT_EQ(cost.bytes_written, kQuery);
}

TEST_F(KernelCosts, APayloadIsReadByTheCountsInUse) {
  const HostPayload sent = payload(/*has_keys=*/false, /*has_own_choices=*/false);
  const TimedOperation cost = merged(item(&sent));
  // 35 rows of a KV head's values, a logit of each for 4 query heads, and how many rows there are.
  EXPECT_EQ(cost.bytes_read, 2 * kPart + 35 * kDim * 2 + 4 * 35 * 4 + 2 * 8 + kPart);
  EXPECT_EQ(cost.bytes_written, kQuery + kPart);
  EXPECT_EQ(cost.flops, 2.0 * 4 * 35 * kDim);
  const TimedOperation fetch = fetched(item(&sent));
  EXPECT_EQ(fetch.kind, OperationKind::kHostRead);
  EXPECT_EQ(fetch.bytes_read, kDescribed + 2 * 8 + 35 * kDim * 2 + 4 * 35 * 4);
}

TEST_F(KernelCosts, QueryHeadsWithOwnChoicesShareRowsOfTheirUnion) {
  const HostPayload sent = payload(/*has_keys=*/false, /*has_own_choices=*/true);
  const TimedOperation cost = merged(item(&sent));
  EXPECT_EQ(cost.bytes_read, 2 * kPart + 35 * kDim * 2 + kHeads * 20 * (4 + 4) + 2 * 8 + kPart);
  EXPECT_EQ(cost.flops, 2.0 * kHeads * 20 * kDim);
  EXPECT_EQ(fetched(item(&sent)).bytes_read,
            kDescribed + 2 * 8 + 35 * kDim * 2 + kHeads * 20 * (4 + 4));
}

TEST_F(KernelCosts, LogitsOfKeysAreComputedAndNotRead) {
  const HostPayload sent = payload(/*has_keys=*/true, /*has_own_choices=*/false);
  const TimedOperation cost = merged(item(&sent));
  EXPECT_EQ(cost.bytes_read, 2 * kPart + 2 * 35 * kDim * 2 + kQuery + 2 * 8 + kPart);
  EXPECT_EQ(cost.flops, 2 * 2.0 * 4 * 35 * kDim);
  EXPECT_EQ(fetched(item(&sent)).bytes_read, kDescribed + 2 * 8 + 2 * 35 * kDim * 2);
}

TEST_F(KernelCosts, WeightsAreMadeOfLogitsThatWereWritten) {
  const HostPayload sent = payload(/*has_keys=*/false, /*has_own_choices=*/false);
  AttentionItem one = item(&sent);
  const TimedOperation without = merged(one);
  one.wants_weights = true;
  const TimedOperation with = merged(one);
  EXPECT_EQ(with.bytes_read - without.bytes_read, (kHeads * 300 + 4 * 35) * 4);
  EXPECT_EQ(with.bytes_written - without.bytes_written, (kHeads * 300 + 2 * 4 * 35) * 4);
}

TEST_F(KernelCosts, AttentionThatTheHostFinishedIsARowPerQueryHead) {
  HostPayload sent;
  sent.output = shaped({kHeads, kDim});
  sent.lse = shaped({kHeads}, at::kFloat);
  staged_ = sent;
  sent.staged = &staged_;
  EXPECT_EQ(merged(item(&sent)).bytes_read, 2 * kPart + kQuery + kHeads * 4);
  EXPECT_EQ(fetched(item(&sent)).bytes_read, kDescribed + kQuery + kHeads * 4);
}

TEST(ProductCosts, ReadAWeightOnceAndCodesForEverySixteenRows) {
  const LinearWeight dense(shaped({64, 32}));
  const TimedOperation product =
      product_cost(shaped({3, 32}), dense, shaped({64}), shaped({3, 64}));
  EXPECT_EQ(product.kind, OperationKind::kDense);
  EXPECT_EQ(product.bytes_read, 2 * (3 * 32 + 64 * 32 + 64));
  EXPECT_EQ(product.bytes_written, 2 * 3 * 64);
  EXPECT_EQ(product.flops, 2.0 * 3 * 64 * 32);
  LinearWeight coded;
  coded.codes = shaped({64, 16}, at::kByte);
  coded.scales = shaped({64, 1});
  coded.inputs = 32;
  const TimedOperation restored = product_cost(shaped({17, 32}), coded, {}, shaped({17, 64}));
  EXPECT_EQ(restored.kind, OperationKind::kElementwise);
  EXPECT_EQ(restored.bytes_read, 2 * 17 * 32 + 2 * (64 * 16 + 64 * 2));
}

TEST(HeadCosts, ChangeWhatIsTurnedOrNormedAndCopyTheNewTokenToItsSlot) {
  at::Tensor query = shaped({1, kHeads, kDim});
  at::Tensor key = shaped({1, kKvHeads, kDim});
  const at::Tensor value = key;
  const RopeTable table;
  AttentionItem item{.num_resident = 5};
  const AttentionBatch batch{.items = {&item, 1}};
  constexpr std::int64_t kAngles = kDim * 4 + 8;
  const TimedOperation turned =
      place_heads_cost({.query = query, .key = &key, .value = &value, .table = &table}, &batch);
  EXPECT_EQ(turned.bytes_read, kQuery + 2 * kRow + kAngles);
  EXPECT_EQ(turned.bytes_written, kQuery + 3 * kRow);
  const TimedOperation copied =
      place_heads_cost({.query = query, .key = &key, .value = &value}, &batch);
  EXPECT_EQ(copied.bytes_read, 2 * kRow);
  EXPECT_EQ(copied.bytes_written, 2 * kRow);
  item.num_resident = 0;
  EXPECT_EQ(place_heads_cost({.query = query, .key = &key, .value = &value}, &batch).bytes_read, 0);
}

TEST(KeyCosts, TurnedKeysReadATablesRowPerToken) {
  const TurnedKeys turned{.keys = shaped({kKvHeads, 50, kDim})};
  std::vector<AttentionItem> items{{.num_resident = 10, .turned = &turned}, {.num_resident = 20}};
  const TimedOperation cost = turn_keys_cost(items);
  EXPECT_EQ(cost.bytes_read, 10 * kRow + 10 * (kDim * 4 + kKvHeads * 8));
  EXPECT_EQ(cost.bytes_written, 10 * kRow);
}

// Three of eight dimensions of 40 and of 10 tokens, in two layers; only the first wants a count.
TEST(KeyCosts, PlansReadEachRequestsColumnsAndWholeBlocksOfItsPartialKeys) {
  const at::Tensor query = shaped({4, kHeads, kDim});
  const at::Tensor columns = shaped({2, kKvHeads, kDim, 3}, at::kFloat);
  const at::Tensor keys = shaped({2, kKvHeads, 9, 3, 32});
  std::vector<PlanItem> items;
  for (const std::int64_t tokens : {40, 10}) {
    items.push_back({.columns = &columns,
                     .keys = &keys,
                     .num_tokens = tokens,
                     .most = 5,
                     .guesses = shaped({kKvHeads, tokens}, at::kFloat),
                     .places = shaped({kKvHeads, 5}, at::kInt)});
  }
  items.front().alpha = 4.0;
  const TimedOperation turned = turn_queries_cost(query, items);
  EXPECT_EQ(turned.bytes_read, 2 * (kQuery + kKvHeads * kDim * 3 * 4));
  EXPECT_EQ(turned.bytes_written, 2 * kHeads * 3 * 4);
  EXPECT_EQ(turned.flops, 2 * 2.0 * kHeads * 3 * kDim);
  const TimedOperation guessed = guess_cost(query, items);
  EXPECT_EQ(guessed.bytes_read, 2 * kHeads * 3 * 4 + kKvHeads * (64 + 32) * 3 * 2);
  EXPECT_EQ(guessed.bytes_written, kKvHeads * (40 + 10) * 4);
  EXPECT_EQ(guessed.flops, 2.0 * kHeads * (40 + 10) * 3);
  EXPECT_EQ(count_cost(items).bytes_read, kKvHeads * 40 * 4);
  EXPECT_EQ(rank_cost(items).bytes_read, kKvHeads * (40 + 10) * 4);
}

}  // namespace
}  // namespace hybridgen
