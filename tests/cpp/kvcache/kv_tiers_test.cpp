// SPDX-License-Identifier: Apache-2.0
// Where blocks of several requests lie, by memory that only notes what it is asked for.
#include "kvcache/kv_tiers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kBlock = 4;    // tokens
constexpr std::int64_t kGranule = 2;  // tokens; each takes one byte of keys and two of values

/// What all requests' memory has of each tier, and who is told that it has not.
struct Machine {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<TierKind, std::int64_t> bytes;
  std::map<TierKind, std::int64_t> most;  ///< absent: enough
  bool are_moves_held = false;
  int fails_next_moves = 0;

  bool has(TierKind tier, std::int64_t more) {
    return !most.contains(tier) || bytes[tier] + more <= most[tier];
  }
};

class NotedMemory final : public TierMemory {
 public:
  NotedMemory(Machine& machine, std::int64_t capacity) : machine_(machine), capacity_(capacity) {
    for (auto& side : places_) side.assign(static_cast<std::size_t>(capacity), Place::kNone);
  }
  ~NotedMemory() override {
    const std::lock_guard lock(machine_.mutex);
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      for (std::int64_t t = 0; t < capacity_; ++t) {
        if (at(side, t) != Place::kNone) machine_.bytes[tier(at(side, t))] -= row(side);
      }
    }
  }
  NotedMemory(const NotedMemory&) = delete;
  NotedMemory& operator=(const NotedMemory&) = delete;

  std::int64_t capacity() const override { return capacity_; }
  std::int64_t block_tokens(KvSide /*side*/) const override { return kBlock; }
  std::int64_t granule_tokens(KvSide /*side*/) const override { return kGranule; }
  std::int64_t bytes_of(KvSide side, TokenRange tokens) const override {
    return tokens.size() * row(side);
  }
  void take(KvSide side, TokenRange tokens, const PagePlace& place) override {
    const std::lock_guard lock(machine_.mutex);
    if (!machine_.has(place.tier, bytes_of(side, tokens))) {
      throw OutOfMemoryError(message("[take] the ", name_of(place.tier), " tier is full"));
    }
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
      EXPECT_EQ(at(side, t), Place::kNone) << "taken twice";
      put(side, t, place.tier);
    }
  }
  PageMove move(KvSide side, TokenRange tokens, const PagePlace& place) override {
    std::unique_lock lock(machine_.mutex);
    machine_.changed.wait(lock, [&] { return !machine_.are_moves_held; });
    PageMove result;
    const bool fails = machine_.fails_next_moves > 0;
    if (fails) --machine_.fails_next_moves;
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
      EXPECT_NE(at(side, t), Place::kNone) << "moved before it was taken";
      const bool is_there = tier(at(side, t)) == place.tier;
      if (!is_there && (fails || !machine_.has(place.tier, row(side)))) {
        result.left_bytes += row(side);
        result.why = "it is full";
        continue;
      }
      machine_.bytes[tier(at(side, t))] -= row(side);
      put(side, t, place.tier);
      result.moved_bytes += row(side);
    }
    return result;
  }

  /// Whether the ledger tells the truth of what is taken.
  void expect_as(const TierLedger& ledger, std::int64_t request) {
    const std::lock_guard lock(machine_.mutex);
    for (const TierBlock& block : ledger.blocks()) {
      if (block.id.request != request) continue;
      for (std::int64_t t = block.id.index * kBlock;
           t < std::min((block.id.index + 1) * kBlock, capacity_);
           ++t) {
        if (at(block.id.side, t) == Place::kNone) continue;
        EXPECT_EQ(tier(at(block.id.side, t)),
                  block.place == BlockPlace::kDram ? TierKind::kDram : TierKind::kCxl);
      }
    }
  }
  std::int64_t taken(KvSide side) {
    const std::lock_guard lock(machine_.mutex);
    const auto& all = places_[static_cast<std::size_t>(side)];
    return std::ranges::count_if(all, [](Place place) { return place != Place::kNone; });
  }

 private:
  enum class Place : std::uint8_t { kNone, kDram, kCxl };
  static TierKind tier(Place place) {
    return place == Place::kDram ? TierKind::kDram : TierKind::kCxl;
  }
  static std::int64_t row(KvSide side) { return side == KvSide::kKeys ? 1 : 2; }
  Place& at(KvSide side, std::int64_t token) {
    return places_[static_cast<std::size_t>(side)][static_cast<std::size_t>(token)];
  }
  void put(KvSide side, std::int64_t token, TierKind to) {
    at(side, token) = to == TierKind::kDram ? Place::kDram : Place::kCxl;
    machine_.bytes[to] += row(side);
  }

  Machine& machine_;
  std::int64_t capacity_;
  std::array<std::vector<Place>, 2> places_;
};

