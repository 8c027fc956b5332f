// SPDX-License-Identifier: Apache-2.0
#include "engine/lower_tiers.h"

#include <algorithm>
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
