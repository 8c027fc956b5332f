// SPDX-License-Identifier: Apache-2.0
// Searches among whole numbers for where something stops, or begins, to hold.
#pragma once

#include <cstdint>

namespace hybridgen {

/// The largest value in [1, most] for which `holds` does, which holds for all below one for which
/// it does; 0: none.
template <typename Predicate>
std::int64_t largest(std::int64_t most, const Predicate& holds) {
  std::int64_t good = 0;
  for (std::int64_t bad = most + 1; bad - good > 1;) {
    const std::int64_t middle = good + (bad - good) / 2;
    (holds(middle) ? good : bad) = middle;
  }
  return good;
}

/// The smallest value in [least, most] for which `holds` does, which holds for all above one for
/// which it does, and for `most`.
template <typename Predicate>
std::int64_t smallest(std::int64_t least, std::int64_t most, const Predicate& holds) {
  return most - largest(most - least, [&](std::int64_t below) { return holds(most - below); });
}

}  // namespace hybridgen
