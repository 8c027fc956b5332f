// SPDX-License-Identifier: Apache-2.0
#include "kvcache/tier_blocks.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace hybridgen {
namespace {

TEST(TierBlocks, ABlockIsTheSmallestMultipleOf256TokensThatFillsWholePages) {
  EXPECT_EQ(tier_block_tokens(256, 4096), 256);   // 64 values of float32
  EXPECT_EQ(tier_block_tokens(16, 4096), 256);    // exactly one page
  EXPECT_EQ(tier_block_tokens(36, 4096), 1024);   // 64 values in 4 bits and their scale
  EXPECT_EQ(tier_block_tokens(8, 4096), 512);     // half a page
  EXPECT_EQ(tier_block_tokens(68, 4096), 1024);   // 64 values in 8 bits and their scale
  EXPECT_EQ(tier_block_tokens(128, 65536), 512);  // pages of another machine
}

TEST(TierBlocks, BytesOfAnInterleavedBlockAreHalfInEachMemory) {
  TierBytes bytes;
  bytes.add(BlockPlace::kInterleaved, 101);
  EXPECT_EQ(bytes[TierKind::kDram], 51);
  EXPECT_EQ(bytes[TierKind::kCxl], 50);
  EXPECT_EQ(bytes.sum(), 101);
  bytes.add(BlockPlace::kInterleaved, -101);
  EXPECT_EQ(bytes, TierBytes{});
}

TEST(TierLedger, CountsBytesBySideAndTierAndForgetsARequestAsAWhole) {
  TierLedger ledger;
  ledger.add({{1, KvSide::kKeys, 0}, 10, BlockPlace::kDram});
  ledger.add({{1, KvSide::kValues, 0}, 6, BlockPlace::kDram});
  ledger.add({{2, KvSide::kKeys, 0}, 10, BlockPlace::kDram});
  ledger.move(ledger.find({1, KvSide::kValues, 0}), BlockPlace::kCxl);
  EXPECT_EQ(ledger.bytes(KvSide::kKeys)[TierKind::kDram], 20);
  EXPECT_EQ(ledger.bytes(KvSide::kValues)[TierKind::kDram], 0);
  EXPECT_EQ(ledger.bytes(TierKind::kCxl), 6);
  ledger.forget(1);
  EXPECT_EQ(ledger.blocks().size(), 1U);
  EXPECT_EQ(ledger.bytes(TierKind::kDram), 10);
  EXPECT_EQ(ledger.bytes(TierKind::kCxl), 0);
  EXPECT_EQ(ledger.find({1, KvSide::kKeys, 0}), ledger.blocks().size());
}

TEST(TierLedger, ForgetsItsNewestBlocks) {
  TierLedger ledger;
  ledger.add({{1, KvSide::kKeys, 0}, 10, BlockPlace::kDram});
  ledger.add({{1, KvSide::kValues, 0}, 6, BlockPlace::kCxl});
  ledger.keep_first(1);
  EXPECT_EQ(ledger.blocks().size(), 1U);
  EXPECT_EQ(ledger.bytes(TierKind::kDram), 10);
  EXPECT_EQ(ledger.bytes(TierKind::kCxl), 0);
}

TEST(TierLedger, ABlockIsClosedOnceALaterOneOfItsSideIsWrittenTo) {
  TierLedger ledger;
  for (const std::int64_t index : {0, 1, 2}) {
    ledger.add({{1, KvSide::kKeys, index}, 10});
    ledger.add({{1, KvSide::kValues, index}, 10});
  }
  ledger.close_before(1, KvSide::kValues, 2);
  for (const TierBlock& block : ledger.blocks()) {
    EXPECT_EQ(block.is_closed, block.id.side == KvSide::kValues && block.id.index < 2);
  }
}

}  // namespace
}  // namespace hybridgen
