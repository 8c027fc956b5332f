// SPDX-License-Identifier: Apache-2.0
#include "memory/memory_budget.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

TEST(MemoryBudget, UsedPlusFreeIsAlwaysTheCapacity) {
  MemoryBudget budget(TierKind::kDram, 100, "dram");
  const auto total = [&] { return budget.used_bytes() + budget.free_bytes(); };
  EXPECT_EQ(total(), 100);
  {
    const Reservation first = budget.reserve(30, "a");
    const Reservation second = budget.reserve(70, "b");
    EXPECT_EQ(budget.free_bytes(), 0);
    EXPECT_EQ(total(), 100);
  }
  EXPECT_EQ(budget.used_bytes(), 0);
}

TEST(MemoryBudget, RefusedReservationChangesNothing) {
  MemoryBudget budget(TierKind::kDram, 100, "dram");
  const Reservation held = budget.reserve(60, "held");
  EXPECT_THROW(static_cast<void>(budget.reserve(41, "too much")), OutOfMemoryError);
  EXPECT_EQ(budget.used_bytes(), 60);
  EXPECT_NO_THROW(static_cast<void>(budget.reserve(40, "fits")));
}

TEST(MemoryBudget, RefusalNamesOperationTierSizesAndSetting) {
  MemoryBudget budget(TierKind::kDevice, 4096, "KVConfig(device=...)");
  const Reservation held = budget.reserve(1024, "held");
  try {
    static_cast<void>(budget.reserve(5000, "admit request 7"));
    FAIL() << "reserved more than there is";
  } catch (const OutOfMemoryError& error) {
    const std::string text = error.what();
    for (const char* part :
         {"admit request 7", "device", "5000", "3.0 KiB", "4.0 KiB", "KVConfig(device=...)"}) {
      EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
    }
  }
}

TEST(MemoryBudget, RejectsACapacityOfZeroAndNegativeReservations) {
  EXPECT_THROW(MemoryBudget(TierKind::kDram, 0, "dram"), ConfigError);
  MemoryBudget budget(TierKind::kDram, 100, "dram");
  EXPECT_THROW(static_cast<void>(budget.reserve(-1, "negative")), ConfigError);
}

TEST(Reservation, MovingKeepsTheBytesHeldOnce) {
  MemoryBudget budget(TierKind::kDram, 100, "dram");
  Reservation first = budget.reserve(30, "a");
  Reservation second = std::move(first);
  EXPECT_EQ(budget.used_bytes(), 30);
  EXPECT_EQ(second.bytes(), 30);
  second = budget.reserve(50, "b");  // gives the 30 back
  EXPECT_EQ(budget.used_bytes(), 50);
  second = Reservation();
  EXPECT_EQ(budget.used_bytes(), 0);
}

TEST(AvailableHostBytes, IsPositiveOnAMachineThatRunsThisTest) {
  EXPECT_GT(available_host_bytes(), 0);
}

}  // namespace
}  // namespace hybridgen
