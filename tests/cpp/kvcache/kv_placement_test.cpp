// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace hybridgen {
namespace {

using Places = std::vector<BlockPlace>;
constexpr auto kDram = BlockPlace::kDram;
constexpr auto kCxl = BlockPlace::kCxl;
constexpr auto kTurns = BlockPlace::kInterleaved;
constexpr auto kDisk = BlockPlace::kDisk;

TierBytes room_of(std::int64_t dram, std::int64_t cxl, std::int64_t disk = 0) {
  TierBytes room;
  room[TierKind::kDram] = dram;
  room[TierKind::kCxl] = cxl;
  room[TierKind::kDisk] = disk;
  return room;
}

/// Blocks of one byte, oldest first, as a text: K or V, then d(ram), c(xl), t(urns) or (dis)k; a +
/// behind it: still written to; a !: of a request that asked for the disk.
std::vector<TierBlock> blocks_of(const std::string& text) {
  std::vector<TierBlock> blocks;
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] != 'K' && text[i] != 'V') continue;
    const char place = text[i + 1];
    blocks.push_back({.id = {0,
                             text[i] == 'K' ? KvSide::kKeys : KvSide::kValues,
                             static_cast<std::int64_t>(blocks.size() / 2)},
                      .bytes = 1,
                      .place = place == 'd'   ? kDram
                               : place == 'c' ? kCxl
                               : place == 't' ? kTurns
                                              : kDisk,
                      .is_closed = i + 2 >= text.size() || text[i + 2] != '+',
                      .goes_to_disk = i + 2 < text.size() && text[i + 2] == '!'});
  }
  return blocks;
}

std::vector<NewBlock> growth_of(const std::string& sides) {
  std::vector<NewBlock> growth;
  for (const char side : sides) {
    growth.push_back({.id = {.side = side == 'K' ? KvSide::kKeys : KvSide::kValues}, .bytes = 1});
  }
  return growth;
}

struct Row {
  const char* what;
  KvPlacement placement;
  TierBytes room;
  std::int64_t low_water;
  const char* blocks;
  const char* growth;
  Places places;
  std::vector<BlockMove> moves;
};

