// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_disk.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "hybridgen/core/error.h"
#include "kvcache/stored_rows.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kLayers = 3;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kCapacity = 1300;  // the sixth block is a short one
constexpr std::int64_t kBlocks = 6;
constexpr std::array kSides{KvSide::kKeys, KvSide::kValues};

KvMemoryShape shape_of(std::int64_t row_bytes) {
  return {
      .num_kv_heads = kHeads, .num_layers = kLayers, .capacity = kCapacity, .row_bytes = row_bytes};
}

class KvOnDisk : public testing::Test {
 protected:
  KvOnDisk() {
    for (const KvSide side : kSides) {
      memory(side).grow(kCapacity, "test");
      for (std::int64_t block = 0; block < kBlocks; ++block) fill(side, block);
    }
  }

  KvMemory& memory(KvSide side) { return side == KvSide::kKeys ? keys_ : values_; }
  std::int64_t row_bytes(KvSide side) { return memory(side).shape().row_bytes; }
  std::int64_t unit(KvSide side, std::int64_t block) {
    const std::int64_t tokens = std::min<std::int64_t>(256, kCapacity - block * 256);
    return tokens * row_bytes(side);
  }
  static std::byte expected(KvSide side, std::int64_t layer, std::int64_t head, std::int64_t at) {
    return static_cast<std::byte>(
        1 + (static_cast<std::int64_t>(side) * 7 + layer * 31 + head * 101 + at * 3 + at / 509) %
                255);  // never 0
  }
  void fill(KvSide side, std::int64_t block) {
    const std::int64_t begin = block * 256 * row_bytes(side);
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      for (std::int64_t g = 0; g < kHeads; ++g) {
        std::byte* const head = memory(side).head(layer, g);
        for (std::int64_t i = begin; i < begin + unit(side, block); ++i) {
          head[i] = expected(side, layer, g, i);
        }
      }
    }
  }
  bool is_there(KvSide side,
                std::int64_t block,
                std::int64_t layer,
                std::int64_t g,
                const DiskLanding* landing = nullptr) {
    const StoredRows rows(memory(side), layer, g, landing);
    const StoredRows::Piece piece = rows.piece_at(block * 256);
    EXPECT_GE(piece.end, std::min(kCapacity, (block + 1) * 256));
    const std::int64_t begin = block * 256 * row_bytes(side);
    for (std::int64_t i = begin; i < begin + unit(side, block); ++i) {
      if (piece.origin[i] != expected(side, layer, g, i)) return false;
    }
    return true;
  }
  bool is_there(KvSide side, std::int64_t layer, const DiskLanding* landing = nullptr) {
    for (std::int64_t block = 0; block < kBlocks; ++block) {
      for (std::int64_t g = 0; g < kHeads; ++g) {
        if (!is_there(side, block, layer, g, landing)) return false;
      }
    }
    return true;
  }
  void put_away(KvSide side, std::int64_t block) {
    disk_.write(side, block);
    disk_.leave(side, block);
  }
  std::int64_t pages(KvSide side) { return memory(side).found().bytes(); }
  void fail(DiskCall which, int error) {
    calls_.answer = [which, error](DiskCall call, int) -> std::optional<std::int64_t> {
      return call == which ? std::optional<std::int64_t>(-error) : std::nullopt;
    };
  }

  TestFolder folder_;
  FaultyDisk calls_;
  TraceRecorder trace_;
  DiskFile file_{folder_.string(), std::int64_t{8} << 20, calls_, std::int64_t{1} << 16};
  DiskQueue queue_{file_, trace_, 4, std::int64_t{1} << 16};
  KvMemory keys_{shape_of(64)};
  KvMemory values_{shape_of(96)};
  KvDisk disk_{{.file = &file_, .queue = &queue_}, keys_, values_};
};

TEST_F(KvOnDisk, ABlockThatLeftHasNoMemoryAndIsReadLayerByLayer) {
  for (const KvSide side : kSides) {
    const std::int64_t before = pages(side);
    put_away(side, 0);
    put_away(side, 3);
    const std::int64_t each = 256 * row_bytes(side) * kHeads;
    EXPECT_EQ(pages(side), before - 2 * each * kLayers);
    EXPECT_EQ(disk_.num_blocks(side), 2);
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      EXPECT_FALSE(is_there(side, 0, layer, 0));
      const DiskLanding* const landing = disk_.bring(layer, side);
      EXPECT_TRUE(is_there(side, layer, landing));
      EXPECT_EQ(pages(side), before - 2 * each * kLayers);
      disk_.release(layer);
    }
  }
}

