// SPDX-License-Identifier: Apache-2.0
// Many readers of blocks that share huge pages of what they are read into, beside blocks that move.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "kvcache/kv_disk.h"
#include "kvcache/stored_rows.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kLayers = 2;
constexpr std::int64_t kHeads = 4;
constexpr std::int64_t kCapacity = 1948;  // the last of eight blocks is a short one
constexpr std::int64_t kRowBytes = 1024;
constexpr std::int64_t kInMemory = 5;  // a block that never leaves

std::int32_t number_of(std::int64_t layer, std::int64_t head, std::int64_t token) {
  return static_cast<std::int32_t>(1 + layer * 1000003 + head * 100003 + token);
}

class ManyReaders : public testing::Test {
 protected:
  ManyReaders() {
    for (KvMemory* memory : {&keys_, &values_}) {
      memory->grow(kCapacity, "test");
      for (std::int64_t layer = 0; layer < kLayers; ++layer) {
        for (std::int64_t g = 0; g < kHeads; ++g) fill(memory->head(layer, g), layer, g);
      }
    }
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      for (std::int64_t block = 0; block < keys_.num_blocks(); ++block) {
        if (block == kInMemory) continue;
        disk_.write(side, block);
        disk_.leave(side, block);
      }
    }
  }

  static void fill(std::byte* rows, std::int64_t layer, std::int64_t g) {
    for (std::int64_t t = 0; t < kCapacity; ++t) {
      const std::int32_t number = number_of(layer, g, t);
      std::memcpy(rows + t * kRowBytes + kRowBytes / 2, &number, sizeof(number));
    }
  }
  static bool is_row_of(const std::byte* row, std::int64_t layer, std::int64_t g, std::int64_t t) {
    std::int32_t number = 0;
    std::memcpy(&number, row + kRowBytes / 2, sizeof(number));
    return number == number_of(layer, g, t);
  }

  void read_some_values(std::int64_t layer, std::int64_t g, std::mt19937& random) {
    std::vector<std::int32_t> tokens;
    const auto gap = static_cast<std::int32_t>(1 + random() % 500);
    for (auto t = static_cast<std::int32_t>(random() % 1500); t < kCapacity; t += gap) {
      tokens.push_back(t);
    }
    const StoredRows rows(values_, layer, g, disk_.bring(layer, KvSide::kValues, g, tokens));
    std::vector<std::byte> found(tokens.size() * kRowBytes);
    rows.copy(tokens, found.data());
    for (std::size_t j = 0; j < tokens.size(); ++j) {
      EXPECT_TRUE(is_row_of(found.data() + j * kRowBytes, layer, g, tokens[j]));
    }
  }
  void read_all_keys(std::int64_t layer, std::int64_t g) {
    const StoredRows rows(keys_, layer, g, disk_.bring(layer, KvSide::kKeys));
    rows.for_each_piece(TokenRange{0, kCapacity}, [&](const std::byte* origin, TokenRange piece) {
      for (std::int64_t t = piece.begin; t < piece.end; ++t) {
        EXPECT_TRUE(is_row_of(origin + t * kRowBytes, layer, g, t));
      }
    });
  }

  static KvMemoryShape shape() {
    return {.num_kv_heads = kHeads,
            .num_layers = kLayers,
            .capacity = kCapacity,
            .row_bytes = kRowBytes};
  }
  TestFolder folder_;
  TraceRecorder trace_;
  DiskFile file_{folder_.string(), std::int64_t{256} << 20};
  DiskQueue queue_{file_, trace_, 4};
  KvMemory keys_{shape()};
  KvMemory values_{shape()};
  KvDisk disk_{{.file = &file_, .queue = &queue_}, keys_, values_};
};

TEST_F(ManyReaders, SeeWhatWasWrittenWhileABlockComesBackAndLeavesAgain) {
  std::mt19937 random(7);
  for (std::int64_t step = 0; step < 12; ++step) {
    const std::int64_t moving = step % kInMemory;
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      if (layer == 0) disk_.expect(1, KvSide::kKeys);
      std::vector<std::thread> threads;
      for (std::int64_t g = 0; g < kHeads; ++g) {
        threads.emplace_back([this, g, layer, seed = random()] {
          std::mt19937 own(seed);
          for (int i = 0; i < 6; ++i) read_some_values(layer, g, own);
          read_all_keys(layer, g);
        });
      }
      threads.emplace_back([this, layer, moving] {
        for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
          layer == 0 ? static_cast<void>(disk_.bring_back(side, moving, {}))
                     : disk_.write(side, moving);
        }
      });
      for (std::thread& thread : threads) thread.join();
      disk_.release(layer);
    }
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) disk_.leave(side, moving);
  }
}

}  // namespace
}  // namespace hybridgen