TEST(KvPlacement, FollowsItsTable) {
  const auto semantic = KvPlacement::kSemantic;
  const auto interleave = KvPlacement::kInterleave;
  const auto first_touch = KvPlacement::kFirstTouch;
  const std::vector<Row> rows{
      {"all fits", semantic, room_of(6, 6), 0, "KdVd", "KV", {kDram, kDram}, {}},
      {"nothing but DRAM", semantic, room_of(4, 0), 0, "KdVd", "KV", {kDram, kDram}, {}},
      {"too many: new values go below",
       semantic,
       room_of(3, 9),
       0,
       "KdVd",
       "KV",
       {kDram, kCxl},
       {}},
      {"a new key takes the oldest value's place",
       semantic,
       room_of(4, 9),
       0,
       "KdVdKdVd",
       "KV",
       {kDram, kCxl},
       {{1, kDram, kCxl}}},
      {"also while that is written to",
       semantic,
       room_of(2, 9),
       0,
       "KdVd+",
       "KV",
       {kDram, kCxl},
       {{1, kDram, kCxl}}},
      {"keys alone are too many: the oldest goes below",
       semantic,
       room_of(2, 9),
       0,
       "KdVcKdVc",
       "KV",
       {kDram, kCxl},
       {{0, kDram, kCxl}}},
      {"the next oldest follows",
       semantic,
       room_of(2, 9),
       0,
       "KcVcKdVcKdVc",
       "KV",
       {kDram, kCxl},
       {{2, kDram, kCxl}}},
      {"low water: room for the next key before it comes",
       semantic,
       room_of(4, 9),
       1,
       "KdVd",
       "K",
       {kDram},
       {}},
      {"low water: values leave before DRAM is full",
       semantic,
       room_of(4, 9),
       1,
       "KdVdVd",
       "K",
       {kDram},
       {{1, kDram, kCxl}}},
      {"below CXL memory the disk: values first",
       semantic,
       room_of(2, 2, 9),
       0,
       "KdVcKdVc",
       "KV",
       {kDram, kCxl},
       // The oldest key needs a place in CXL memory, and so does the new value.
       {{1, kCxl, kDisk}, {0, kDram, kCxl}, {3, kCxl, kDisk}}},
      {"then keys",
       semantic,
       room_of(1, 2, 9),
       0,
       "KcVkKdVc+",
       "K",
       {kDram},
       {{0, kCxl, kDisk}, {2, kDram, kCxl}}},
      {"what is written to stays in memory",
       semantic,
       room_of(2, 0, 9),
       0,
       "KdVd+",
       "K",
       {kDram},
       {{0, kDram, kDisk}}},
      {"without CXL memory the disk is next",
       semantic,
       room_of(4, 0, 9),
       0,
       "KdVdKdVd",
       "KV",
       {kDram, kDram},
       {{1, kDram, kDisk}, {3, kDram, kDisk}}},
      {"keys come back where there is room, the newest first",
       semantic,
       room_of(3, 9),
       1,
       "KcVcKcVc",
       "",
       {},
       {{2, kCxl, kDram}, {0, kCxl, kDram}}},
      {"values come back from the disk only",
       semantic,
       room_of(9, 3, 9),
       1,
       "KdVcKdVk",
       "",
       {},
       {{3, kDisk, kDram}}},
      {"half of each block in each memory",
       interleave,
       room_of(4, 4),
       0,
       "KtVt",
       "KV",
       {kTurns, kTurns},
       {}},
      {"one memory full: the other", interleave, room_of(2, 9), 0, "KtVt", "KV", {kCxl, kCxl}, {}},
      {"whatever comes first lies in DRAM",
       first_touch,
       room_of(3, 9),
       1,
       "KdVd",
       "KVK",
       {kDram, kCxl, kCxl},
       {}},
      {"a key pushes no value away there",
       first_touch,
       room_of(2, 1, 0),
       0,
       "KdVd",
       "K",
       {kCxl},
       {}},
      {"a room became smaller: what is too much goes below",
       semantic,
       room_of(2, 9),
       0,
       "KdVdKdVd",
       "",
       {},
       {{1, kDram, kCxl}, {3, kDram, kCxl}}},
      {"also where nothing else moves",
       first_touch,
       room_of(3, 9),
       0,
       "KdVdKdVd",
       "",
       {},
       {{1, kDram, kCxl}}},
      {"what asked for the disk goes there, and nothing else",
       semantic,
       room_of(9, 9, 9),
       0,
       "Kd!Vd!KdVd",
       "KV",
       {kDram, kDram},
       {{0, kDram, kDisk}, {1, kDram, kDisk}}},
      {"and stays there, whatever memory has room for",
       semantic,
       room_of(9, 9, 9),
       0,
       "Kk!Vk!KkVk",
       "",
       {},
       {{2, kDisk, kDram}, {3, kDisk, kDram}}},
      {"also where nothing else moves, as far as the disk has room",
       first_touch,
       room_of(9, 0, 1),
       0,
       "Kd!Vd!",
       "V",
       {kDram},
       {{0, kDram, kDisk}}},
      {"only what must goes to the disk",
       first_touch,
       room_of(2, 2, 9),
       0,
       "KdVdKcVc",
       "K",
       {kDram},
       {{1, kDram, kDisk}}},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.what);
    const std::vector<TierBlock> blocks = blocks_of(row.blocks);
    const PlacementDecision decision =
        place_blocks({row.placement, row.room, row.low_water}, blocks, growth_of(row.growth));
    EXPECT_TRUE(decision.fits);
    EXPECT_EQ(decision.places, row.places);
    EXPECT_EQ(decision.moves, row.moves);
  }
}

TEST(KvPlacement, SaysSoWhereThereIsNoRoomForNewBlocks) {
  for (const KvPlacement placement :
       {KvPlacement::kSemantic, KvPlacement::kInterleave, KvPlacement::kFirstTouch}) {
    const auto blocks = blocks_of("KdVdKcVc");
    EXPECT_FALSE(place_blocks({placement, room_of(2, 2), 0}, blocks, growth_of("K")).fits);
    const auto open = blocks_of("Kd+Vd+");  // on the disk there would be room
    EXPECT_FALSE(place_blocks({placement, room_of(2, 0, 9), 0}, open, growth_of("V")).fits);
  }
}

TEST(KvPlacement, SaysSoWhereWhatThereIsHasNoRoomAnyMore) {
  const auto blocks = blocks_of("KdVd");
  EXPECT_FALSE(place_blocks({KvPlacement::kSemantic, room_of(1, 0), 0}, blocks, {}).fits);
  EXPECT_TRUE(place_blocks({KvPlacement::kSemantic, room_of(1, 1), 0}, blocks, {}).fits);
}

TEST(KvPlacement, LowWaterIsRoomForAKeyBlockOfEachRequestAndAnEighthAtMost) {
  EXPECT_EQ(low_water_bytes(room_of(1000, 1), 3, 10), 30);
  EXPECT_EQ(low_water_bytes(room_of(80, 1), 3, 10), 10);
  EXPECT_EQ(low_water_bytes(room_of(1000, 0, 1), 3, 10), 30);
  EXPECT_EQ(low_water_bytes(room_of(1000, 0), 3, 10), 0);  // nothing to push down to
}