TEST_F(KvOnDisk, LayersAreReadIntoTheSameMemoryByTurns) {
  put_away(KvSide::kValues, 1);
  const DiskLanding* const first = disk_.bring(0, KvSide::kValues);
  const DiskLanding* const second = disk_.bring(1, KvSide::kValues);
  EXPECT_NE(first, second);
  EXPECT_EQ(disk_.bring(0, KvSide::kValues), first);
  EXPECT_EQ(disk_.num_layers_read(), 2);
  disk_.release(0);
  EXPECT_EQ(disk_.num_layers_read(), 1);
  EXPECT_EQ(disk_.bring(2, KvSide::kValues), first);
  EXPECT_TRUE(is_there(KvSide::kValues, 2, first));
  EXPECT_TRUE(is_there(KvSide::kValues, 1, second));
  disk_.release(2);
  disk_.release(2);  // nothing to release
}

TEST_F(KvOnDisk, ReadingAheadReadsOnce) {
  put_away(KvSide::kKeys, 0);
  put_away(KvSide::kKeys, 1);
  disk_.expect(1, KvSide::kKeys);
  disk_.expect(1, KvSide::kKeys);
  EXPECT_TRUE(is_there(KvSide::kKeys, 1, disk_.bring(1, KvSide::kKeys)));
  EXPECT_EQ(queue_.statistics().read_bytes, 2 * 256 * 64 * kHeads);
}

TEST_F(KvOnDisk, OfChosenTokensOnlyTheirBlocksOfTheirHeadAreRead) {
  for (std::int64_t block = 0; block < 4; ++block) put_away(KvSide::kValues, block);
  const std::vector<std::int32_t> tokens{3, 200, 600, 1200};  // blocks 0, 2 and one in memory
  const DiskLanding* const landing = disk_.bring(1, KvSide::kValues, 1, tokens);
  EXPECT_TRUE(is_there(KvSide::kValues, 0, 1, 1, landing));
  EXPECT_TRUE(is_there(KvSide::kValues, 2, 1, 1, landing));
  EXPECT_TRUE(is_there(KvSide::kValues, 4, 1, 1, landing));
  EXPECT_FALSE(is_there(KvSide::kValues, 0, 1, 0, landing));
  EXPECT_FALSE(is_there(KvSide::kValues, 1, 1, 1, landing));
  EXPECT_EQ(queue_.statistics().read_bytes, 2 * 256 * 96);
  disk_.bring(1, KvSide::kValues, 1, tokens);  // they are there
  EXPECT_EQ(queue_.statistics().read_bytes, 2 * 256 * 96);
  EXPECT_EQ(disk_.bring(1, KvSide::kValues), landing);  // and the rest
  EXPECT_TRUE(is_there(KvSide::kValues, 1, landing));
  EXPECT_EQ(queue_.statistics().read_bytes, 8 * 256 * 96);
  disk_.release(1);
}

TEST_F(KvOnDisk, AShortLastBlockIsLikeTheOthers) {
  put_away(KvSide::kKeys, kBlocks - 1);
  put_away(KvSide::kValues, kBlocks - 1);
  for (const KvSide side : kSides) {
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      EXPECT_TRUE(is_there(side, layer, disk_.bring(layer, side)));
    }
  }
}

TEST_F(KvOnDisk, ABlockThatComesBackForGoodNeedsTheDiskNoMore) {
  const std::int64_t before = pages(KvSide::kKeys);
  put_away(KvSide::kKeys, 2);
  disk_.bring_back(KvSide::kKeys, 2, {});
  disk_.arrive(KvSide::kKeys, 2);
  EXPECT_EQ(disk_.num_blocks(KvSide::kKeys), 0);
  EXPECT_EQ(file_.taken_bytes(), 0);
  EXPECT_EQ(pages(KvSide::kKeys), before);
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    EXPECT_TRUE(is_there(KvSide::kKeys, layer));
  }
}

