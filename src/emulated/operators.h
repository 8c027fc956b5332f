// SPDX-License-Identifier: Apache-2.0
// LibTorch's operators on emulated devices: each is queued on the current stream and runs
// LibTorch's own CPU kernel over the device's memory.
#pragma once

#include <c10/core/DeviceType.h>

namespace hybridgen::emulated {

/// Registers them for the backend of `type`, for the life of the process.
void register_operators(c10::DeviceType type);

}  // namespace hybridgen::emulated
