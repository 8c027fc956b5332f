// SPDX-License-Identifier: Apache-2.0
// Where the pages of running requests lie, as the system says.
#pragma once

#include <vector>

#include "engine/request.h"
#include "hybridgen/engine/engine.h"
#include "memory/host_tiers.h"

namespace hybridgen {

/// Adds to each of `usage` the pages of `requests` on the nodes that are its tier's. A node that is
/// no CXL memory counts as DRAM: pages that lie where they should not are seen, not left out.
void add_pages(const HostTiers& tiers,
               const std::vector<const Request*>& requests,
               std::vector<TierUsage>& usage);

}  // namespace hybridgen
