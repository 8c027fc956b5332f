// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "memory/host_buffer.h"

namespace hybridgen {

/// Room for `bytes` in what the calling thread keeps for the next time.
inline void* room_in(HostBuffer& kept, std::int64_t bytes) {
  const auto wanted = static_cast<std::size_t>(bytes);
  if (kept.size_bytes() < wanted) {
    kept = {};  // the old one's memory first
    kept = HostBuffer(wanted);
  }
  return kept.data();
}

}  // namespace hybridgen
