// SPDX-License-Identifier: Apache-2.0
#include "engine/lower_tiers.h"

#include <algorithm>
#include <string>

#include "core/option_tables.h"

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

bool is_slower(const NumaNode& node) { return node.total_bytes > 0 && node.cpus.empty(); }

void check_cxl(const EngineOptions& options, const std::vector<NumaNode>& nodes) {
  const LowerTierOptions& tiers = options.tiers;
  if (tiers.cxl_node >= 0) {
    const auto found = std::ranges::find(nodes, tiers.cxl_node, &NumaNode::id);
    if (found == nodes.end() || found->total_bytes == 0) {
      refuse(options,
             "cxl_node",
             "None, or a node with memory",
             "see numa_nodes in: python -m hybridgen info");
    }
    refuse(options, "cxl_node", "None", "this version places nothing on a node of its own yet");
  }
  if (tiers.cxl_bytes <= 0) return;
  if (std::ranges::none_of(nodes, is_slower)) {
    refuse(options,
           "cxl",
           "'auto' or 0",
           "this machine has no memory that is slower than its CPUs' own (see: python -m hybridgen "
           "info); pass cxl_node=N, or leave it out");
  }
  refuse(options, "cxl", "'auto' or 0", "this version places nothing there yet");
}

}  // namespace

void check_lower_tiers(const EngineOptions& options, const std::vector<NumaNode>& nodes) {
  const LowerTierOptions& tiers = options.tiers;
  check_cxl(options, nodes);
  if (!tiers.disk_path.empty()) {
    refuse(options, "disk", "None", "this version keeps no tokens on a disk yet");
  }
  if (tiers.placement != KvPlacement::kSemantic) {
    refuse(options, "placement", "'semantic'", "there is no tier below DRAM to place tokens in");
  }
  if (tiers.shrink_windows) {
    refuse(options, "shrink_windows", "False", "this version never changes a running window");
  }
}

}  // namespace hybridgen
