// SPDX-License-Identifier: Apache-2.0
#include "kvcache/disk_landing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "memory/huge_pages.h"
#include "memory/page_calls.h"

namespace hybridgen {
namespace {

constexpr auto kHugeBytes = static_cast<std::int64_t>(kHugePageBytes);

/// Blocks of 4 heads, 256 tokens and 1 KiB a row: half a huge page for all heads together.
KvMemory memory_of(std::int64_t capacity) {
  return KvMemory({.num_kv_heads = 4, .num_layers = 2, .capacity = capacity, .row_bytes = 1024});
}

TEST(DiskLanding, HoldsTheHeadsOfABlockBehindEachOtherAsTheyLieOnTheDisk) {
  const KvMemory memory = memory_of(700);  // the last block has 188 tokens
  DiskLanding landing(memory, {});
  EXPECT_EQ(disk_unit_bytes(memory, 0), 256 * 1024);
  EXPECT_EQ(disk_unit_bytes(memory, 2), 188 * 1024);
  for (const std::int64_t block : {0, 2}) {
    for (std::int64_t g = 1; g < 4; ++g) {
      EXPECT_EQ(landing.unit(block, g) - landing.unit(block, 0),
                g * disk_unit_bytes(memory, block));
    }
  }
  EXPECT_EQ(landing.unit(1, 0) - landing.unit(0, 0), 4 * 256 * 1024);
}

TEST(DiskLanding, AShortBlockFillsPages) { EXPECT_EQ(disk_unit_bytes(memory_of(257), 1), 4096); }

TEST(DiskLanding, StandsForTheBlocksOfALayerUntilItEnds) {
  const KvMemory memory = memory_of(700);
  DiskLanding landing(memory, {});
  EXPECT_TRUE(landing.is_free());
  landing.begin({1, 0, 1});
  EXPECT_FALSE(landing.is_free());
  EXPECT_TRUE(landing.has(0));
  EXPECT_FALSE(landing.has(1));
  landing.end();
  EXPECT_TRUE(landing.is_free());
}

TEST(DiskLanding, AsksForHugePagesWhereBlocksFillThemHoweverTheyCome) {
  if (huge_pages().setting == "never") {
    GTEST_SKIP() << "this system gives no huge pages; one with transparent_hugepage/enabled set "
                    "to madvise or always runs it";
  }
  const KvMemory memory = memory_of(7 * 256);
  const std::int64_t asked = huge_pages().asked_bytes;
  {
    DiskLanding at_once(memory, {});
    at_once.take(std::vector<std::int64_t>{0, 1, 2, 3, 6});
    EXPECT_EQ(huge_pages().asked_bytes, asked + 2 * kHugeBytes);
    at_once.take(std::vector<std::int64_t>{0, 1, 2, 3, 6});  // they have it
    EXPECT_EQ(huge_pages().asked_bytes, asked + 2 * kHugeBytes);
  }
  EXPECT_EQ(huge_pages().asked_bytes, asked);
  DiskLanding one_by_one(memory, {});
  one_by_one.take(std::vector<std::int64_t>{3});
  one_by_one.take(std::vector<std::int64_t>{1});
  EXPECT_EQ(huge_pages().asked_bytes, asked);
  one_by_one.take(std::vector<std::int64_t>{0});
  EXPECT_EQ(huge_pages().asked_bytes, asked + kHugeBytes);
}

TEST(DiskLanding, GetsHugePagesThatBlocksFillWhereverItsFirstBlockBegins) {
  const KvMemory memory = memory_of(7 * 256);
  for (const std::int64_t first : {0, 1}) {
    std::vector<std::int64_t> huge;
    for (const PagePlace& place : {PagePlace{}, PagePlace{.nodes = {0}}}) {
      DiskLanding landing(memory, place);
      std::vector<std::int64_t> blocks;
      for (std::int64_t block = first; block < 6; ++block) blocks.push_back(block);
      landing.take(blocks);
      for (const std::int64_t block : blocks) {
        std::fill_n(landing.unit(block, 0), 4 * disk_unit_bytes(memory, block), std::byte{1});
      }
      PlacedBytes bytes;
      landing.report(bytes);
      std::int64_t found = 0;
      for (const auto& [node, on_it] : bytes.by_node) found += on_it;
      EXPECT_EQ(found, (6 - first) * 4 * disk_unit_bytes(memory, 0));
      huge.push_back(page_calls().huge_bytes(bytes.spans));
    }
    EXPECT_EQ(huge[1], huge[0]) << "on a node as anywhere; from block " << first;
  }
}

}  // namespace
}  // namespace hybridgen