/// Tiers of so many bytes, and requests in them.
struct Tiers {
  explicit Tiers(std::int64_t dram,
                 std::int64_t cxl,
                 KvPlacement placement = KvPlacement::kSemantic)
      : budgets(with(dram, cxl)),
        tiers(placement,
              {.dram = {.tier = TierKind::kDram, .setting = "KVConfig(dram=...)"},
               .cxl = {.tier = TierKind::kCxl, .setting = "KVConfig(cxl=...)"}},
              budgets,
              trace,
              statistics) {}

  static Budgets with(std::int64_t dram, std::int64_t cxl) {
    Budgets budgets;
    budgets.add(TierKind::kDram, dram, "KVConfig(dram=...)");
    if (cxl > 0) budgets.add(TierKind::kCxl, cxl, "KVConfig(cxl=...)");
    return budgets;
  }

  struct Request {
    std::unique_ptr<NotedMemory> memory;
    KvHolding holding;
    std::int64_t tokens = 0;
  };
  static std::int64_t bytes_for(std::int64_t capacity) { return capacity * 3; }

  Request& admit(std::int64_t id, std::int64_t capacity, std::int64_t dram = 0) {
    KvHolding holding =
        tiers.hold(id, dram, bytes_for(capacity) + slack_bytes(budgets, 2 * kBlock));
    Request& request = requests[id];
    request.memory = std::make_unique<NotedMemory>(machine, capacity);
    request.holding = std::move(holding);
    request.holding.set_memory(*request.memory, /*is_rewritten=*/false);
    return request;
  }
  bool fits(std::int64_t capacity, std::int64_t dram = 0) const {
    return tiers.fits_now(dram, bytes_for(capacity) + slack_bytes(budgets, 2 * kBlock));
  }
  void grow(std::int64_t id, std::int64_t tokens) {
    requests.at(id).holding.grow(tokens);
    requests.at(id).tokens = tokens;
  }
  std::int64_t bytes(KvSide side, TierKind tier) const { return tiers.ledger().bytes(side)[tier]; }
  void hold_moves(bool are_held) {
    {
      const std::lock_guard lock(machine.mutex);
      machine.are_moves_held = are_held;
    }
    machine.changed.notify_all();
  }
  void expect_truth() {
    tiers.finish_moves();
    for (auto& [id, request] : requests) request.memory->expect_as(tiers.ledger(), id);
  }

  Machine machine;
  TraceRecorder trace;
  TierStatistics statistics;
  Budgets budgets;
  KvTiers tiers;
  std::map<std::int64_t, Request> requests;  ///< last: ends first
};

TEST(KvTiers, MemoryComesInGranulesAsTokensCome) {
  Tiers tiers(1000, 0);
  Tiers::Request& request = tiers.admit(1, 100);
  EXPECT_EQ(request.memory->taken(KvSide::kKeys), 0);
  tiers.grow(1, 1);
  EXPECT_EQ(request.memory->taken(KvSide::kKeys), kGranule);
  EXPECT_EQ(request.memory->taken(KvSide::kValues), kGranule);
  tiers.grow(1, 2);
  EXPECT_EQ(request.memory->taken(KvSide::kKeys), kGranule);
  tiers.grow(1, 9);
  EXPECT_EQ(request.memory->taken(KvSide::kKeys), 10);
  tiers.grow(1, 1000);
  EXPECT_EQ(request.memory->taken(KvSide::kValues), 100);
}

