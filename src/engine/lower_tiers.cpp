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
void invent(int node, LowerTiers& tiers) {
  tiers.cxl_nodes = {node};
  tiers.cxl_bytes = std::numeric_limits<std::int64_t>::max() / 4;
  if (tiers.dram_nodes.size() > 1) std::erase(tiers.dram_nodes, node);
}

bool contains(const std::vector<int>& nodes, int node) {
  return std::ranges::find(nodes, node) != nodes.end();
}

// False, too, where memory cannot be placed, so that nothing can be done about it.
bool has_other_memory(const HostTiers& found, const LowerTiers& tiers) {
  const auto is_other = [&](const ClassifiedNode& node) {
    return node.reachable && !contains(tiers.dram_nodes, node.id) &&
           !contains(tiers.cxl_nodes, node.id);
  };
  const auto can_place = [&](const ClassifiedNode& node) {
    return node.usable && contains(tiers.dram_nodes, node.id);
  };
  return std::ranges::any_of(found.nodes, is_other) && std::ranges::any_of(found.nodes, can_place);
}

bool rewrites_host(const Method& method) {
  return method.retains_on_host() || method.has(PartRole::kHostPlacement);
}

}  // namespace

TierPlaces LowerTiers::places() const {
  if (cxl_nodes.empty() && !has_other_memory) return {};
  TierPlaces places{
      .dram = {.nodes = dram_nodes, .tier = TierKind::kDram, .setting = "KVConfig(dram=...)"}};
  if (cxl_nodes.empty()) return places;
  places.cxl = {.nodes = cxl_nodes, .tier = TierKind::kCxl, .setting = "KVConfig(cxl=...)"};
  places.both = places.cxl;
  places.both.nodes.insert(places.both.nodes.begin(), dram_nodes.begin(), dram_nodes.end());
  places.both.interleaves = true;
  return places;
}

LowerTiers lower_tiers(const EngineOptions& options, const HostTiers& found) {
  const bool is_invented = options.test.invented_cxl_node >= 0;
  const HostTiers chosen = is_invented ? found : choose_tiers(found, options.tiers);
  LowerTiers tiers{.dram_nodes = chosen.nodes_of(TierKind::kDram),
                   .dram_bytes = chosen.available_bytes_of(TierKind::kDram)};
  const bool wants_cxl = options.tiers.cxl_bytes != 0;
  if (wants_cxl && !is_invented) {
    tiers.cxl_nodes = chosen.nodes_of(TierKind::kCxl);
    tiers.cxl_bytes = chosen.available_bytes_of(TierKind::kCxl);
  }
  tiers.has_other_memory = has_other_memory(chosen, tiers);
  if (options.numa_node >= 0) tiers.dram_nodes = {options.numa_node};
  if (wants_cxl && is_invented) invent(options.test.invented_cxl_node, tiers);
  return tiers;
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
