// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "hybridgen/core/error.h"
#include "kvcache/host_kv_store.h"
#include "support/invented_nodes.h"

namespace hybridgen {
namespace {

using Call = InventedNodes::Call;

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kLayers = 3;

std::int64_t page() { return static_cast<std::int64_t>(page_bytes()); }

/// Rows of 64 bytes: a block of 256 tokens is four pages of 4 KiB.
KvMemoryShape shape_of(std::int64_t capacity, std::int64_t row_bytes = 64) {
  return {
      .num_kv_heads = kHeads, .num_layers = kLayers, .capacity = capacity, .row_bytes = row_bytes};
}

PagePlace dram() { return {.nodes = {0}}; }
PagePlace cxl() { return {.nodes = {1}, .tier = TierKind::kCxl}; }

void fill(KvMemory& memory, std::int64_t tokens, std::byte value) {
  for (std::int64_t g = 0; g < kHeads; ++g) {
    for (std::int64_t l = 0; l < kLayers; ++l) {
      std::fill_n(memory.head(l, g), tokens * memory.shape().row_bytes, value);
    }
  }
}

TEST(KvMemory, ABlockOf256TokensOrMoreFillsWholePages) {
  EXPECT_EQ(KvMemory(shape_of(4096)).block_tokens(), 256);
  // 36 bytes a row: 256 rows are two pages and a quarter.
  EXPECT_EQ(KvMemory(shape_of(4096, 36)).block_tokens() * 36 % page(), 0);
}

TEST(KvMemory, NoPageBelongsToTwoHeads) {
  for (const std::int64_t capacity : {32, 100 * 32, 65536}) {
    KvMemory memory(shape_of(capacity));
    std::byte* before = nullptr;
    for (std::int64_t g = 0; g < kHeads; ++g) {
      for (std::int64_t l = 0; l < kLayers; ++l) {
        std::byte* const head = memory.head(l, g);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(head) % page_bytes(), 0U);
        if (before != nullptr) {
          EXPECT_GE(head - before, capacity * 64);
        }
        before = head;
      }
    }
    EXPECT_EQ(memory.head(0, 1) - memory.head(0, 0), memory.head_stride());
  }
}

TEST(KvMemory, TakesWhatTheTokensNeedUnderALongCapacity) {
  KvMemory memory(shape_of(131072));
  EXPECT_EQ(memory.found().bytes(), 0);
  memory.grow(1000, "test");
  fill(memory, 1000, std::byte{1});
  const std::int64_t needed = kHeads * kLayers * 1000 * 64;
  const std::int64_t found = memory.found().bytes();
  EXPECT_GE(found, needed);
  EXPECT_LE(found, needed + kHeads * kLayers * page());
}

TEST(KvMemory, GrowsInBlocksAndNeverBeyondItsCapacity) {
  KvMemory memory(shape_of(1000 * 32));
  memory.grow(1, "test");
  EXPECT_EQ(memory.num_blocks(), 1);
  EXPECT_EQ(memory.grown_tokens(), 256);
  memory.grow(257, "test");
  EXPECT_EQ(memory.num_blocks(), 2);
  memory.grow(100, "test");
  EXPECT_EQ(memory.num_blocks(), 2);
  memory.grow(1000 * 32, "test");
  EXPECT_EQ(memory.num_blocks(), 125);
  EXPECT_EQ(memory.grown_tokens(), 1000 * 32);
  EXPECT_EQ(memory.bytes_of({0, 125}), kHeads * kLayers * 1000 * 32 * 64);
}

TEST(KvMemory, AddressesAndContentsStayAsItGrows) {
  KvMemory memory(shape_of(65536));
  memory.grow(300, "test");
  fill(memory, 300, std::byte{9});
  const std::byte* const address = memory.head(2, 1);
  memory.grow(65536, "test");  // which makes huge pages of all of it
  EXPECT_EQ(memory.head(2, 1), address);
  EXPECT_EQ(memory.head(2, 1)[300 * 64 - 1], std::byte{9});
  EXPECT_EQ(memory.head(2, 1)[300 * 64], std::byte{0});
}

TEST(KvMemory, BlocksLieWhereTheyWereSent) {
  InventedNodes nodes({{0, 64 * kMiB}, {1, 64 * kMiB}});
  const PageCallsForTest in_place(nodes);
  KvMemoryShape shape = shape_of(4096);
  shape.place = dram();
  KvMemory memory(shape);
  memory.grow(512, "test");
  memory.grow(768, cxl(), "test");
  const std::int64_t block = kHeads * kLayers * 256 * 64;
  EXPECT_EQ(nodes.used(0), 2 * block);
  EXPECT_EQ(nodes.used(1), block);
  EXPECT_EQ(memory.found().by_node, (std::map<int, std::int64_t>{{0, 2 * block}, {1, block}}));
  const PageMove move = memory.move({0, 1}, cxl());
  EXPECT_EQ(move.moved_bytes, block);
  EXPECT_EQ(move.left_bytes, 0);
  EXPECT_EQ(nodes.used(1), 2 * block);
}

TEST(KvMemory, BlocksOfALayerAreGivenBackAndTakenAgain) {
  InventedNodes nodes({{0, 64 * kMiB}});
  const PageCallsForTest in_place(nodes);
  KvMemoryShape shape = shape_of(4096);
  shape.place = dram();
  KvMemory memory(shape);
  memory.grow(512, "test");
  const std::int64_t of_a_layer = kHeads * 256 * 64;
  memory.give_back({0, 1}, 1);
  EXPECT_EQ(nodes.used(0), 2 * kLayers * of_a_layer - of_a_layer);
  memory.take({0, 1}, dram(), "test", 1);
  EXPECT_EQ(nodes.used(0), 2 * kLayers * of_a_layer);
  memory.give_back({0, 2});
  EXPECT_EQ(nodes.used(0), 0);
}

TEST(KvMemory, HeadsPreferTheNodesOfTheirWorkers) {
  InventedNodes nodes({{0, 64 * kMiB}, {1, 64 * kMiB}});
  const PageCallsForTest in_place(nodes);
  KvMemoryShape shape = shape_of(4096);
  shape.place = {.nodes = {0, 1}};
  shape.numa_parts = {{0, 0, 1, {}}, {1, 1, 1, {}}};
  KvMemory memory(shape);
  memory.grow(256, "test");
  EXPECT_EQ(nodes.used(0), kLayers * 256 * 64);
  EXPECT_EQ(nodes.used(1), kLayers * 256 * 64);
}

TEST(KvMemory, APartThatIsFullTakesFromTheOtherNodesOfItsTier) {
  InventedNodes nodes({{0, 0}, {1, 64 * kMiB}});
  const PageCallsForTest in_place(nodes);
  KvMemoryShape shape = shape_of(4096);
  shape.place = {.nodes = {0, 1}};
  shape.numa_parts = {{0, 0, 1, {}}, {1, 1, 1, {}}};
  KvMemory memory(shape);
  memory.grow(256, "test");
  EXPECT_EQ(nodes.used(1), kHeads * kLayers * 256 * 64);
}

class FailedGrowth : public testing::TestWithParam<std::pair<Call, std::int64_t>> {};

TEST_P(FailedGrowth, IsNamedLeavesWhatThereWasAndCanBeAskedAgain) {
  for (const bool has_parts : {false, true}) {
    InventedNodes nodes({{0, 64 * kMiB}, {1, 64 * kMiB}});
    const PageCallsForTest in_place(nodes);
    KvMemoryShape shape = shape_of(4096);
    shape.place = {.nodes = {0, 1}};
    if (has_parts) shape.numa_parts = {{0, 0, 1, {}}, {1, 1, 1, {}}};
    KvMemory memory(shape);
    memory.grow(256, "test");
    fill(memory, 256, std::byte{5});
    const std::int64_t before = memory.found().bytes();
    nodes.fail(GetParam().first, GetParam().second, ENOMEM);
    EXPECT_THROW(memory.grow(1024, "test"), OutOfMemoryError);
    EXPECT_EQ(memory.num_blocks(), 1);
    EXPECT_EQ(nodes.used(0) + nodes.used(1), before);
    nodes.heal();
    memory.grow(1024, "test");
    EXPECT_EQ(memory.found().bytes(), 4 * before);
    EXPECT_EQ(memory.head(2, 1)[5], std::byte{5});
  }
}

INSTANTIATE_TEST_SUITE_P(AtAnyHead,
                         FailedGrowth,
                         testing::Values(std::pair{Call::kSetRule, 0},
                                         std::pair{Call::kSetRule, 5},
                                         std::pair{Call::kTouch, 0},
                                         std::pair{Call::kTouch, 4},
                                         std::pair{Call::kFindNodes, 0},
                                         std::pair{Call::kFindNodes, 5}));

/// Bytes that were joined into huge pages after `memory` grew to `tokens`, in `step`s.
std::int64_t joined_after(const KvMemoryShape& shape,
                          const InventedNodes& nodes,
                          std::int64_t tokens,
                          std::int64_t step) {
  KvMemory memory(shape);
  for (std::int64_t grown = step; grown <= tokens; grown += step) memory.grow(grown, "test");
  return nodes.joined_bytes();
}

TEST(KvMemory, HugePagesComeOnceTokensFillThem) {
  InventedNodes nodes({{0, 4096 * kMiB}});
  const PageCallsForTest in_place(nodes);
  const KvMemoryShape shape = shape_of(131072);  // 8 MiB a head
  EXPECT_EQ(joined_after(shape, nodes, 1024, 256), 0);
  EXPECT_EQ(joined_after(shape, nodes, 16384, 256), 0);  // 1 MiB of each head
  // All, whether they come at once or by and by: one more growth gets those that are left.
  EXPECT_EQ(joined_after(shape, nodes, 65536, 65536), kHeads * kLayers * 4 * kMiB);
  EXPECT_EQ(joined_after(shape, nodes, 65536 + 4096, 256), kHeads * kLayers * 4 * kMiB);
}

TEST(KvMemory, OfShortHeadsHugePagesComeWhenAllAreFull) {
  InventedNodes nodes({{0, 4096 * kMiB}});
  const PageCallsForTest in_place(nodes);
  const KvMemoryShape shape = shape_of(16384);  // 1 MiB a head
  EXPECT_EQ(joined_after(shape, nodes, 8192, 256), 0);
  EXPECT_EQ(joined_after(shape, nodes, 16384, 8192), kHeads * kLayers * kMiB);
}

TEST(KvMemory, AHugePageIsNotMadeOfBlocksOnDifferentNodes) {
  InventedNodes nodes({{0, 4096 * kMiB}, {1, 4096 * kMiB}});
  const PageCallsForTest in_place(nodes);
  KvMemoryShape shape = shape_of(131072);
  shape.place = dram();
  KvMemory memory(shape);
  memory.grow(16384, "test");         // half of the first 2 MiB
  memory.grow(65536, cxl(), "test");  // its other half and the second 2 MiB
  EXPECT_EQ(nodes.joined_bytes(), kHeads * kLayers * 2 * kMiB);
}

TEST(HostKvStoreGrowth, OfTenThousandShortRequestsLeavesResidentMemoryFlat) {
  const HostKvShape shape{.num_layers = 2,
                          .num_kv_heads = 2,
                          .head_dim = 64,
                          .dtype = DType::kBFloat16,
                          .capacity = 131072,
                          .key_precision = KvPrecision::kInt8};
  const auto resident_pages = [] {
    std::ifstream file("/proc/self/statm");
    std::int64_t size = 0;
    std::int64_t resident = 0;
    file >> size >> resident;
    return resident;
  };
  const std::vector<std::uint16_t> rows(64 * 40, 0x3f80);
  const KvRowsView view{rows.data(), 0, 64};
  std::int64_t after_some = 0;
  for (int request = 0; request < 10000; ++request) {
    HostKvStore store(shape);
    store.grow(40);
    for (std::int64_t layer = 0; layer < 2; ++layer) store.write(layer, {0, 40}, view, view);
    if (request == 100) after_some = resident_pages();
  }
  EXPECT_LE(resident_pages() - after_some, 4 * kMiB / page());
}

TEST(HostKvStoreGrowth, OfManyShortRequestsTakesLittleMoreThanTheirTokensNeed) {
  const HostKvShape shape{.num_layers = 4,
                          .num_kv_heads = 2,
                          .head_dim = 64,
                          .dtype = DType::kBFloat16,
                          .capacity = 131072};
  constexpr std::int64_t kTokens = 1000;
  constexpr std::int64_t kRequests = 64;
  const std::vector<std::uint16_t> rows(static_cast<std::size_t>(64 * kTokens), 0x3f80);
  const KvRowsView view{rows.data(), 0, 64};
  HostKvShape needed = shape;
  needed.capacity = kTokens;
  std::vector<std::unique_ptr<HostKvStore>> stores;
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < kRequests; ++i) {
    HostKvStore& store = *stores.emplace_back(std::make_unique<HostKvStore>(shape));
    for (std::int64_t begin = 0; begin < kTokens; begin += 250) {
      store.grow(begin + 250);
      for (std::int64_t layer = 0; layer < shape.num_layers; ++layer) {
        store.write(layer, {begin, begin + 250}, view, view);
      }
    }
    found +=
        store.memory(KvSide::kKeys).found().bytes() + store.memory(KvSide::kValues).found().bytes();
  }
  EXPECT_LE(static_cast<double>(found),
            1.1 * static_cast<double>(kRequests * HostKvStore::required_bytes(needed)));
}

