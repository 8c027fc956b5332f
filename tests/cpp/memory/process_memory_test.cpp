// SPDX-License-Identifier: Apache-2.0
#include "memory/process_memory.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "hybridgen/core/error.h"
#include "memory/budgets.h"

namespace hybridgen {
namespace {

/// A system whose memory a test sets; 95 of 100 available bytes may be promised.
struct System {
  HostMemory host{.available = 1000, .resident = 0};
  ProcessMemory process{[this] { return host; }};

  /// Budgets of an engine: `told` bytes of DRAM for all of them, or `share` for each.
  Budgets engine(std::int64_t device, std::int64_t dram, bool is_told) {
    Budgets budgets;
    budgets.add_shared(TierKind::kDevice, device, "device", false, process);
    budgets.add_shared(TierKind::kDram, dram, "KVConfig(dram=...)", is_told, process);
    return budgets;
  }
};

[[nodiscard]] Reservation take(Budgets& budgets, TierKind tier, std::int64_t bytes) {
  return budgets[tier].reserve(bytes, "test");
}

TEST(ProcessMemory, WhatAUserSaidIsOneBudgetOfAllEngines) {
  System system;
  Budgets first = system.engine(100, 300, true);
  Budgets second = system.engine(100, 300, true);
  std::optional held = take(first, TierKind::kDram, 200);
  EXPECT_EQ(second[TierKind::kDram].free_bytes(), 100);
  EXPECT_THROW(static_cast<void>(take(second, TierKind::kDram, 101)), OutOfMemoryError);
  EXPECT_EQ(second[TierKind::kDram].used_bytes(), 0);
  EXPECT_EQ(second[TierKind::kDram].process_bytes(), 200);
  held.reset();
  EXPECT_EQ(take(second, TierKind::kDram, 300).bytes(), 300);
  EXPECT_EQ(system.process.used(), 0);
}

TEST(ProcessMemory, SharesOfWhatIsFreeNeverPromiseTheSameBytesTwice) {
  System system;
  Budgets first = system.engine(450, 450, false);
  const Reservation a = take(first, TierKind::kDevice, 450);
  // Nothing of it has been written to, so that the system still shows all.
  EXPECT_EQ(system.process.measure_free(), 500);
  Budgets second = system.engine(450, 450, false);
  const Reservation b = take(second, TierKind::kDram, 450);
  EXPECT_EQ(first[TierKind::kDram].free_bytes(), 50);
  EXPECT_THROW(static_cast<void>(take(first, TierKind::kDram, 51)), OutOfMemoryError);
  EXPECT_THROW(static_cast<void>(take(second, TierKind::kDevice, 51)), OutOfMemoryError);
}

TEST(ProcessMemory, AnEngineHasItsShareBesideOthersAsFarAsThereIsMemory) {
  System system;
  Budgets first = system.engine(450, 450, false);
  Budgets second = system.engine(450, 450, false);
  const Reservation a = take(first, TierKind::kDram, 300);
  const Reservation b = take(second, TierKind::kDram, 300);
  EXPECT_EQ(first[TierKind::kDram].process_bytes(), 600);
  EXPECT_EQ(first[TierKind::kDram].free_bytes(), 150);
}

TEST(ProcessMemory, WrittenBytesAreNotCountedTwice) {
  System system;
  Budgets engine = system.engine(450, 450, false);
  const Reservation held = take(engine, TierKind::kDram, 400);
  system.host = {.available = 700, .resident = 300};  // of the 400
  EXPECT_EQ(system.process.measure_free(), 300 + 665 - 400);
  system.host = {.available = 600, .resident = 5000};  // much else is there, too
  EXPECT_EQ(system.process.measure_free(), 570);
}

TEST(ProcessMemory, WeightsTakeTheirPart) {
  System system;
  system.process.add_weights(900);
  Budgets engine = system.engine(450, 450, false);
  EXPECT_EQ(system.process.weights(), 900);
  EXPECT_THROW(static_cast<void>(take(engine, TierKind::kDevice, 51)), OutOfMemoryError);
  system.process.add_weights(-900);
  EXPECT_EQ(take(engine, TierKind::kDevice, 450).bytes(), 450);
}

TEST(ProcessMemory, AsksTheSystemAgainBeforeItRefuses) {
  System system;
  system.host.available = 100;
  Budgets engine = system.engine(450, 450, false);
  EXPECT_EQ(engine[TierKind::kDram].free_bytes(), 95);
  system.host.available = 1000;
  EXPECT_EQ(take(engine, TierKind::kDram, 400).bytes(), 400);
}

TEST(ProcessMemory, ADiskIsNoMemory) {
  System system;
  Budgets engine = system.engine(1, 1, false);
  engine.add_shared(TierKind::kDisk, 5000, "disk", true, system.process);
  const Reservation held = take(engine, TierKind::kDisk, 5000);
  EXPECT_EQ(system.process.used(), 0);
  EXPECT_EQ(system.process.used(TierKind::kDisk), 5000);
}

TEST(ProcessMemory, RefusalsSayWhoHasIt) {
  System system;
  Budgets first = system.engine(100, 300, true);
  Budgets second = system.engine(100, 300, true);
  const Reservation held = take(first, TierKind::kDram, 200);
  try {
    static_cast<void>(take(second, TierKind::kDram, 150));
    FAIL() << "promised twice";
  } catch (const OutOfMemoryError& error) {
    EXPECT_STREQ(error.what(),
                 "[test] wants 150 B (150 bytes) of the dram tier; allowed: at most the 100 B free "
                 "of 300 B, of which other engines hold 200 B; raise KVConfig(dram=...), close "
                 "other engines, or run fewer or shorter requests at a time");
  }
  System small;
  small.host.available = 100;
  Budgets engine = small.engine(100, 300, true);
  try {
    static_cast<void>(take(engine, TierKind::kDram, 96));
    FAIL() << "promised what the machine does not have";
  } catch (const OutOfMemoryError& error) {
    EXPECT_NE(std::string(error.what()).find("the machine has no more memory"), std::string::npos);
  }
}

TEST(ProcessMemory, ThreadsThatTakeAndGiveBackLeaveNothing) {
  System system;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      Budgets engine = system.engine(100, 300, true);
      int num_refused = 0;
      for (int round = 0; round < 2000; ++round) {
        try {
          const Reservation held = take(engine, TierKind::kDram, 120);
          EXPECT_LE(system.process.used(TierKind::kDram), 300);
        } catch (const OutOfMemoryError&) {
          ++num_refused;  // others have it
        }
      }
      EXPECT_LT(num_refused, 2000);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(system.process.used(TierKind::kDram), 0);
}

TEST(ProcessMemory, SeesThisProcess) {
  const HostMemory host = measure_host_memory();
  EXPECT_GT(host.available, 0);
  EXPECT_GT(host.resident, 0);
  const std::int64_t before = ProcessMemory::instance().weights();
  {
    HeldWeights weights(5);
    const HeldWeights moved = std::move(weights);
    EXPECT_EQ(ProcessMemory::instance().weights(), before + 5);
  }
  EXPECT_EQ(ProcessMemory::instance().weights(), before);
}

}  // namespace
}  // namespace hybridgen
