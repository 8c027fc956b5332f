// SPDX-License-Identifier: Apache-2.0
// How many of the largest weights have a given sum. One pass keeps those that can matter; sums by
// ranges of weights then leave one range that has to be sorted.
#include <algorithm>
#include <array>
#include <bit>
#include <functional>

#include "kernels/cpu_kernels.h"
#include "kernels/top_k_passes.h"

namespace hybridgen::kernels {

namespace {

// A weight in (0, 1], or a little more, by its exponent and first three binary digits.
constexpr unsigned kRangeShift = 20;
constexpr std::size_t kRanges = std::size_t{0x400};

std::size_t range_of(float weight) {
  return std::min<std::size_t>(std::bit_cast<std::uint32_t>(weight) >> kRangeShift, kRanges - 1);
}

struct Ranges {
  std::array<double, kRanges> sums{};
  std::array<std::int64_t, kRanges> counts{};
};

/// How many of the largest weights of a range it takes to sum to `wanted`; all if they do not.
std::int64_t count_in_range(float* weights, std::int64_t n, std::size_t range, double wanted) {
  float* const end =
      std::partition(weights, weights + n, [&](float weight) { return range_of(weight) == range; });
  std::sort(weights, end, std::greater<>());
  double sum = 0.0;
  for (const float* weight = weights; weight < end; ++weight) {
    sum += double{*weight};
    if (sum >= wanted) return weight + 1 - weights;
  }
  return end - weights;
}

}  // namespace

std::int64_t count_mass(const float* weights,
                        std::int64_t n,
                        double mass,
                        std::int64_t most,
                        std::vector<float>& scratch) {
  static const TopKPasses passes = supported_top_k_passes().back();
  if (n == 0 || most <= 1) return std::min<std::int64_t>(1, n);
  const auto room = static_cast<std::size_t>(top_k_scratch(n));
  if (scratch.size() < room) scratch.resize(room);
  // All that lie below this have less than 1 - mass together.
  const auto low = static_cast<float>((1.0 - mass) / static_cast<double>(n));
  float* const kept = scratch.data();
  const std::int64_t num_kept = passes.keep(weights, n, low, {kept, kept + room / 2}).count;
  Ranges ranges;
  for (std::int64_t i = 0; i < num_kept; ++i) {
    const std::size_t range = range_of(kept[i]);
    ranges.sums[range] += double{kept[i]};
    ++ranges.counts[range];
  }
  std::int64_t count = 0;
  double sum = 0.0;
  for (std::size_t range = kRanges; range-- > 0 && count < most;) {
    if (sum + ranges.sums[range] >= mass) {
      count += count_in_range(kept, num_kept, range, mass - sum);
      break;
    }
    sum += ranges.sums[range];
    count += ranges.counts[range];
  }
  return std::clamp<std::int64_t>(count, 1, std::min(most, n));
}

}  // namespace hybridgen::kernels
