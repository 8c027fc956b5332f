// SPDX-License-Identifier: Apache-2.0
// A request's store as the engine has it, over two real memory nodes: pages of its keys lie on the
// CPUs' own node and pages of values that overflow on the other, as the kernel says of them.
#include <algorithm>
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "kvcache/kv_tiers.h"
#include "kvcache/store_memory.h"
#include "kvcache/stored_head.h"
#include "support/noted_pins.h"
#include "two_nodes.h"

namespace hybridgen {
namespace {

using Bytes = std::map<int, std::int64_t>;

// 2 KiB of K and of V per token in float32, 8 MiB of each side in all.
const HostKvShape kShape{.num_layers = 2,
                         .num_kv_heads = 2,
                         .head_dim = 128,
                         .dtype = DType::kFloat32,
                         .capacity = 4096};
constexpr std::int64_t kStep = 100;  // tokens that come at a time: in the midst of blocks

struct Kind {
  std::string name;
  HostKvShape shape;
};

void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.name; }

class StoreOnNodes : public TwoNodes, public testing::WithParamInterface<Kind> {
 protected:
  /// Fills the store; DRAM has room for `dram_share` of what it holds.
  void fill_store(double dram_share) {
    const std::int64_t all = bytes_to_place(GetParam().shape).all;
    const std::int64_t slack = 3 * bytes_to_place(GetParam().shape).largest_block;
    dram_bytes_ = static_cast<std::int64_t>(dram_share * static_cast<double>(all));
    budgets_.add(TierKind::kDram, dram_bytes_, "KVConfig(dram=...)");
    budgets_.add(TierKind::kCxl, 64 * kMiB, "KVConfig(cxl=...)");
    tiers_ = std::make_unique<KvTiers>(KvPlacement::kSemantic,
                                       TierPlaces{.dram = dram_place(), .cxl = slow_place()},
                                       budgets_,
                                       trace_,
                                       statistics_);
    holding_ = tiers_->hold(0, /*dram_bytes=*/0, all + slack);
    holding_.set_memory(memory_, /*is_rewritten=*/false);
    for (std::int64_t token = 0; token < kShape.capacity; token += kStep) {
      const TokenRange coming{token, std::min(token + kStep, kShape.capacity)};
      holding_.grow(coming.end);
      store_.grow(coming.end);
      write(coming);
      tiers_->settle();
    }
    tiers_->finish_moves();
    tiers_->settle();
    tiers_->finish_moves();
  }

  /// Of all layers and heads, as the kernel says.
  Bytes pages(KvSide side) {
    const KvMemory& memory = store_.memory(side);
    const auto bytes = static_cast<std::size_t>(memory.shape().capacity * memory.shape().row_bytes);
    Bytes sum;
    for (std::int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      for (std::int64_t head = 0; head < kShape.num_kv_heads; ++head) {
        for (const auto& [node, found] : bytes_by_node(memory.head(layer, head), bytes)) {
          sum[node] += found;
        }
      }
    }
    return sum;
  }

  void expect_ledger_is_true() {
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      Bytes found = pages(side);
      std::cout << (side == KvSide::kKeys ? "K: " : "V: ") << in_words(found) << '\n';
      const TierBytes& noted = tiers_->ledger().bytes(side);
      EXPECT_EQ(found[dram_], noted[TierKind::kDram]);
      EXPECT_EQ(found[slow_], noted[TierKind::kCxl]);
    }
  }

  /// Bits of full rows; of coded ones whether blocks that moved read as one that never did.
  void expect_rows_are_as_written() {
    HostKvStore unmoved(GetParam().shape);
    unmoved.grow(kShape.capacity);
    std::swap(unmoved, store_);
    for (std::int64_t token = 0; token < kShape.capacity; token += kStep) {
      write({token, std::min(token + kStep, kShape.capacity)});
    }
    std::swap(unmoved, store_);
    for (std::int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      EXPECT_EQ(rows_of(store_, layer), rows_of(unmoved, layer)) << "layer " << layer;
    }
  }

 private:
  static std::vector<float> rows_of(const HostKvStore& store, std::int64_t layer) {
    const auto count =
        static_cast<std::size_t>(kShape.num_kv_heads * kShape.capacity * kShape.head_dim);
    std::vector<float> rows(2 * count);
    read_tokens(kernels::cpu_kernels(kernels::Isa::kPortable),
                store,
                layer,
                {0, kShape.capacity},
                rows.data(),
                rows.data() + count);
    return rows;
  }

