// SPDX-License-Identifier: Apache-2.0
// Blocks that a device reads by itself: every pin has its end, and a block changes its tier by a
// copy that takes its place under its address.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "hybridgen/core/error.h"
#include "kvcache/host_kv_store.h"
#include "kvcache/kv_tiers.h"
#include "kvcache/store_memory.h"
#include "support/invented_nodes.h"
#include "support/noted_pins.h"

namespace hybridgen {
namespace {

using Call = InventedNodes::Call;

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kLayers = 3;
constexpr std::int64_t kRowBytes = 64;
constexpr std::int64_t kHeadBytes = 256 * kRowBytes;  // of a block
constexpr std::int64_t kBlockBytes = kHeads * kLayers * kHeadBytes;

PagePlace dram() { return {.nodes = {0}}; }
PagePlace cxl() { return {.nodes = {1}, .tier = TierKind::kCxl}; }

KvMemoryShape shape_of(std::int64_t capacity, PagePins* pins) {
  return {.num_kv_heads = kHeads,
          .num_layers = kLayers,
          .capacity = capacity,
          .row_bytes = kRowBytes,
          .place = dram(),
          .pins = pins};
}

std::byte byte_of(std::int64_t block, std::int64_t head, std::int64_t layer, int version) {
  return static_cast<std::byte>(100 * version + 10 * block + 3 * head + layer);
}

void write(KvMemory& memory, std::int64_t block, int version) {
  for (std::int64_t g = 0; g < kHeads; ++g) {
    for (std::int64_t l = 0; l < kLayers; ++l) {
      std::fill_n(
          memory.head(l, g) + block * kHeadBytes, kHeadBytes, byte_of(block, g, l, version));
    }
  }
}

void expect_written(const KvMemory& memory, std::int64_t block, int version) {
  for (std::int64_t g = 0; g < kHeads; ++g) {
    for (std::int64_t l = 0; l < kLayers; ++l) {
      const std::byte* const begin = memory.head(l, g) + block * kHeadBytes;
      EXPECT_EQ(std::count(begin, begin + kHeadBytes, byte_of(block, g, l, version)), kHeadBytes)
          << "block " << block << ", head " << g << ", layer " << l;
    }
  }
}

/// Four blocks in DRAM, written and pinned.
struct PinnedBlocks {
  explicit PinnedBlocks(PagePins* pins) : memory(shape_of(4096, pins)) {
    for (std::int64_t block = 0; block < 4; ++block) {
      memory.grow((block + 1) * 256, "test");
      write(memory, block, 0);
    }
  }
  KvMemory memory;
};

class Pinned : public ::testing::Test {
 protected:
  InventedNodes nodes_{{{0, 64 * kMiB}, {1, 64 * kMiB}}};
  PageCallsForTest in_place_{nodes_};
  NotedPins pins_;
};

TEST_F(Pinned, BlocksAreByOneCallPerHeadAndLayerAndGrowthUntilTheirMemoryEnds) {
  {
    KvMemory memory(shape_of(4096, &pins_));
    memory.grow(256, "test");
    EXPECT_EQ(pins_.num_calls(), kHeads * kLayers);
    EXPECT_EQ(pins_.pinned_bytes(), kBlockBytes);
    memory.grow(2048, "test");  // seven more
    EXPECT_EQ(pins_.num_calls(), 2 * kHeads * kLayers);
    EXPECT_EQ(pins_.pinned_bytes(), 8 * kBlockBytes);
    EXPECT_TRUE(pins_.is_pinned(memory.head(2, 1) + 8 * kHeadBytes - 1));
    EXPECT_FALSE(pins_.is_pinned(memory.head(2, 1) + 8 * kHeadBytes));
    const KvMemory moved = std::move(memory);
    EXPECT_EQ(pins_.pinned_bytes(), 8 * kBlockBytes);
  }
  EXPECT_EQ(pins_.num_pinned(), 0U);
}

TEST_F(Pinned, HeadsThatLieSideBySideAreByOneCall) {
  KvMemory memory(shape_of(1024, &pins_));
  memory.grow(1024, "test");
  EXPECT_EQ(pins_.num_calls(), 1);
  EXPECT_EQ(pins_.pinned_bytes(), 4 * kBlockBytes);
}

TEST_F(Pinned, PagesOfAFirstGrowthAreHugeAndLaterOnesNeverJoined) {
  KvMemoryShape shape = shape_of(131072, &pins_);  // 8 MiB a head
  KvMemory at_once(shape);
  at_once.grow(32768, "test");
  EXPECT_EQ(nodes_.joined_bytes(), kHeads * kLayers * 2 * kMiB);
  KvMemory by_and_by(shape);
  for (std::int64_t tokens = 256; tokens <= 65536; tokens += 256) by_and_by.grow(tokens, "test");
  EXPECT_EQ(nodes_.joined_bytes(), kHeads * kLayers * 2 * kMiB);
}

TEST_F(Pinned, GrowthThatADeviceRefusesLeavesNothingAndCanBeAskedAgain) {
  for (const std::int64_t nth : {0, 3, 5}) {
    KvMemory memory(shape_of(4096, &pins_));
    memory.grow(256, "test");
    write(memory, 0, 0);
    const std::int64_t used = nodes_.used(0);
    pins_.fail(nth);
    EXPECT_THROW(memory.grow(1024, "test"), OutOfMemoryError);
    EXPECT_EQ(memory.num_blocks(), 1);
    EXPECT_EQ(pins_.pinned_bytes(), kBlockBytes);
    EXPECT_EQ(nodes_.used(0), used);
    pins_.heal();
    memory.grow(1024, "test");
    EXPECT_EQ(pins_.pinned_bytes(), 4 * kBlockBytes);
    expect_written(memory, 0, 0);
  }
}

TEST_F(Pinned, NothingIsWhereTheDevicePinsNothing) {
  pins_.be_off();
  PinnedBlocks blocks(&pins_);
  EXPECT_FALSE(blocks.memory.is_pinned({0, 4}));
  EXPECT_FALSE(blocks.memory.is_all_pinned({0, 4}, 0));
  EXPECT_EQ(blocks.memory.move({0, 4}, cxl()).moved_bytes, 4 * kBlockBytes);
  KvMemory by_and_by(shape_of(131072, &pins_));
  for (std::int64_t tokens = 256; tokens <= 65536; tokens += 256) by_and_by.grow(tokens, "test");
  EXPECT_EQ(nodes_.joined_bytes(), kHeads * kLayers * 4 * kMiB) << "as if nobody wanted pins";
}

TEST_F(Pinned, BlocksMoveByCopiesThatTakeTheirPlaceUnderTheirAddresses) {
  PinnedBlocks blocks(&pins_);
  KvMemory& memory = blocks.memory;
  const std::byte* const address = memory.head(2, 1);
  for (const bool has_contents : {true, false}) {
    SCOPED_TRACE(has_contents);
    const std::int64_t block = has_contents ? 1 : 2;
    memory.bring_copies({block, block + 1}, cxl(), has_contents);
    EXPECT_EQ(nodes_.used(0), has_contents ? 4 * kBlockBytes : 3 * kBlockBytes);
    if (!has_contents) write(memory, block, 1);  // a block that is not closed yet
    EXPECT_EQ(pins_.pinned_bytes(), 4 * kBlockBytes) << "readers may go on";
    const PageMove moved = memory.switch_to_copies({block, block + 1}, dram(), has_contents);
    EXPECT_EQ(moved.moved_bytes, kBlockBytes);
    EXPECT_EQ(moved.left_bytes, 0) << moved.why;
    expect_written(memory, block, has_contents ? 0 : 1);
  }
  EXPECT_EQ(memory.head(2, 1), address);
  EXPECT_EQ(nodes_.used(0), 2 * kBlockBytes);
  EXPECT_EQ(nodes_.used(1), 2 * kBlockBytes);
  EXPECT_EQ(memory.found().by_node,
            (std::map<int, std::int64_t>{{0, 2 * kBlockBytes}, {1, 2 * kBlockBytes}}));
  EXPECT_EQ(pins_.pinned_bytes(), 4 * kBlockBytes);
  expect_written(memory, 0, 0);
  expect_written(memory, 3, 0);
  write(memory, 1, 2);
  memory.bring_copies({1, 2}, dram(), true);  // and back
  EXPECT_EQ(memory.switch_to_copies({1, 2}, cxl(), true).left_bytes, 0);
  expect_written(memory, 1, 2);
  EXPECT_EQ(nodes_.used(1), kBlockBytes);
}

/// Areas of addresses as the system counts them, of which a process may have 65,530.
std::int64_t num_areas(PageSpan span) {
  std::ifstream maps("/proc/self/maps");
  std::int64_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    const auto begin = std::stoull(line, nullptr, 16);
    const auto first = reinterpret_cast<std::uintptr_t>(span.data);
    count += begin >= first && begin < first + span.bytes ? 1 : 0;
  }
  return count;
}

TEST_F(Pinned, BlocksThatMovedOneAfterAnotherAreFewAreas) {
  constexpr std::int64_t kBlocks = 64;
  KvMemory memory(shape_of(kBlocks * 256, &pins_));
  memory.grow(kBlocks * 256, "test");
  for (std::int64_t block = 0; block < kBlocks; ++block) write(memory, block, 0);
  for (std::int64_t block = 0; block < kBlocks; ++block) {
    memory.bring_copies({block, block + 1}, cxl(), true);
    ASSERT_EQ(memory.switch_to_copies({block, block + 1}, dram(), true).left_bytes, 0);
  }
  for (std::int64_t block = 0; block < kBlocks; ++block) expect_written(memory, block, 0);
  EXPECT_LE(num_areas(memory.span()), 4 * kHeads * kLayers);
}

TEST_F(Pinned, CopiesThatATierHasNoRoomForLeaveEverythingAsItWas) {
  PinnedBlocks blocks(&pins_);
  for (const Call call : {Call::kReserve, Call::kAllow, Call::kSetRule, Call::kTouch}) {
    SCOPED_TRACE(static_cast<int>(call));
    PinnedBlocks others(&pins_);
    nodes_.fail(call, 0, ENOMEM);
    EXPECT_THROW(others.memory.bring_copies({0, 1}, cxl(), true), OutOfMemoryError);
    nodes_.heal();
    EXPECT_EQ(nodes_.used(1), 0);
    expect_written(others.memory, 0, 0);
    others.memory.bring_copies({0, 1}, cxl(), true);
    EXPECT_EQ(others.memory.switch_to_copies({0, 1}, dram(), true).left_bytes, 0);
  }
}

TEST_F(Pinned, ASwitchThatTheSystemRefusesHalfwayIsUndone) {
  for (std::int64_t nth = 0; nth < kHeads * kLayers; ++nth) {
    SCOPED_TRACE(nth);
    PinnedBlocks blocks(&pins_);
    blocks.memory.bring_copies({1, 2}, cxl(), true);
    nodes_.fail(Call::kReplace, nth, ENOMEM);
    const PageMove moved = blocks.memory.switch_to_copies({1, 2}, dram(), true);
    nodes_.heal();
    EXPECT_EQ(moved.left_bytes, kBlockBytes);
    EXPECT_FALSE(moved.why.empty());
    for (std::int64_t block = 0; block < 4; ++block) expect_written(blocks.memory, block, 0);
    EXPECT_EQ(nodes_.used(0), 4 * kBlockBytes);
    EXPECT_EQ(nodes_.used(1), 0);
    EXPECT_EQ(pins_.pinned_bytes(), 4 * kBlockBytes);
    blocks.memory.bring_copies({1, 2}, cxl(), true);
    EXPECT_EQ(blocks.memory.switch_to_copies({1, 2}, dram(), true).left_bytes, 0);
    expect_written(blocks.memory, 1, 0);
  }
  EXPECT_EQ(pins_.num_pinned(), 0U);
}

TEST_F(Pinned, ABlockThatIsNotAfterItsSwitchGoesOnAndMovesAsOthersDo) {
  PinnedBlocks blocks(&pins_);
  blocks.memory.bring_copies({1, 2}, cxl(), true);
  pins_.fail(2);
  EXPECT_EQ(blocks.memory.switch_to_copies({1, 2}, dram(), true).left_bytes, 0);
  EXPECT_FALSE(blocks.memory.is_pinned({1, 2}));
  EXPECT_TRUE(blocks.memory.is_all_pinned({2, 4}, 0));
  EXPECT_TRUE(blocks.memory.is_pinned({0, 4}));
  EXPECT_FALSE(blocks.memory.is_all_pinned({0, 4}, 0))
      << "a device reads all of it or none in place";
  EXPECT_EQ(pins_.pinned_bytes(), 3 * kBlockBytes);
  expect_written(blocks.memory, 1, 0);
  EXPECT_EQ(blocks.memory.move({1, 2}, dram()).moved_bytes, kBlockBytes);
  expect_written(blocks.memory, 1, 0);
}

TEST_F(Pinned, BlocksThatAreWrittenToWhileTheyMoveLoseNothing) {
  constexpr std::int64_t kTokens = 4096;
  HostKvStore store({.num_layers = kLayers,
                     .num_kv_heads = kHeads,
                     .head_dim = 16,
                     .capacity = kTokens,
                     .key_layout = KeyLayout::kRows,
                     .place = dram(),
                     .pins = &pins_});
  StoreMemory memory(store);
  Budgets budgets;
  budgets.add(TierKind::kDram, 12 * kBlockBytes, "KVConfig(dram=...)");
  budgets.add(TierKind::kCxl, 64 * kMiB, "KVConfig(cxl=...)");
  TraceRecorder trace;
  TierStatistics statistics;
  KvTiers tiers(KvPlacement::kSemantic, {.dram = dram(), .cxl = cxl()}, budgets, trace, statistics);
  KvHolding holding = tiers.hold(0, 0, (2 * kTokens / 256 + 3) * kBlockBytes);
  holding.set_memory(memory, /*is_rewritten=*/true);
  const auto write_all = [&](std::int64_t blocks) {
    for (std::int64_t block = 0; block < blocks; ++block) {
      for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
        write(store.memory(side), block, static_cast<int>(blocks));
      }
    }
  };
  for (std::int64_t blocks = 1; blocks <= kTokens / 256; ++blocks) {
    holding.grow(blocks * 256);
    std::this_thread::sleep_for(std::chrono::milliseconds(3));  // copies are there by now
    write_all(blocks);
    tiers.settle();
  }
  tiers.finish_moves();
  EXPECT_GT(statistics.switches, 8);
  EXPECT_EQ(statistics.failed_moves, 0);
  for (std::int64_t block = 0; block < kTokens / 256; ++block) {
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      expect_written(store.memory(side), block, kTokens / 256);
    }
  }
  EXPECT_GT(nodes_.used(1), 0);
  EXPECT_EQ(pins_.pinned_bytes(), 2 * kTokens / 256 * kBlockBytes);
}

