// SPDX-License-Identifier: Apache-2.0
#include "engine/memory_report.h"

#include <algorithm>

#include "memory/page_calls.h"
#include "memory/placed_bytes.h"

namespace hybridgen {

void add_pages(const HostTiers& tiers,
               const std::vector<const Request*>& requests,
               std::vector<TierUsage>& usage) {
  PlacedBytes placed;
  for (const Request* request : requests) {
    const RequestState& state = *request->state;
    if (state.host != nullptr) state.host->report(placed);
    if (state.parts.proxy != nullptr) state.parts.proxy->report(placed);
  }
  std::int64_t all = 0;
  for (const auto& [node, bytes] : placed.by_node) all += bytes;
  const std::int64_t huge = page_calls().huge_bytes(placed.spans);
  const double share = all == 0 ? 0.0 : static_cast<double>(huge) / static_cast<double>(all);
  const std::vector<int> cxl = tiers.nodes_of(TierKind::kCxl);
  for (TierUsage& tier : usage) {
    const bool is_cxl = tier.tier == name_of(TierKind::kCxl);
    if (!is_cxl && tier.tier != name_of(TierKind::kDram)) continue;
    for (const auto& [node, bytes] : placed.by_node) {
      if ((std::ranges::find(cxl, node) != cxl.end()) != is_cxl) continue;
      tier.bytes_by_node[node] = bytes;
      tier.found_bytes += bytes;
    }
    tier.huge_page_share = std::min(share, 1.0);
  }
}

}  // namespace hybridgen
