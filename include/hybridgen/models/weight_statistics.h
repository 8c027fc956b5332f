// SPDX-License-Identifier: Apache-2.0
// Where a model's weights lie, and what of them came to the device while an engine ran. Bytes,
// seconds.
#pragma once

#include <cstdint>

namespace hybridgen {

struct WeightStatistics {
  std::int64_t device_bytes = 0;  ///< that are always there
  std::int64_t host_bytes = 0;
  std::int64_t disk_bytes = 0;
  std::int64_t copied_bytes = 0;  ///< that came to a device from host memory
  std::int64_t read_bytes = 0;    ///< that came from a disk
  double read_s = 0.0;            ///< while at least one read was under way
  double wait_s = 0.0;            ///< while a layer was waited for that came from a disk
  double copy_s = 0.0;            ///< of copies to a device that is not the CPU, from either
  double copy_wait_s = 0.0;       ///< while such a device waited for them

  /// Share of the time of reads and copies that nobody waited for; 1 without any.
  double hidden_share() const {
    const double came_s = read_s + copy_s;
    const double waited_s = wait_s + copy_wait_s;
    if (came_s <= 0.0) return 1.0;
    return waited_s >= came_s ? 0.0 : 1.0 - waited_s / came_s;
  }
};

}  // namespace hybridgen
