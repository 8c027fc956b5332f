// SPDX-License-Identifier: Apache-2.0
#include "device/device_memory.h"

#include <c10/core/CachingDeviceAllocator.h>

namespace hybridgen {

std::int64_t available_device_bytes(c10::Device device) {
  c10::DeviceAllocator& allocator = *c10::getDeviceAllocator(device.type());
  const auto stats = allocator.getDeviceStats(device.index());
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const auto free = static_cast<std::int64_t>(allocator.getMemoryInfo(device.index()).first);
  return free + stats.reserved_bytes[kAll].current - stats.allocated_bytes[kAll].current;
}

void release_cached_memory(c10::Device device) {
  if (!device.is_cpu()) {
    c10::getDeviceAllocator(device.type())->emptyCache();
  }
}

}  // namespace hybridgen