TEST_F(Pinned, BlocksThatGoToADiskAreNotAndThoseThatComeBackAre) {
  TestFolder folder;
  TraceRecorder trace;
  DiskFile file{folder.string(), 64 * kMiB};
  DiskQueue queue{file, trace};
  HostKvStore store({.num_layers = kLayers,
                     .num_kv_heads = kHeads,
                     .head_dim = 16,
                     .capacity = 4096,
                     .key_layout = KeyLayout::kRows,
                     .pins = &pins_});
  store.use_disk({.file = &file, .queue = &queue});
  for (std::int64_t tokens = 256; tokens <= 1024; tokens += 256) store.grow(tokens);
  EXPECT_EQ(pins_.pinned_bytes(), 2 * 4 * kBlockBytes);
  KvMemory& values = store.memory(KvSide::kValues);
  for (std::int64_t block = 0; block < 4; ++block) write(values, block, 0);
  store.disk()->write(KvSide::kValues, 1);
  EXPECT_TRUE(values.is_pinned({1, 2}));
  store.disk()->leave(KvSide::kValues, 1);
  EXPECT_FALSE(values.is_pinned({1, 2}));
  EXPECT_EQ(pins_.pinned_bytes(), 7 * kBlockBytes);
  EXPECT_TRUE(store.disk()->bring_back(KvSide::kValues, 1, {}));
  store.disk()->arrive(KvSide::kValues, 1);
  EXPECT_TRUE(values.is_pinned({1, 2}));
  EXPECT_EQ(pins_.pinned_bytes(), 8 * kBlockBytes);
  expect_written(values, 1, 0);
}

