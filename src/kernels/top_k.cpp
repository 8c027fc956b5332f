// SPDX-License-Identifier: Apache-2.0
// Exact selection in two passes over the scores. A threshold guessed from a small sample lets the
// first pass keep little more than k values, among which the exact k-th is found; the second pass
// takes all above it and then as many equal to it as are missing, in token order.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

namespace {

constexpr std::int64_t kSampleSize = 1024;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// A value that about k scores (rather more than fewer) reach; -inf if the sample is of no help.
float guess_threshold(const float* scores, std::int64_t n, std::int64_t k) {
  if (n < 4 * kSampleSize) return kMinusInfinity;
  const double share = static_cast<double>(k) / static_cast<double>(n);
  const double expected = share * kSampleSize;
  // Three standard deviations of slack; a guess too high costs a second pass, not exactness.
  const double rank = expected + 3.0 * std::sqrt(expected * (1.0 - share)) + 2.0;
  if (rank >= kSampleSize) return kMinusInfinity;
  std::array<float, kSampleSize> sample;
  // One value at a scrambled place of each stretch: no period of the scores can fool it.
  const std::int64_t stretch = n / kSampleSize;
  std::uint32_t random = 0x9e3779b9U;
  for (std::int64_t i = 0; i < kSampleSize; ++i) {
    random = random * 1664525U + 1013904223U;
    const float score = scores[i * stretch + (random >> 8) % stretch];
    // NaN is found by the pass that follows; here it must only not break the order.
    sample[static_cast<std::size_t>(i)] = score == score ? score : kMinusInfinity;
  }
  const auto kth = sample.begin() + static_cast<std::ptrdiff_t>(rank);
  std::nth_element(sample.begin(), kth, sample.end(), std::greater<>());
  return *kth;
}

/// Appends the scores >= threshold to `kept` (room for n + 1) and says whether there was a NaN.
bool keep_from(
    const float* scores, std::int64_t n, float threshold, float* kept, std::int64_t& num_kept) {
  bool has_nan = false;
  std::int64_t m = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float score = scores[i];
    has_nan |= score != score;
    kept[m] = score;  // without a branch, which would be mispredicted
    m += score >= threshold;
  }
  num_kept = m;
  return has_nan;
}

}  // namespace

bool top_k(const float* scores,
           std::int64_t n,
           std::int64_t k,
           std::int32_t* positions,
           float* values,
           std::vector<float>& scratch) {
  if (scratch.size() < static_cast<std::size_t>(n) + 1) {
    scratch.resize(static_cast<std::size_t>(n) + 1);
  }
  std::int64_t num_kept = 0;
  if (keep_from(scores, n, guess_threshold(scores, n, k), scratch.data(), num_kept)) return false;
  if (num_kept < k) keep_from(scores, n, kMinusInfinity, scratch.data(), num_kept);
  if (k == 0) return true;

  float* kept = scratch.data();
  std::nth_element(kept, kept + (k - 1), kept + num_kept, std::greater<>());
  const float kth = kept[k - 1];
  const std::int64_t above = std::count_if(kept, kept + k, [kth](float x) { return x > kth; });

  std::int64_t ties = k - above;
  std::int64_t m = 0;
  for (std::int64_t i = 0; m < k; ++i) {
    const float score = scores[i];
    const bool tie = score == kth && ties > 0;
    positions[m] = static_cast<std::int32_t>(i);
    values[m] = score;
    ties -= tie;
    m += score > kth || tie;
  }
  return true;
}

}  // namespace hybridgen::kernels
