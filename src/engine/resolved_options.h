// SPDX-License-Identifier: Apache-2.0
// What an engine makes of a user's options, which stay as they are: tiers with their bytes, and the
// same options with every automatic value chosen.
#pragma once

#include "device/device_context.h"
#include "engine/lower_tiers.h"
#include "engine/machine.h"
#include "hybridgen/core/engine_options.h"
#include "hybridgen/core/model_config.h"
#include "memory/budgets.h"
#include "models/decoder_model.h"

namespace hybridgen {

/// Prompt rows whose logits are there at a time: V floats each.
inline constexpr std::int64_t kScoredRows = 32;

/// Bytes of weights that are yet to be loaded: to a device that is not the host, and to host
/// memory.
struct ComingWeights {
  std::int64_t device = 0;
  std::int64_t host = 0;
};

/// Budgets of the device and of host memory: the bytes that were asked for, or a share of those
/// that are free now, and will be once `coming` has come: of a device that is not the host, of its
/// own.
Budgets make_budgets(const EngineOptions& options,
                     const DeviceContext& device,
                     const LowerTiers& lower,
                     const ComingWeights& coming = {});

/// What an engine takes of a device that is not the host, whatever its requests are; 0 of the host.
/// OutOfMemoryError if the device has less.
std::int64_t engine_bytes_of_device(const ModelConfig& config,
                                    DType dtype,
                                    bool device_is_host,
                                    const EngineOptions& resolved,
                                    const Budgets& budgets);

/// Layers that an engine of this method has room for, of those that are not on the device.
std::int64_t layers_at_a_time(const Method& method);

/// What they take of the device; 0 if all are there, or are read where their files have them.
/// OutOfMemoryError if it has less.
std::int64_t bytes_of_coming_layers(const Weights& weights,
                                    const DeviceContext& device,
                                    const Method& method,
                                    const Budgets& budgets);

/// `options` as an engine with these parts has them.
EngineOptions resolved_options(EngineOptions options,
                               const ModelConfig& config,
                               const Budgets& budgets,
                               const Machine& machine);

}  // namespace hybridgen