TEST_F(Pinned, OnlyRowsAreThatADeviceReadsAsTheyLie) {
  const auto pinned = [&](KeyLayout layout, KvPrecision keys, KvPrecision values) {
    HostKvStore store({.num_layers = kLayers,
                       .num_kv_heads = kHeads,
                       .head_dim = 16,
                       .capacity = 4096,
                       .key_layout = layout,
                       .key_precision = keys,
                       .value_precision = values,
                       .pins = &pins_});
    store.grow(256);
    return std::pair{pins_.is_pinned(store.memory(KvSide::kKeys).head(0, 0)),
                     pins_.is_pinned(store.memory(KvSide::kValues).head(0, 0))};
  };
  constexpr auto kFull = KvPrecision::kFull;
  constexpr auto kInt8 = KvPrecision::kInt8;
  EXPECT_EQ(pinned(KeyLayout::kRows, kFull, kFull), std::pair(true, true));
  EXPECT_EQ(pinned(KeyLayout::kBlocked, kFull, kFull), std::pair(false, true));
  EXPECT_EQ(pinned(KeyLayout::kRows, kInt8, kFull), std::pair(false, true));
  EXPECT_EQ(pinned(KeyLayout::kRows, kFull, kInt8), std::pair(true, false));
  EXPECT_EQ(pins_.num_pinned(), 0U);
}

}  // namespace
}  // namespace hybridgen