TEST_F(KvOnDisk, MemoryThatLayersWereReadIntoIsReportedAndGoesWithTheLastBlock) {
  const auto reported = [this] {
    PlacedBytes bytes;
    disk_.report(bytes);
    std::int64_t sum = 0;
    for (const auto& [node, on_it] : bytes.by_node) sum += on_it;
    return sum;
  };
  put_away(KvSide::kKeys, 2);
  EXPECT_EQ(reported(), 0);
  disk_.bring(0, KvSide::kKeys);
  disk_.release(0);
  EXPECT_EQ(reported(), 256 * 64 * kHeads);
  disk_.bring_back(KvSide::kKeys, 2, {});
  disk_.arrive(KvSide::kKeys, 2);
  EXPECT_EQ(reported(), 0);
}

TEST_F(KvOnDisk, AFullDiskLeavesABlockInMemory) {
  for (const DiskCall call : {DiskCall::kReserve, DiskCall::kWrite}) {
    fail(call, ENOSPC);
    EXPECT_THROW(
        {
          for (int i = 0; i < 100; ++i) disk_.write(KvSide::kKeys, i % 5);
        },
        OutOfMemoryError);
    calls_.answer = nullptr;
    EXPECT_EQ(disk_.num_blocks(KvSide::kKeys), 0);
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      EXPECT_TRUE(is_there(KvSide::kKeys, layer));
    }
  }
}

TEST_F(KvOnDisk, AReadErrorIsItsReadersAndTheNextReadWorks) {
  put_away(KvSide::kKeys, 0);
  fail(DiskCall::kRead, EIO);
  disk_.expect(0, KvSide::kKeys);
  EXPECT_THROW(disk_.bring(0, KvSide::kKeys), DeviceError);
  EXPECT_THROW(disk_.bring(0, KvSide::kKeys), DeviceError);
  disk_.release(0);
  EXPECT_EQ(disk_.num_layers_read(), 0);
  const std::vector<std::int32_t> token{0};
  EXPECT_THROW(disk_.bring(0, KvSide::kKeys, 0, token), DeviceError);
  disk_.release(0);
  calls_.answer = nullptr;
  EXPECT_TRUE(is_there(KvSide::kKeys, 0, disk_.bring(0, KvSide::kKeys)));
}

TEST_F(KvOnDisk, ABlockThatFailsToComeBackStaysOnTheDisk) {
  put_away(KvSide::kValues, 0);
  const std::int64_t without = pages(KvSide::kValues);
  for (int failing = 0; failing < 3; ++failing) {
    std::atomic<int> reads{0};
    calls_.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
      return call == DiskCall::kRead && reads++ == failing ? std::optional<std::int64_t>(-EIO)
                                                           : std::nullopt;
    };
    EXPECT_THROW(disk_.bring_back(KvSide::kValues, 0, {}), DeviceError);
    disk_.leave(KvSide::kValues, 0);
    calls_.answer = nullptr;
    EXPECT_EQ(disk_.num_blocks(KvSide::kValues), 1);
    EXPECT_EQ(pages(KvSide::kValues), without);
    EXPECT_TRUE(is_there(KvSide::kValues, failing, disk_.bring(failing, KvSide::kValues)));
    disk_.release(failing);
  }
  disk_.bring_back(KvSide::kValues, 0, {});
  disk_.arrive(KvSide::kValues, 0);
  EXPECT_TRUE(is_there(KvSide::kValues, 2));
}

TEST_F(KvOnDisk, WhatWasAskedForLastHoldsThoughEarlierMovesAreCompletedLater) {
  struct Case {
    std::vector<bool> moves;  // to the disk, or back
    bool is_out;
  };
  for (const Case& tried : std::vector<Case>{{{true, false}, false},
                                             {{true, false, true}, true},
                                             {{false, true}, true},
                                             {{false, true, false}, false}}) {
    for (std::size_t completed_early = 0; completed_early < tried.moves.size(); ++completed_early) {
      const std::int64_t before = pages(KvSide::kKeys);
      if (!tried.moves[0]) put_away(KvSide::kKeys, 1);
      const auto complete = [&](std::size_t i) {
        tried.moves[i] ? disk_.leave(KvSide::kKeys, 1) : disk_.arrive(KvSide::kKeys, 1);
      };
      for (std::size_t i = 0; i < tried.moves.size(); ++i) {
        tried.moves[i] ? disk_.write(KvSide::kKeys, 1)
                       : static_cast<void>(disk_.bring_back(KvSide::kKeys, 1, {}));
        if (i + 1 == completed_early) {
          for (std::size_t done = 0; done < completed_early; ++done) complete(done);
        }
      }
      for (std::size_t i = completed_early; i < tried.moves.size(); ++i) complete(i);
      EXPECT_EQ(disk_.num_blocks(KvSide::kKeys), tried.is_out ? 1 : 0);
      EXPECT_EQ(file_.taken_bytes() > 0, tried.is_out);
      EXPECT_EQ(pages(KvSide::kKeys) < before, tried.is_out);
      for (std::int64_t layer = 0; layer < kLayers; ++layer) {
        EXPECT_TRUE(is_there(KvSide::kKeys, layer, disk_.bring(layer, KvSide::kKeys)));
        disk_.release(layer);
      }
      disk_.bring_back(KvSide::kKeys, 1, {});
      disk_.arrive(KvSide::kKeys, 1);
      EXPECT_EQ(pages(KvSide::kKeys), before);
    }
  }
}