TEST(KvTiers, KeysStayInDramWhileValuesMakeRoomForThem) {
  Tiers tiers(40, 200);
  tiers.admit(1, 36);
  for (std::int64_t tokens = 1; tokens <= 36; ++tokens) {
    tiers.grow(1, tokens);
    EXPECT_EQ(tiers.bytes(KvSide::kKeys, TierKind::kCxl), 0);
    tiers.expect_truth();
  }
  EXPECT_EQ(tiers.bytes(KvSide::kKeys, TierKind::kDram), 36);
  EXPECT_GT(tiers.bytes(KvSide::kValues, TierKind::kCxl), 36);
  EXPECT_GT(tiers.statistics.moves_down, 0);
  EXPECT_EQ(tiers.statistics.moves_up, 0);
  EXPECT_EQ(tiers.statistics.growth_waits, 0);  // the low water saw to that
}

TEST(KvTiers, GrowthWaitsForMovesThatItNeeds) {
  Tiers tiers(24, 200);
  tiers.admit(1, 48);
  tiers.grow(1, 4);
  tiers.hold_moves(true);
  std::thread releases([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    tiers.hold_moves(false);
  });
  tiers.grow(1, 24);  // all of DRAM for keys
  releases.join();
  tiers.expect_truth();
  EXPECT_GT(tiers.statistics.growth_waits, 0);
  EXPECT_GT(tiers.statistics.growth_wait_s, 0.0);
}

TEST(KvTiers, KeysComeBackWhenAnotherRequestEnds) {
  Tiers tiers(40, 400);
  tiers.admit(1, 40);
  tiers.grow(1, 40);
  tiers.admit(2, 40);
  tiers.grow(2, 40);
  tiers.expect_truth();
  const std::int64_t below = tiers.bytes(KvSide::kKeys, TierKind::kCxl);
  EXPECT_GE(below, 40);
  tiers.requests.erase(2);
  tiers.tiers.settle();
  tiers.expect_truth();
  EXPECT_LE(tiers.bytes(KvSide::kKeys, TierKind::kCxl), 8);  // but for the low water
  EXPECT_GT(tiers.statistics.moves_up, 0);
}

TEST(KvTiers, WhatOnlyDramCanHoldTakesThePlaceOfOthersBlocks) {
  Tiers tiers(60, 400);
  tiers.admit(1, 40);
  tiers.grow(1, 10);
  EXPECT_EQ(tiers.bytes(KvSide::kValues, TierKind::kDram), 24);
  EXPECT_TRUE(tiers.fits(4, 30));
  EXPECT_FALSE(tiers.fits(4, 61));  // never
  tiers.admit(2, 4, 30);
  tiers.expect_truth();
  EXPECT_LE(tiers.tiers.ledger().bytes(TierKind::kDram), 30);
  EXPECT_LE(tiers.budgets[TierKind::kDram].used_bytes(), 60);
}

TEST(KvTiers, ARequestMayEndWhileItsBlocksMove) {
  Tiers tiers(24, 200);
  tiers.admit(1, 40);
  tiers.grow(1, 4);
  tiers.admit(2, 4);
  tiers.hold_moves(true);
  tiers.grow(1, 8);
  std::thread releases([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    tiers.hold_moves(false);
  });
  tiers.requests.erase(1);
  releases.join();
  tiers.grow(2, 4);
  tiers.expect_truth();
  tiers.requests.clear();
  for (const auto& [tier, budget] : tiers.budgets) EXPECT_EQ(budget.used_bytes(), 0);
}

