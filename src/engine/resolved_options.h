// SPDX-License-Identifier: Apache-2.0
// What an engine makes of a user's options, which stay as they are: tiers with their bytes, and the
// same options with every automatic value chosen.
#pragma once

#include "engine/machine.h"
#include "hybridgen/core/engine_options.h"
#include "hybridgen/core/model_config.h"
#include "memory/budgets.h"

namespace hybridgen {

/// Budgets of the device and of host memory: the bytes that were asked for, or a share of those
/// that are free now.
Budgets make_budgets(const EngineOptions& options);

/// `options` as an engine with these parts has them.
EngineOptions resolved_options(EngineOptions options,
                               const ModelConfig& config,
                               const Budgets& budgets,
                               const Machine& machine);

}  // namespace hybridgen
