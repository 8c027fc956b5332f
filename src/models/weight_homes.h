// SPDX-License-Identifier: Apache-2.0
// From what a user said of the places of weights to what lies where, by the memory that is free.
#pragma once

#include "device/device_context.h"
#include "hybridgen/core/weight_options.h"
#include "models/weights.h"

namespace hybridgen {

/// Free bytes of a device and of host memory, before any weights are there.
struct FreeBytes {
  std::int64_t device = 0;
  std::int64_t host = 0;
};

/// Shares of the layers' matrices, which have `element_bytes` for each element; beside them
/// `other_bytes` are always on the device. What is to fit leaves a quarter of the memory for keys
/// and values. ConfigError for shares of more than all.
PlaceShares resolve_shares(const WeightOptions& options,
                           const ModelConfig& config,
                           double element_bytes,
                           std::int64_t other_bytes,
                           FreeBytes free);

/// Homes of a model's weights on this device, as `formats.made` says.
WeightHomes weight_homes(const WeightFormats& formats,
                         const ModelConfig& config,
                         DType dtype,
                         const DeviceContext& device);

}  // namespace hybridgen
