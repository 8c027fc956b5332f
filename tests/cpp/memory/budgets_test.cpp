// SPDX-License-Identifier: Apache-2.0
#include "memory/budgets.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <utility>
#include <vector>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

TEST(Budgets, EachTierHasItsOwn) {
  Budgets budgets;
  budgets.add(TierKind::kDram, 100, "dram");
  budgets.add(TierKind::kDevice, 10, "device");
  const Reservation held = budgets[TierKind::kDram].reserve(60, "test");
  EXPECT_EQ(budgets[TierKind::kDram].free_bytes(), 40);
  EXPECT_EQ(budgets[TierKind::kDevice].free_bytes(), 10);
  EXPECT_THROW(static_cast<void>(budgets[TierKind::kDevice].reserve(11, "test")), OutOfMemoryError);
}

TEST(Budgets, AreListedFromTheDeviceDownwards) {
  Budgets budgets;
  budgets.add(TierKind::kDram, 1, "dram");
  budgets.add(TierKind::kDevice, 1, "device");
  std::vector<TierKind> tiers;
  for (const auto& [tier, budget] : budgets) {
    EXPECT_EQ(budget.tier(), tier);
    tiers.push_back(tier);
  }
  EXPECT_EQ(tiers, (std::vector{TierKind::kDevice, TierKind::kDram}));
}

TEST(Budgets, KeepReservationsWhenTheyMove) {
  Budgets first;
  first.add(TierKind::kDevice, 10, "device");
  Reservation held = first[TierKind::kDevice].reserve(4, "test");
  Budgets second = std::move(first);
  EXPECT_EQ(second[TierKind::kDevice].used_bytes(), 4);
  held = {};
  EXPECT_EQ(second[TierKind::kDevice].used_bytes(), 0);
}

TEST(Budgets, ATierWithoutOneIsAMistakeOfTheCaller) {
  Budgets budgets;
  budgets.add(TierKind::kDevice, 10, "device");
  EXPECT_THROW(static_cast<void>(budgets[TierKind::kCxl].free_bytes()), std::out_of_range);
}

}  // namespace
}  // namespace hybridgen
