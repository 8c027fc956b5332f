// SPDX-License-Identifier: Apache-2.0
#include "engine/lower_tiers.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/option_tables.h"
#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

[[noreturn]] void refuse(const EngineOptions& options,
                         const std::string& name,
                         const std::string& allowed,
                         const std::string& why) {
  OptionInfo option = engine_table().find(name)->info;
  option.allowed = allowed;
  refuse_option("KVConfig", option, engine_table().find(name)->get(options), why);
}

// The node is the CXL tier, whatever it is, and all others are DRAM; the only one is both.
LowerTiers invented(int node, const std::vector<int>& own) {
  LowerTiers tiers{.dram_nodes = own,
                   .cxl_nodes = {node},
                   .cxl_bytes = std::numeric_limits<std::int64_t>::max() / 4};
  if (tiers.dram_nodes.size() > 1) std::erase(tiers.dram_nodes, node);
  return tiers;
}

bool rewrites_host(const Method& method) {
  return method.retains_on_host() || method.has(PartRole::kHostPlacement);
}

}  // namespace

TierPlaces LowerTiers::places() const {
  if (cxl_nodes.empty()) return {};
  TierPlaces places{
      .dram = {.nodes = dram_nodes, .tier = TierKind::kDram, .setting = "KVConfig(dram=...)"},
      .cxl = {.nodes = cxl_nodes, .tier = TierKind::kCxl, .setting = "KVConfig(cxl=...)"}};
  places.both = places.cxl;
  places.both.nodes.insert(places.both.nodes.begin(), dram_nodes.begin(), dram_nodes.end());
  places.both.interleaves = true;
  return places;
}

LowerTiers lower_tiers(const EngineOptions& options, const HostTiers& found) {
  const bool is_invented = options.test.invented_cxl_node >= 0;
  const HostTiers chosen = is_invented ? found : choose_tiers(found, options.tiers);
  std::vector<int> own = chosen.nodes_of(TierKind::kDram);
  if (options.numa_node >= 0) own = {options.numa_node};
  if (options.tiers.cxl_bytes == 0) return {.dram_nodes = std::move(own)};
  if (is_invented) return invented(options.test.invented_cxl_node, own);
  return {.dram_nodes = std::move(own),
          .cxl_nodes = chosen.nodes_of(TierKind::kCxl),
          .cxl_bytes = chosen.available_bytes_of(TierKind::kCxl)};
}

void check_lower_tiers(const EngineOptions& options,
                       const Method& method,
                       const LowerTiers& tiers) {
  const bool has_cxl = !tiers.cxl_nodes.empty();
  const bool has_disk = !options.tiers.disk_path.empty();
  if (has_disk && !method.offloads()) {
    refuse(options, "disk", "None", "this method keeps no tokens on the host");
  }
  if (has_disk && rewrites_host(method)) {
    refuse(options,
           "disk",
           "None",
           "this method writes new tokens over old ones on the host, which so stay in memory");
  }
  if (options.tiers.placement != KvPlacement::kSemantic && !has_cxl) {
    refuse(options, "placement", "'semantic'", "there is no tier below DRAM to place tokens in");
  }
}

void check_shrinking(const EngineOptions& options, const Method& method) {
  if (!options.tiers.shrink_windows) return;
  const auto is_bounded = [](const PartFactory& part) { return part.host_limit != nullptr; };
  const bool has_window = method.residency == Residency::kWindow && !method.window.tokens;
  if (!has_window || method.positions != PositionMode::kOriginal ||
      std::ranges::any_of(method.parts, is_bounded)) {
    refuse(options,
           "shrink_windows",
           "False",
           message("method '", method.name, "' has no window that its tokens could leave early"));
  }
}

}  // namespace hybridgen
