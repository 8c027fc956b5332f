// SPDX-License-Identifier: Apache-2.0
// Who gives up tokens on the device for a request that waits (paper §4.2.3). Decides only.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace hybridgen {

/// Tokens of a request on the device.
struct ShrinkableWindow {
  std::int64_t tokens = 0;
  std::int64_t least = 0;  ///< it never gets fewer; <= tokens
};

/// Windows, in the same order, with which `fits` holds: the widest shrink first, to one width that
/// is as large as can be. Nothing if it does not hold when all are at their least. `fits` must hold
/// for smaller windows if it does for larger ones.
std::optional<std::vector<std::int64_t>> shrink_windows(
    const std::vector<ShrinkableWindow>& windows,
    const std::function<bool(const std::vector<std::int64_t>&)>& fits);

}  // namespace hybridgen
