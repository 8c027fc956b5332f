// SPDX-License-Identifier: Apache-2.0
// What is left of a device's own memory.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>

namespace hybridgen {

/// Bytes that this process could still take of `device`, which is not the host: those that the
/// device says are free, and those that LibTorch's allocator keeps without a use.
std::int64_t available_device_bytes(c10::Device device);

/// Gives back to the system what LibTorch's allocator keeps of `device` without a use.
void release_cached_memory(c10::Device device);

}  // namespace hybridgen
