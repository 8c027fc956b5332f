// SPDX-License-Identifier: Apache-2.0
// Where the pages of running requests lie, as the system says.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/lower_tiers.h"
#include "engine/request.h"
#include "hybridgen/engine/engine.h"

namespace hybridgen {

/// Adds to each of `usage` the pages of `requests` on the nodes that are its tier's. A node that is
/// no CXL memory counts as DRAM: pages that lie where they should not are seen, not left out. Of a
/// node that stands for both, where CXL memory is invented, `placed_in_cxl` bytes are that tier's.
void add_pages(const LowerTiers& tiers,
               std::int64_t placed_in_cxl,
               const std::vector<const Request*>& requests,
               std::vector<TierUsage>& usage);

}  // namespace hybridgen
