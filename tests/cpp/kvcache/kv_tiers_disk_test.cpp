// SPDX-License-Identifier: Apache-2.0
// Blocks that go to the disk and come back, by memory that only notes what it is asked for: what
// moves them does its part at any time, and what is left of it happens while nobody reads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "hybridgen/core/error.h"
#include "kvcache/kv_tiers.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kBlock = 4;  // tokens; each takes one byte of keys and two of values

struct Disk {
  std::mutex mutex;
  int fails_next_moves = 0;
  std::int64_t written = 0;  ///< blocks
  std::int64_t read = 0;

  void move(std::int64_t& count) {
    const std::lock_guard lock(mutex);
    if (fails_next_moves > 0) {
      --fails_next_moves;
      throw DeviceError("[disk] refuses");
    }
    ++count;
  }
};

class NotedMemory final : public TierMemory {
 public:
  NotedMemory(Disk& disk, std::int64_t capacity) : disk_(disk), capacity_(capacity) {}

  std::int64_t capacity() const override { return capacity_; }
  std::int64_t block_tokens(KvSide /*side*/) const override { return kBlock; }
  std::int64_t granule_tokens(KvSide /*side*/) const override { return kBlock; }
  std::int64_t bytes_of(KvSide side, TokenRange tokens) const override {
    return tokens.size() * (side == KvSide::kKeys ? 1 : 2);
  }
  void take(KvSide side, TokenRange tokens, const PagePlace& /*place*/) override {
    for (std::int64_t i = tokens.begin / kBlock; i * kBlock < tokens.end; ++i) {
      const std::lock_guard lock(mutex_);
      EXPECT_TRUE(states_.try_emplace({side, i}, State::kHere).second) << "taken twice";
    }
  }
  PageMove move(KvSide /*side*/, TokenRange /*tokens*/, const PagePlace& /*place*/) override {
    ADD_FAILURE() << "there is nowhere else";
    return {};
  }
  std::int64_t closed_tokens(KvSide side, std::int64_t written) const override {
    return side == KvSide::kKeys ? std::max<std::int64_t>(0, written - kBlock) : written;
  }
  void write_to_disk(KvSide side, TokenRange tokens) override {
    disk_.move(disk_.written);
    turn(side, tokens, State::kHere, State::kCopied);
  }
  void leave_for_disk(KvSide side, TokenRange tokens) noexcept override {
    const bool failed_to_come_back = state(side, tokens) == State::kOut;
    if (!failed_to_come_back) turn(side, tokens, State::kCopied, State::kOut);
  }
  void read_from_disk(KvSide side, TokenRange tokens, const PagePlace& /*place*/) override {
    disk_.move(disk_.read);
    turn(side, tokens, State::kOut, State::kBack);
  }
  void arrive_from_disk(KvSide side, TokenRange tokens) noexcept override {
    turn(side, tokens, State::kBack, State::kHere);
  }

  /// Whether the ledger tells the truth of what has ended.
  void expect_as(const TierLedger& ledger, std::int64_t request) {
    const std::lock_guard lock(mutex_);
    for (const TierBlock& block : ledger.blocks()) {
      if (block.id.request != request) continue;
      EXPECT_EQ(states_.at({block.id.side, block.id.index}),
                block.place == BlockPlace::kDisk ? State::kOut : State::kHere);
      const std::int64_t open = (block.id.index + 1) * kBlock;
      if (block.place == BlockPlace::kDisk) {
        EXPECT_TRUE(block.is_closed && open <= capacity_);
      }
    }
  }

 private:
  enum class State : std::uint8_t { kHere, kCopied, kOut, kBack };
  State state(KvSide side, TokenRange tokens) {
    const std::lock_guard lock(mutex_);
    return states_.at({side, tokens.begin / kBlock});
  }
  void turn(KvSide side, TokenRange tokens, State from, State to) {
    const std::lock_guard lock(mutex_);
    State& state = states_.at({side, tokens.begin / kBlock});
    EXPECT_EQ(state, from);
    state = to;
  }

  Disk& disk_;
  std::int64_t capacity_;
  std::mutex mutex_;
  std::map<std::pair<KvSide, std::int64_t>, State> states_;
};

