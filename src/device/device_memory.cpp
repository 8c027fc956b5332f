// SPDX-License-Identifier: Apache-2.0
#include "device/device_memory.h"

#include <c10/core/CachingDeviceAllocator.h>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

// Before torch 2.10 the allocator of a device does not know what the device has.
template <typename Allocator>
std::int64_t free_bytes(Allocator& allocator, c10::Device device) {
  if constexpr (requires { allocator.getMemoryInfo(device.index()); }) {
    return static_cast<std::int64_t>(allocator.getMemoryInfo(device.index()).first);
  } else {
    throw DeviceError(message("[device] this torch does not say how much memory of '",
                              device.str(),
                              "' is free; allowed: torch >= 2.10"));
  }
}

}  // namespace

std::int64_t available_device_bytes(c10::Device device) {
  c10::DeviceAllocator& allocator = *c10::getDeviceAllocator(device.type());
  const auto stats = allocator.getDeviceStats(device.index());
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return free_bytes(allocator, device) + stats.reserved_bytes[kAll].current -
         stats.allocated_bytes[kAll].current;
}

}  // namespace hybridgen
