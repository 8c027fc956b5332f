// SPDX-License-Identifier: Apache-2.0
#include "engine/lower_tiers.h"

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

void check_cxl(const EngineOptions& options, const HostTiers& found) {
  static_cast<void>(choose_tiers(found, options.tiers));
  if (options.tiers.cxl_bytes > 0) {
    refuse(options, "cxl", "'auto' or 0", "this version places nothing there yet");
  }
  if (options.tiers.cxl_node >= 0) {
    refuse(options, "cxl_node", "None", "this version places nothing on a node of its own yet");
  }
}

}  // namespace

void check_lower_tiers(const EngineOptions& options, const HostTiers& found) {
  const LowerTierOptions& tiers = options.tiers;
  check_cxl(options, found);
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