  void write(TokenRange tokens) {
    const std::int64_t head_stride = tokens.size() * kShape.head_dim;
    for (std::int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      std::vector<float> keys;
      keys.reserve(static_cast<std::size_t>(kShape.num_kv_heads * head_stride));
      for (std::int64_t i = 0; i < kShape.num_kv_heads * head_stride; ++i) {
        keys.push_back(static_cast<float>((i * 37 + tokens.begin * 11 + layer) % 1009) / 64.0F);
      }
      std::vector<float> values(keys.rbegin(), keys.rend());
      store_.write(layer,
                   tokens,
                   {keys.data(), head_stride, kShape.head_dim},
                   {values.data(), head_stride, kShape.head_dim});
    }
  }

 protected:
  std::int64_t dram_bytes_ = 0;
  TraceRecorder trace_;
  TierStatistics statistics_;
  Budgets budgets_;
  std::unique_ptr<KvTiers> tiers_;
  HostKvStore store_{GetParam().shape};
  StoreMemory memory_{store_};
  KvHolding holding_;  ///< last: ends first
};

NotedPins& noted_pins() {
  static NotedPins pins;
  return pins;
}

/// Which the system does not move.
Kind pinned_rows() {
  HostKvShape shape = kShape;
  shape.key_layout = KeyLayout::kRows;
  shape.pins = &noted_pins();
  return {"PinnedRows", shape};
}

Kind kind(std::string name, KeyLayout layout, KvPrecision keys, KvPrecision values) {
  HostKvShape shape = kShape;
  shape.key_layout = layout;
  shape.key_precision = keys;
  shape.value_precision = values;
  return {std::move(name), shape};
}

TEST_P(StoreOnNodes, HasItsKeysInDramAndValuesThatOverflowOnTheSlowNode) {
  fill_store(0.75);
  expect_ledger_is_true();
  const Bytes keys = pages(KvSide::kKeys);
  Bytes values = pages(KvSide::kValues);
  ASSERT_EQ(keys.size(), 1U) << in_words(keys);
  EXPECT_EQ(keys.begin()->first, dram_);
  const std::int64_t all = keys.at(dram_) + values[dram_] + values[slow_];
  EXPECT_EQ(all, bytes_to_place(GetParam().shape).all);
  EXPECT_GE(values[slow_], all - dram_bytes_);
  EXPECT_LE(keys.at(dram_) + values[dram_], dram_bytes_);
  EXPECT_GT(statistics_.moves_down, 0);
  const bool is_pinned = GetParam().shape.pins != nullptr;
  EXPECT_EQ(statistics_.switches, is_pinned ? statistics_.moves_down + statistics_.moves_up : 0);
  EXPECT_EQ(noted_pins().pinned_bytes(), is_pinned ? all : 0);
  expect_rows_are_as_written();
}

TEST_P(StoreOnNodes, HasAllValuesAndTheOldestKeysOnTheSlowNodeOnceKeysExceedDram) {
  const auto keys_share = static_cast<double>(HostKvStore::required_key_bytes(GetParam().shape)) /
                          static_cast<double>(HostKvStore::required_bytes(GetParam().shape));
  fill_store(0.6 * keys_share);
  expect_ledger_is_true();
  Bytes keys = pages(KvSide::kKeys);
  const Bytes values = pages(KvSide::kValues);
  ASSERT_EQ(values.size(), 1U) << in_words(values);
  EXPECT_EQ(values.begin()->first, slow_);
  EXPECT_GT(keys[slow_], 0);
  EXPECT_GT(keys[dram_], 0);
  EXPECT_LE(keys[dram_], dram_bytes_);
  expect_rows_are_as_written();
}

INSTANTIATE_TEST_SUITE_P(
    Kinds,
    StoreOnNodes,
    testing::Values(
        kind("BlockedKeys", KeyLayout::kBlocked, KvPrecision::kFull, KvPrecision::kFull),
        kind("KeyRows", KeyLayout::kRows, KvPrecision::kFull, KvPrecision::kFull),
        kind("CodedRows", KeyLayout::kBlocked, KvPrecision::kInt8, KvPrecision::kInt4),
        pinned_rows()),
    [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace hybridgen