struct Tiers {
  Tiers(std::int64_t dram, std::int64_t disk_bytes)
      : budgets(with(dram, disk_bytes)),
        tiers(KvPlacement::kSemantic, {}, budgets, trace, statistics) {}
  static Budgets with(std::int64_t dram, std::int64_t disk_bytes) {
    Budgets budgets;
    budgets.add(TierKind::kDram, dram, "KVConfig(dram=...)");
    budgets.add(TierKind::kDisk, disk_bytes, "KVConfig(disk=...)");
    return budgets;
  }
  struct Request {
    std::unique_ptr<NotedMemory> memory;
    KvHolding holding;
    std::int64_t tokens = 0;
  };
  std::int64_t bytes_for(std::int64_t capacity) const {
    return capacity * 3 + slack_bytes(budgets, 2 * kBlock);
  }
  /// Of growth by up to kMostGrowth tokens: keys of the block before stay open, too.
  static constexpr std::int64_t kMostGrowth = 6;
  static OpenBytes open_bytes(std::int64_t capacity) {
    const std::int64_t blocks = 1 + (kMostGrowth + kBlock - 1) / kBlock;
    return {.resting = std::min((2 * 1 + 2) * kBlock, 3 * capacity),
            .growing = std::min(3 * kBlock * blocks, 3 * capacity)};
  }
  struct Needs {
    std::int64_t bytes = 0;
    OpenBytes open;
  };
  Needs needs(std::int64_t capacity, bool asks_for_disk) const {
    OpenBytes open = open_bytes(capacity);
    if (!asks_for_disk) return {bytes_for(capacity), open};
    open.to_disk = 3 * capacity;
    open.growing = std::min(open.growing, open.to_disk - open.resting);
    return {open.to_disk + open.resting, open};
  }
  bool fits(std::int64_t capacity, bool asks_for_disk = false) const {
    const Needs needed = needs(capacity, asks_for_disk);
    return tiers.fits_now(0, needed.bytes, needed.open);
  }
  void admit(std::int64_t id, std::int64_t capacity, bool asks_for_disk = false) {
    const Needs needed = needs(capacity, asks_for_disk);
    KvHolding holding = tiers.hold(id, 0, needed.bytes, needed.open);
    Request& request = requests[id];
    request.memory = std::make_unique<NotedMemory>(disk, capacity);
    request.holding = std::move(holding);
    request.holding.set_memory(*request.memory, /*is_rewritten=*/false);
  }
  void grow(std::int64_t id, std::int64_t tokens) {
    requests.at(id).holding.grow(tokens);
    requests.at(id).tokens = tokens;
  }
  void expect_truth() {
    tiers.finish_moves();
    for (auto& [id, request] : requests) request.memory->expect_as(tiers.ledger(), id);
  }
  std::int64_t bytes(KvSide side, TierKind tier) const { return tiers.ledger().bytes(side)[tier]; }

  Disk disk;
  TraceRecorder trace;
  TierStatistics statistics;
  Budgets budgets;
  KvTiers tiers;
  std::map<std::int64_t, Request> requests;  ///< last: ends first
};

TEST(KvTiersOnDisk, ValuesGoFirstAndTheNewestTokensStay) {
  Tiers tiers(80, 500);
  tiers.admit(1, 40);
  for (std::int64_t tokens = 1; tokens <= 40; ++tokens) {
    tiers.grow(1, tokens);
    tiers.expect_truth();
  }
  EXPECT_EQ(tiers.bytes(KvSide::kKeys, TierKind::kDisk), 0);
  EXPECT_GT(tiers.bytes(KvSide::kValues, TierKind::kDisk), 40);
  EXPECT_GT(tiers.disk.written, 4);
}

TEST(KvTiersOnDisk, BlocksComeBackWhenOthersEnd) {
  Tiers tiers(90, 500);
  for (const std::int64_t id : {1, 2}) {
    tiers.admit(id, 20);
    for (std::int64_t tokens = 4; tokens <= 20; tokens += 4) tiers.grow(id, tokens);
  }
  tiers.expect_truth();
  EXPECT_GT(tiers.bytes(KvSide::kValues, TierKind::kDisk), 0);
  tiers.requests.erase(2);
  tiers.tiers.settle();
  tiers.expect_truth();
  EXPECT_EQ(tiers.bytes(KvSide::kValues, TierKind::kDisk), 0);
  EXPECT_GT(tiers.disk.read, 0);
}

TEST(KvTiersOnDisk, ADiskThatRefusesEndsTheGrowthThatNeedsItAndNothingElse) {
  Tiers tiers(120, 500);
  tiers.admit(1, 12);
  tiers.grow(1, 6);
  tiers.grow(1, 12);
  tiers.admit(2, 60);
  {
    const std::lock_guard lock(tiers.disk.mutex);
    tiers.disk.fails_next_moves = 1000;
  }
  try {
    for (std::int64_t tokens = 4; tokens <= 60; tokens += 4) tiers.grow(2, tokens);
    FAIL() << "there is no memory for it";
  } catch (const DeviceError& error) {
    EXPECT_STREQ(error.what(), "[disk] refuses");
  }
  tiers.requests.erase(2);
  tiers.expect_truth();
  tiers.requests.clear();
  for (const auto& [tier, budget] : tiers.budgets) EXPECT_EQ(budget.used_bytes(), 0);
}

