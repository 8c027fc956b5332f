// SPDX-License-Identifier: Apache-2.0
#include "memory/budgets.h"

#include <functional>
#include <tuple>
#include <utility>

namespace hybridgen {

void Budgets::add(TierKind tier, std::int64_t capacity_bytes, const std::string& setting) {
  budgets_.emplace(std::piecewise_construct,
                   std::forward_as_tuple(tier),
                   std::forward_as_tuple(tier, capacity_bytes, setting));
}

void Budgets::add_shared(TierKind tier,
                         std::int64_t capacity_bytes,
                         const std::string& setting,
                         bool is_everyones,
                         ProcessMemory& process) {
  budgets_.emplace(
      std::piecewise_construct,
      std::forward_as_tuple(tier),
      std::forward_as_tuple(tier, capacity_bytes, setting, std::ref(process), is_everyones));
}

}  // namespace hybridgen
