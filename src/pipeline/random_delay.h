// SPDX-License-Identifier: Apache-2.0
// Sleeps for a random time at the seams of both stages, to show that results do not depend on
// timing.
#pragma once

#include <chrono>
#include <cstdint>
#include <thread>

namespace hybridgen {

inline void random_delay(std::int64_t limit_us) {
  if (limit_us <= 0) {
    return;
  }
  thread_local std::uint64_t state = std::hash<std::thread::id>{}(std::this_thread::get_id()) | 1U;
  state ^= state << 13U;
  state ^= state >> 7U;
  state ^= state << 17U;
  std::this_thread::sleep_for(std::chrono::microseconds(
      static_cast<std::int64_t>(state % static_cast<std::uint64_t>(limit_us + 1))));
}

}  // namespace hybridgen
