// SPDX-License-Identifier: Apache-2.0
// How a device that is not the host pins host memory.
#pragma once

#include <c10/core/Device.h>

#include <memory>

#include "memory/page_pins.h"

namespace hybridgen {

/// Null where `device` is the host, and for CUDA in a build without nvcc. A driver that refuses the
/// first pages of all gets no others: nothing is pinned then, after one warning.
std::unique_ptr<PagePins> device_pins(c10::Device device);

}  // namespace hybridgen