/// An engine's blocks through a random life: requests come, grow by K and V, and end.
struct Life {
  explicit Life(unsigned seed)
      : random(seed), key_bytes(draw(1, 5)), value_bytes(draw(1, 5)), most_blocks(draw(2, 40)) {
    rule.placement = KvPlacement{static_cast<std::uint8_t>(seed % 3)};
    const std::int64_t most = std::max(key_bytes, value_bytes);
    // So many of both, and a block for the unused end of each tier.
    const std::int64_t all = most_blocks * (key_bytes + value_bytes) + 3 * most;
    const std::int64_t dram = draw(0, all);
    rule.room = room_of(dram, all - dram);
    rule.low_water = low_water_bytes(rule.room, 3, key_bytes);
  }

  std::int64_t draw(std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(random);
  }

  PlacementDecision grow(std::int64_t request) {
    const std::vector<NewBlock> growth{{{request, KvSide::kKeys, born}, key_bytes},
                                       {{request, KvSide::kValues, born}, value_bytes}};
    PlacementDecision decision = place_blocks(rule, ledger.blocks(), growth);
    for (const BlockMove& move : decision.moves) ledger.move(move.block, move.to);
    for (std::size_t i = 0; i < decision.places.size(); ++i) {
      ledger.add({growth[i].id, growth[i].bytes, decision.places[i]});
    }
    ++born;
    return decision;
  }

  std::mt19937 random;
  std::int64_t key_bytes;
  std::int64_t value_bytes;
  std::int64_t most_blocks;
  std::int64_t born = 0;
  PlacementRule rule;
  TierLedger ledger;
};

TEST(KvPlacement, NoTierIsEverOverItsRoomAndWhatFitsInAllOfThemFits) {
  for (unsigned seed = 0; seed < 600; ++seed) {
    SCOPED_TRACE(seed);
    Life life(seed);
    for (int step = 0; step < 60; ++step) {
      const std::int64_t request = life.draw(0, 3);
      if (static_cast<std::int64_t>(life.ledger.blocks().size()) >= 2 * life.most_blocks) {
        life.ledger.forget(request);
        continue;
      }
      ASSERT_TRUE(life.grow(request).fits) << "step " << step;
      for (const TierKind tier : kHostTiers) {
        ASSERT_LE(life.ledger.bytes(tier), life.rule.room[tier]) << name_of(tier);
      }
    }
  }
}

TEST(KvPlacement, NoKeyLiesBelowAValueOfItsAgeOrOlderWhileItWouldFitThere) {
  for (unsigned seed = 0; seed < 600; seed += 3) {  // semantic
    SCOPED_TRACE(seed);
    Life life(seed);
    for (int step = 0; step < 60; ++step) {
      if (static_cast<std::int64_t>(life.ledger.blocks().size()) >= 2 * life.most_blocks) {
        life.ledger.forget(life.draw(0, 3));
        continue;
      }
      ASSERT_TRUE(life.grow(life.draw(0, 3)).fits);
      for (const TierBlock& key : life.ledger.blocks()) {
        if (key.id.side != KvSide::kKeys || key.place == kDram) continue;
        ASSERT_TRUE(std::ranges::none_of(life.ledger.blocks(),
                                         [&](const TierBlock& value) {
                                           return value.id.side == KvSide::kValues &&
                                                  value.place < key.place &&
                                                  value.id.index <= key.id.index &&
                                                  life.rule.room[TierKind::kDram] >= key.bytes;
                                         }))
            << "step " << step;
      }
    }
  }
}

TEST(KvPlacement, NothingMovesWhileEverythingFitsInDram) {
  for (unsigned seed = 0; seed < 600; ++seed) {
    Life life(seed);
    life.rule.room = room_of(1000 * (life.key_bytes + life.value_bytes), 50, 50);
    life.rule.low_water = low_water_bytes(life.rule.room, 4, life.key_bytes);
    if (life.rule.placement == KvPlacement::kInterleave) continue;
    for (int step = 0; step < 60; ++step) {
      const PlacementDecision decision = life.grow(life.draw(0, 3));
      ASSERT_EQ(decision.places, (Places{kDram, kDram}));
      ASSERT_TRUE(decision.moves.empty());
    }
  }
}

TEST(KvPlacement, DecidesAgainAsItDidBeforeAndThenLeavesThingsAsTheyAre) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Life first(seed);
    Life second(seed);
    for (int step = 0; step < 40; ++step) {
      const bool is_full =
          static_cast<std::int64_t>(first.ledger.blocks().size()) >= 2 * first.most_blocks;
      if (is_full) break;
      const PlacementDecision one = first.grow(step % 3);
      const PlacementDecision other = second.grow(step % 3);
      ASSERT_EQ(one.places, other.places);
      ASSERT_EQ(one.moves, other.moves);
      // Without growth there is nothing left to do: no block moves back.
      ASSERT_TRUE(place_blocks(first.rule, first.ledger.blocks(), {}).moves.empty());
    }
  }
}

}  // namespace
}  // namespace hybridgen
