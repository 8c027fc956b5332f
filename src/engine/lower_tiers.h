// SPDX-License-Identifier: Apache-2.0
// What this machine and this version cannot do of the tiers below DRAM that a user asked for.
#pragma once

#include "hybridgen/core/engine_options.h"
#include "hybridgen/methods/method.h"
#include "memory/host_tiers.h"

namespace hybridgen {

/// ConfigError for a tier, a placement or a way to make room that `options` name and that the
/// machine, whose tiers these are, or this version does not have.
void check_lower_tiers(const EngineOptions& options, const HostTiers& found);

/// ConfigError if running windows shall shrink and the method has none that can.
void check_shrinking(const EngineOptions& options, const Method& method);

}  // namespace hybridgen
