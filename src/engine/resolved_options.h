// SPDX-License-Identifier: Apache-2.0
// What an engine makes of a user's options, which stay as they are: tiers with their bytes, and the
// same options with every automatic value chosen.
#pragma once

#include "device/device_context.h"
#include "engine/machine.h"
#include "hybridgen/core/engine_options.h"
#include "hybridgen/core/model_config.h"
#include "memory/budgets.h"
#include "models/decoder_model.h"

namespace hybridgen {

/// Budgets of the device and of host memory: the bytes that were asked for, or a share of those
/// that are free now: of a device that is not the host, of its own.
Budgets make_budgets(const EngineOptions& options, const DeviceContext& device);

/// What an engine takes of a device that is not the host, whatever its requests are; `scored_rows`:
/// prompt rows whose logits are there at a time. OutOfMemoryError if the device has less.
Reservation reserve_for_engine(const DecoderModel& model,
                               const EngineOptions& resolved,
                               std::int64_t scored_rows,
                               Budgets& budgets);

/// `options` as an engine with these parts has them.
EngineOptions resolved_options(EngineOptions options,
                               const ModelConfig& config,
                               const Budgets& budgets,
                               const Machine& machine);

}  // namespace hybridgen
