// SPDX-License-Identifier: Apache-2.0
// Transparent huge pages: what the system allows, what HostBuffers asked for and what came of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <string>

namespace hybridgen {

inline constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

/// Of this process. A page is huge or small from its first touch on; what is touched later may
/// still become huge, and the system may join or split pages at any time.
struct HugePages {
  /// "always", "madvise" or "never", as the system is set; "unknown" where it does not say.
  std::string setting;
  std::int64_t asked_bytes = 0;     ///< of live HostBuffers
  std::int64_t obtained_bytes = 0;  ///< of all anonymous memory that has been touched
};

HugePages huge_pages();

/// The word in brackets of /sys/kernel/mm/transparent_hugepage/enabled ("always [madvise] never").
std::string chosen_word(const std::string& setting);

/// Bytes of anonymous memory on huge pages in a text like /proc/self/smaps_rollup; 0 if it has
/// none.
std::int64_t anonymous_huge_bytes(std::istream& smaps);

/// The same of the areas for which counts(first address, end) holds, in a text like
/// /proc/self/smaps.
std::int64_t anonymous_huge_bytes_of(
    std::istream& smaps, const std::function<bool(std::uintptr_t, std::uintptr_t)>& counts);

/// Counts memory that asks for huge pages from now on (bytes > 0) or no longer (bytes < 0).
void count_asked_huge_pages(std::int64_t bytes) noexcept;

}  // namespace hybridgen
