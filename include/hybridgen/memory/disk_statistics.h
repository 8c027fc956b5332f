// SPDX-License-Identifier: Apache-2.0
// What was read from and written to the disk tier. Times in seconds, sizes in bytes.
#pragma once

#include <cstdint>

namespace hybridgen {

struct DiskStatistics {
  std::int64_t read_bytes = 0;
  std::int64_t written_bytes = 0;
  std::int64_t waits = 0;     ///< that began before what they waited for had ended
  double read_s = 0.0;        ///< while at least one read was under way
  double read_wait_s = 0.0;   ///< while at least one was waited for
  double write_wait_s = 0.0;  ///< the same of writes

  /// Share of the time of reads that nobody waited for; 1 without reads.
  double hidden_share() const {
    if (read_s <= 0.0) return 1.0;
    return read_wait_s >= read_s ? 0.0 : 1.0 - read_wait_s / read_s;
  }
};

}  // namespace hybridgen
