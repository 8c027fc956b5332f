// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/error.h"

#include <array>
#include <cmath>
#include <cstddef>
#include <iomanip>

namespace hybridgen {

std::string human_bytes(double bytes) {
  constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  std::size_t unit = 0;
  // 1023.95 would be printed as "1024.0", so it already belongs to the next unit.
  while (unit + 1 < kUnits.size() && std::abs(bytes) >= (unit == 0 ? 1024.0 : 1023.95)) {
    bytes /= 1024.0;
    ++unit;
  }
  std::ostringstream stream;
  stream << std::fixed << std::setprecision(unit == 0 ? 0 : 1) << bytes << ' ' << kUnits[unit];
  return stream.str();
}

}  // namespace hybridgen