TEST(KvTiers, ATierWithLessMemoryThanItsBudgetSaysGivesWayToTheOther) {
  Tiers tiers(100, 100);
  tiers.machine.most[TierKind::kDram] = 20;
  tiers.admit(1, 30);
  tiers.grow(1, 30);
  tiers.expect_truth();
  EXPECT_LE(tiers.machine.bytes[TierKind::kDram], 20);
  EXPECT_EQ(tiers.requests.at(1).memory->taken(KvSide::kValues), 30);
}

TEST(KvTiers, AFullTierIsANamedErrorOfTheRequestThatCannotGoOn) {
  Tiers tiers(100, 200);
  tiers.machine.most[TierKind::kDram] = 20;
  tiers.machine.most[TierKind::kCxl] = 20;
  tiers.admit(1, 30);
  tiers.admit(2, 30);
  tiers.grow(1, 4);
  try {
    tiers.grow(2, 30);
    FAIL() << "there is no memory for it";
  } catch (const OutOfMemoryError& error) {
    EXPECT_NE(std::string(error.what()).find(" tier"), std::string::npos) << error.what();
  }
  tiers.requests.erase(2);
  tiers.grow(1, 8);
  tiers.expect_truth();
  tiers.requests.clear();
  for (const auto& [tier, budget] : tiers.budgets) EXPECT_EQ(budget.used_bytes(), 0);
  for (const auto& [tier, bytes] : tiers.machine.bytes) EXPECT_EQ(bytes, 0) << name_of(tier);
}

TEST(KvTiers, ThroughAnyLifeTheLedgerTellsTheTruthAndNothingLeaks) {
  for (unsigned seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto draw = [&](std::int64_t least, std::int64_t most) {
      return std::uniform_int_distribution<std::int64_t>(least, most)(random);
    };
    const std::int64_t dram = draw(30, 200);
    const std::int64_t cxl = draw(0, 2) == 0 ? 0 : draw(30, 300);
    Tiers tiers(dram, cxl, KvPlacement{static_cast<std::uint8_t>(seed % 2 * 2)});
    const bool fails = seed % 3 == 0;
    std::int64_t next = 0;
    for (int step = 0; step < 60; ++step) {
      const std::int64_t capacity = draw(1, 30);
      const std::int64_t dram_only = draw(0, 5);
      if (draw(0, 3) == 0 && tiers.fits(capacity, dram_only)) {
        try {
          tiers.admit(next++, capacity, dram_only);
        } catch (const OutOfMemoryError&) {
          ASSERT_TRUE(fails) << "what fits is admitted";
        }
      }
      if (fails && draw(0, 5) == 0) {
        const std::lock_guard lock(tiers.machine.mutex);
        tiers.machine.fails_next_moves = static_cast<int>(draw(0, 3));
        tiers.machine.most[TierKind::kDram] = draw(10, dram);
      }
      if (tiers.requests.empty()) continue;
      auto at = tiers.requests.begin();
      std::advance(at, draw(0, static_cast<std::int64_t>(tiers.requests.size()) - 1));
      if (draw(0, 12) == 0) {
        tiers.requests.erase(at);
        continue;
      }
      try {
        tiers.grow(at->first, at->second.tokens + draw(1, 6));
      } catch (const OutOfMemoryError&) {
        ASSERT_TRUE(fails) << "only memory that is not there may be missing";
        tiers.requests.erase(at);
      }
      tiers.tiers.settle();
      for (const auto& [tier, budget] : tiers.budgets) {
        ASSERT_LE(budget.used_bytes(), budget.capacity_bytes());
      }
    }
    tiers.expect_truth();
    tiers.requests.clear();
    for (const auto& [tier, budget] : tiers.budgets) ASSERT_EQ(budget.used_bytes(), 0);
    for (const auto& [tier, bytes] : tiers.machine.bytes) ASSERT_EQ(bytes, 0) << name_of(tier);
  }
}

}  // namespace
}  // namespace hybridgen