TEST(HostKvStoreGrowth, WritesBeforeItAreRefused) {
  HostKvStore store({.num_layers = 1, .num_kv_heads = 1, .head_dim = 4, .capacity = 4096});
  const std::vector<float> rows(4096 * 4);
  const KvRowsView view{rows.data(), 0, 4};
  EXPECT_THROW(store.write(0, {0, 1}, view, view), ConfigError);
  EXPECT_THROW(store.write_row(0, 0, 0, rows.data(), rows.data()), ConfigError);
  store.grow(100);
  EXPECT_EQ(store.grown_tokens(), 256);
  EXPECT_NO_THROW(store.write(0, {0, 256}, view, view));
  EXPECT_THROW(store.write(0, {256, 257}, view, view), ConfigError);
  EXPECT_THROW(store.grow(4097), ConfigError);
}

TEST(HostKvStoreGrowth, SendsEachBlockOfKeysAndValuesWhereItIsTold) {
  InventedNodes nodes({{0, 64 * kMiB}, {1, 64 * kMiB}});
  const PageCallsForTest in_place(nodes);
  HostKvStore store(
      {.num_layers = 2, .num_kv_heads = 2, .head_dim = 16, .capacity = 4096, .place = dram()});
  store.grow(512, [](KvSide side, std::int64_t block) {
    return side == KvSide::kValues && block == 1 ? cxl() : dram();
  });
  const std::int64_t block = 2 * 2 * 256 * 64;
  EXPECT_EQ(store.memory(KvSide::kKeys).found().by_node,
            (std::map<int, std::int64_t>{{0, 2 * block}}));
  EXPECT_EQ(store.memory(KvSide::kValues).found().by_node,
            (std::map<int, std::int64_t>{{0, block}, {1, block}}));
}

TEST(HostKvStoreGrowth, ThatFailsInAnyPartCanBeAskedAgain) {
  for (std::int64_t call = 0; call < 12; ++call) {
    InventedNodes nodes({{0, 64 * kMiB}});
    const PageCallsForTest in_place(nodes);
    HostKvStore store({.num_layers = 1,
                       .num_kv_heads = 2,
                       .head_dim = 16,
                       .capacity = 4096,
                       .key_precision = KvPrecision::kInt8,
                       .value_precision = KvPrecision::kInt4,
                       .place = dram()});
    nodes.fail(Call::kTouch, call, ENOMEM);
    bool failed = false;
    for (int attempt = 0; attempt < 2 && store.grown_tokens() < 600; ++attempt) {
      try {
        store.grow(600);
      } catch (const OutOfMemoryError&) {
        failed = true;
      }
    }
    EXPECT_GE(store.grown_tokens(), 600) << call;
    EXPECT_EQ(failed, call < nodes.count(Call::kTouch)) << call;
    const std::vector<float> rows(600 * 16, 1.0F);
    const KvRowsView view{rows.data(), 0, 16};
    EXPECT_NO_THROW(store.write(0, {0, 600}, view, view));
  }
}

}  // namespace
}  // namespace hybridgen