TEST(KvTiersOnDisk, WhatIsStillWrittenToMustFitIntoMemory) {
  Tiers tiers(60, 10000);
  EXPECT_TRUE(tiers.fits(40));
  tiers.admit(1, 40);
  EXPECT_FALSE(tiers.fits(40));
  EXPECT_THROW(tiers.admit(2, 40), OutOfMemoryError);
  tiers.requests.clear();
  EXPECT_TRUE(tiers.fits(40));
}

TEST(KvTiersOnDisk, RequestsThatAskForItGoThereAndShareTheMemoryToGrowIn) {
  const OpenBytes open = Tiers::open_bytes(40);
  Tiers tiers(3 * open.resting + open.growing, 10000);
  for (const std::int64_t id : {1, 2, 3}) tiers.admit(id, 40, /*asks_for_disk=*/true);
  EXPECT_FALSE(tiers.fits(40, /*asks_for_disk=*/true));
  for (const std::int64_t id : {1, 2, 3}) {
    for (std::int64_t tokens = 4; tokens <= 40; tokens += 4) tiers.grow(id, tokens);
  }
  tiers.tiers.settle();
  tiers.expect_truth();
  // All but the block that is written to, and of keys the one before it.
  EXPECT_EQ(tiers.bytes(KvSide::kKeys, TierKind::kDisk), 3 * (40 - kBlock));
  EXPECT_EQ(tiers.bytes(KvSide::kValues, TierKind::kDisk), 3 * 2 * 40);
  tiers.requests.clear();
  for (const auto& [tier, budget] : tiers.budgets) EXPECT_EQ(budget.used_bytes(), 0);
}

TEST(KvTiersOnDisk, OneThatAsksForItStaysThereAndOthersInMemory) {
  Tiers tiers(1000, 1000);
  tiers.admit(1, 40, /*asks_for_disk=*/true);
  tiers.admit(2, 40);
  for (const std::int64_t id : {1, 2}) {
    for (std::int64_t tokens = 4; tokens <= 40; tokens += 4) tiers.grow(id, tokens);
  }
  tiers.tiers.settle();
  tiers.expect_truth();
  const std::int64_t on_disk = tiers.bytes(KvSide::kValues, TierKind::kDisk);
  EXPECT_EQ(on_disk, 2 * 40);
  tiers.requests.erase(2);
  tiers.tiers.settle();
  tiers.expect_truth();
  EXPECT_EQ(tiers.bytes(KvSide::kValues, TierKind::kDisk), on_disk);
  EXPECT_EQ(tiers.disk.read, 0);
}

TEST(KvTiersOnDisk, ThroughAnyLifeTheLedgerTellsTheTruthAndNothingLeaks) {
  for (unsigned seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto draw = [&](std::int64_t least, std::int64_t most) {
      return std::uniform_int_distribution<std::int64_t>(least, most)(random);
    };
    Tiers tiers(draw(60, 200), draw(50, 600));
    const bool fails = seed % 3 == 0;
    std::int64_t next = 0;
    for (int step = 0; step < 60; ++step) {
      const std::int64_t capacity = draw(1, 30);
      const bool asks_for_disk = draw(0, 1) == 0;
      if (draw(0, 3) == 0 && tiers.fits(capacity, asks_for_disk)) {
        try {
          tiers.admit(next++, capacity, asks_for_disk);
        } catch (const Error&) {
          ASSERT_TRUE(fails) << "what fits is admitted";
        }
      }
      if (fails && draw(0, 5) == 0) {
        const std::lock_guard lock(tiers.disk.mutex);
        tiers.disk.fails_next_moves = static_cast<int>(draw(0, 3));
      }
      if (tiers.requests.empty()) continue;
      auto at = tiers.requests.begin();
      std::advance(at, draw(0, static_cast<std::int64_t>(tiers.requests.size()) - 1));
      if (draw(0, 12) == 0) {
        tiers.requests.erase(at);
        continue;
      }
      try {
        tiers.grow(at->first, at->second.tokens + draw(1, Tiers::kMostGrowth));
      } catch (const Error& error) {
        ASSERT_TRUE(fails) << error.what();
        tiers.requests.erase(at);
      }
      tiers.tiers.settle();
    }
    tiers.expect_truth();
    tiers.requests.clear();
    for (const auto& [tier, budget] : tiers.budgets) ASSERT_EQ(budget.used_bytes(), 0);
  }
}

}  // namespace
}  // namespace hybridgen