TEST_F(KvOnDisk, WhoReadsALayerGoesOnWithItsBlocksWhenTheyComeBackForGood) {
  put_away(KvSide::kKeys, 0);
  const DiskLanding* const landing = disk_.bring(1, KvSide::kKeys);
  disk_.bring_back(KvSide::kKeys, 0, {});
  EXPECT_TRUE(landing->has(0));
  EXPECT_TRUE(is_there(KvSide::kKeys, 1, landing));
  EXPECT_TRUE(is_there(KvSide::kKeys, 1));  // and so does who begins now
  EXPECT_EQ(disk_.bring(0, KvSide::kKeys), nullptr);
  EXPECT_TRUE(is_there(KvSide::kKeys, 0));
  disk_.release_all();
  disk_.arrive(KvSide::kKeys, 0);
}

TEST_F(KvOnDisk, OfARequestThatEndsNothingIsLeftOnTheDisk) {
  {
    KvDisk ending({.file = &file_, .queue = &queue_}, keys_, values_);
    ending.write(KvSide::kKeys, 0);
    ending.leave(KvSide::kKeys, 0);
    ending.expect(0, KvSide::kKeys);
    EXPECT_GT(file_.taken_bytes(), 0);
  }
  EXPECT_EQ(file_.taken_bytes(), 0);
}

TEST_F(KvOnDisk, ReadersSeeWhatWasWrittenWhateverComesAndGoesBesideThem) {
  std::mt19937 random(16);
  const auto draw = [&random](std::int64_t below) {
    return static_cast<std::int64_t>(random() % static_cast<unsigned>(below));
  };
  std::array<std::array<bool, kBlocks>, 2> is_away{};
  for (int step = 0; step < 60; ++step) {
    const auto s = static_cast<std::size_t>(draw(2));
    const KvSide side = kSides.at(s);
    const std::int64_t block = draw(kBlocks);
    bool& away = is_away.at(s).at(static_cast<std::size_t>(block));
    // Between steps something starts to move; it ends beside the readers, and is settled after.
    std::thread mover([&] {
      away ? static_cast<void>(disk_.bring_back(side, block, {})) : disk_.write(side, block);
    });
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      if (layer + 1 < kLayers && draw(2) == 0) disk_.expect(layer + 1, KvSide::kKeys);
      std::vector<std::thread> readers;
      for (std::int64_t g = 0; g < kHeads; ++g) {
        const std::int64_t first = draw(200);
        readers.emplace_back([&, g, first, layer] {
          EXPECT_TRUE(is_there(KvSide::kKeys, layer, disk_.bring(layer, KvSide::kKeys)));
          std::vector<std::int32_t> tokens;
          for (std::int64_t t = first; t < kCapacity; t += 300) {
            tokens.push_back(static_cast<std::int32_t>(t));
          }
          const DiskLanding* const landing = disk_.bring(layer, KvSide::kValues, g, tokens);
          for (const std::int32_t token : tokens) {
            EXPECT_TRUE(is_there(KvSide::kValues, token / 256, layer, g, landing));
          }
        });
      }
      for (std::thread& reader : readers) reader.join();
      disk_.release(layer);
    }
    mover.join();
    away ? disk_.arrive(side, block) : disk_.leave(side, block);
    away = !away;
  }
  EXPECT_GT(queue_.statistics().read_bytes, 0);
}

}  // namespace
}  // namespace hybridgen
