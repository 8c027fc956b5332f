// SPDX-License-Identifier: Apache-2.0
// What this machine and this version cannot do of the tiers below DRAM that a user asked for.
#pragma once

#include <vector>

#include "hybridgen/core/engine_options.h"
#include "memory/numa.h"

namespace hybridgen {

/// ConfigError for a tier, a placement or a way to make room that `options` name and that these
/// memory nodes or this version do not have.
void check_lower_tiers(const EngineOptions& options, const std::vector<NumaNode>& nodes);

}  // namespace hybridgen
