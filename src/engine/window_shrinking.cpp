// SPDX-License-Identifier: Apache-2.0
#include "engine/window_shrinking.h"

#include <algorithm>

namespace hybridgen {
namespace {

std::vector<std::int64_t> at_most(const std::vector<ShrinkableWindow>& windows,
                                  std::int64_t width) {
  std::vector<std::int64_t> tokens;
  tokens.reserve(windows.size());
  for (const ShrinkableWindow& window : windows) {
    tokens.push_back(std::min(window.tokens, std::max(window.least, width)));
  }
  return tokens;
}

}  // namespace

std::optional<std::vector<std::int64_t>> shrink_windows(
    const std::vector<ShrinkableWindow>& windows,
    const std::function<bool(const std::vector<std::int64_t>&)>& fits) {
  std::int64_t widest = 0;
  for (const ShrinkableWindow& window : windows) widest = std::max(widest, window.tokens);
  if (fits(at_most(windows, widest))) return at_most(windows, widest);
  std::int64_t good = 0;  // holds there, if anywhere
  if (!fits(at_most(windows, good))) return {};
  for (std::int64_t bad = widest; bad - good > 1;) {
    const std::int64_t middle = good + (bad - good) / 2;
    (fits(at_most(windows, middle)) ? good : bad) = middle;
  }
  return at_most(windows, good);
}

}  // namespace hybridgen
