// SPDX-License-Identifier: Apache-2.0
// The budgets of the tiers that an engine has, by tier.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "memory/memory_budget.h"

namespace hybridgen {

/// See MemoryBudget for threads. Must outlive all reservations.
class Budgets {
 public:
  /// Gives a tier a budget; see MemoryBudget for `setting` and errors.
  void add(TierKind tier, std::int64_t capacity_bytes, const std::string& setting);
  /// One of host memory, or a disk, which the process has for all its engines.
  void add_shared(TierKind tier,
                  std::int64_t capacity_bytes,
                  const std::string& setting,
                  bool is_everyones,
                  ProcessMemory& process = ProcessMemory::instance());

  bool has(TierKind tier) const { return budgets_.contains(tier); }
  /// The budget of a tier that has one.
  MemoryBudget& operator[](TierKind tier) { return budgets_.at(tier); }
  const MemoryBudget& operator[](TierKind tier) const { return budgets_.at(tier); }

  /// (tier, budget) from the device downwards.
  auto begin() const { return budgets_.begin(); }
  auto end() const { return budgets_.end(); }

 private:
  std::map<TierKind, MemoryBudget> budgets_;  // a map: reservations point to its elements
};

}  // namespace hybridgen
