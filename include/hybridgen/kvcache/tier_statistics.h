// SPDX-License-Identifier: Apache-2.0
// What changed its tier of host memory since the last reset. Times in seconds, sizes in bytes.
#pragma once

#include <cstdint>

namespace hybridgen {

/// Of blocks of keys and values.
struct TierStatistics {
  std::int64_t moves_down = 0;  ///< to a slower tier
  std::int64_t moved_down_bytes = 0;
  std::int64_t moves_up = 0;
  std::int64_t moved_up_bytes = 0;
  std::int64_t failed_moves = 0;  ///< what they were to move stayed where it was
  double move_s = 0.0;            ///< beside everything else
  std::int64_t switches = 0;      ///< to copies of pinned blocks, of these moves
  double switch_s = 0.0;          ///< between steps
  std::int64_t growth_waits = 0;  ///< times that new tokens had to wait for a move
  double growth_wait_s = 0.0;
};

}  // namespace hybridgen
