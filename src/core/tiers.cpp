// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/tiers.h"

#include <stdexcept>

namespace hybridgen {

std::string_view name_of(TierKind tier) {
  switch (tier) {
    case TierKind::kDevice:
      return "device";
    case TierKind::kDram:
      return "dram";
    case TierKind::kCxl:
      return "cxl";
    case TierKind::kDisk:
      return "disk";
  }
  throw std::logic_error("internal check failed: not an enumerator of TierKind");
}

}  // namespace hybridgen
