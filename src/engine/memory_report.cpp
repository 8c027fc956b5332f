// SPDX-License-Identifier: Apache-2.0
#include "engine/memory_report.h"

#include <algorithm>

#include "memory/page_calls.h"
#include "memory/placed_bytes.h"

namespace hybridgen {
namespace {

std::int64_t cxl_part(const LowerTiers& tiers,
                      std::int64_t placed_in_cxl,
                      int node,
                      std::int64_t bytes) {
  if (std::ranges::find(tiers.cxl_nodes, node) == tiers.cxl_nodes.end()) return 0;
  const bool is_dram = std::ranges::find(tiers.dram_nodes, node) != tiers.dram_nodes.end();
  return is_dram ? std::min(bytes, placed_in_cxl) : bytes;
}

}  // namespace

void add_pages(const LowerTiers& tiers,
               std::int64_t placed_in_cxl,
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
  for (TierUsage& tier : usage) {
    const bool is_cxl = tier.tier == name_of(TierKind::kCxl);
    if (!is_cxl && tier.tier != name_of(TierKind::kDram)) continue;
    for (const auto& [node, bytes] : placed.by_node) {
      const std::int64_t in_cxl = cxl_part(tiers, placed_in_cxl, node, bytes);
      const std::int64_t own = is_cxl ? in_cxl : bytes - in_cxl;
      if (own == 0) continue;
      tier.bytes_by_node[node] = own;
      tier.found_bytes += own;
    }
    tier.huge_page_share = std::min(share, 1.0);
  }
}

}  // namespace hybridgen
