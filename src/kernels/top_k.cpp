// SPDX-License-Identifier: Apache-2.0
// Exact selection in one pass over the scores: those above a guessed threshold are kept with their
// positions, and if at least k are, the top k is among them. The guess comes from the caller or
// from a small sample; a wrong one costs another pass, never exactness.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>

#include "kernels/cpu_features.h"
#include "kernels/top_k_passes.h"

namespace hybridgen::kernels {

namespace {

constexpr std::int64_t kSampleSize = 1024;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Integers in the order of the floats they stand for; -0 comes just before +0.
std::int32_t ordered(std::int32_t bits) { return bits >= 0 ? bits : bits ^ 0x7fffffff; }
std::int32_t key_of(float score) { return ordered(std::bit_cast<std::int32_t>(score)); }
float score_of(std::int32_t key) { return std::bit_cast<float>(ordered(key)); }

/// The rank-th largest (1 <= rank <= n) of scores without NaN, none of them below `low`; of equal
/// ones (zeros, and numbers that the CPU flushes to zero) that of the largest key. Counting 32
/// times in cache is several times faster than moving elements about.
float ranked(const TopKPasses& passes,
             const float* scores,
             std::int64_t n,
             std::int64_t rank,
             float low = -kInfinity) {
  std::int64_t at_most = key_of(kInfinity);
  std::int64_t at_least = key_of(low);
  while (at_least < at_most) {
    const std::int64_t middle = at_most - (at_most - at_least) / 2;
    if (passes.count(scores, n, score_of(static_cast<std::int32_t>(middle))) >= rank) {
      at_least = middle;
    } else {
      at_most = middle - 1;
    }
  }
  return score_of(static_cast<std::int32_t>(at_least));
}

float guess_threshold(const TopKPasses& passes,
                      const float* scores,
                      std::int64_t n,
                      std::int64_t k) {
  if (n < 4 * kSampleSize) return -kInfinity;
  // Three standard deviations of slack.
  const double share = static_cast<double>(k) / static_cast<double>(n);
  const double expected = share * kSampleSize;
  const double rank = expected + 3.0 * std::sqrt(expected * (1.0 - share)) + 2.0;
  if (rank >= kSampleSize) return -kInfinity;
  std::array<float, kSampleSize> sample;
  // One value at a scrambled place of each stretch: no period of the scores can fool it.
  const std::int64_t stretch = n / kSampleSize;
  std::uint32_t random = 0x9e3779b9U;
  for (std::int64_t i = 0; i < kSampleSize; ++i) {
    random = random * 1664525U + 1013904223U;
    const float score = scores[i * stretch + static_cast<std::int64_t>(random >> 8) % stretch];
    // NaN is found by the pass that follows.
    sample[static_cast<std::size_t>(i)] = score == score ? score : -kInfinity;
  }
  return ranked(passes, sample.data(), kSampleSize, static_cast<std::int64_t>(rank));
}

/// A threshold for a row that resembles this one: room for it to differ, but not much to keep.
float next_threshold(const TopKPasses& passes,
                     const float* kept,
                     std::int64_t num_kept,
                     std::int64_t k,
                     float kth,
                     float low) {
  if (num_kept > 4 * k) return ranked(passes, kept, num_kept, 2 * k, low);
  if (4 * num_kept < 5 * k) return low - (kth - low);
  return low;
}

}  // namespace

Kept keep_plain(const float* scores, std::int64_t n, float low, Candidates candidates) {
  Kept kept;
  for (std::int64_t i = 0; i < n; ++i) {
    const float score = scores[i];
    kept.has_nan |= score != score;
    // Without a branch, which would be mispredicted.
    candidates.scores[kept.count] = score;
    candidates.positions[kept.count] = std::bit_cast<float>(static_cast<std::int32_t>(i));
    kept.count += score >= low;
  }
  return kept;
}

std::int64_t count_plain(const float* scores, std::int64_t n, float low) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < n; ++i) count += scores[i] >= low;
  return count;
}

void take_plain(Candidates candidates,
                std::int64_t num_candidates,
                std::int64_t wanted,
                float kth,
                std::int64_t ties,
                std::int32_t* positions,
                float* values) {
  std::int64_t taken = 0;
  for (std::int64_t i = 0; i < num_candidates && taken < wanted; ++i) {
    const float score = candidates.scores[i];
    const bool tie = score == kth && ties > 0;
    positions[taken] = std::bit_cast<std::int32_t>(candidates.positions[i]);
    values[taken] = score;
    ties -= tie;
    taken += score > kth || tie;
  }
}

std::vector<TopKPasses> supported_top_k_passes() {
  std::vector<TopKPasses> passes = {{.keep = keep_plain, .count = count_plain, .take = take_plain}};
#if defined(__x86_64__)
  const bool has_bits = __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi");
  if (has_bits && cpu_has(Isa::kAvx2)) passes.push_back(kAvx2TopKPasses);
  if (has_bits && cpu_has(Isa::kAvx512)) passes.push_back(kAvx512TopKPasses);
#endif
  return passes;
}

bool top_k_by(const TopKPasses& passes,
              const float* scores,
              std::int64_t n,
              std::int64_t k,
              std::int32_t* positions,
              float* values,
              std::vector<float>& scratch,
              float* threshold) {
  const auto room = static_cast<std::size_t>(top_k_scratch(n));
  if (scratch.size() < room) scratch.resize(room);
  const Candidates candidates = {scratch.data(), scratch.data() + room / 2};
  // Of larger shares the sample knows more than the row before.
  const bool is_warm = threshold != nullptr && *threshold == *threshold && k < n / 32;
  float low = is_warm ? *threshold : guess_threshold(passes, scores, n, k);
  Kept kept = passes.keep(scores, n, low, candidates);
  if (kept.has_nan) return false;
  if (k == 0) return true;
  if (kept.count < k && is_warm) {
    low = guess_threshold(passes, scores, n, k);
    kept = passes.keep(scores, n, low, candidates);
  }
  if (kept.count < k) {
    low = -kInfinity;
    kept = passes.keep(scores, n, low, candidates);
  }
  const float kth = ranked(passes, candidates.scores, kept.count, k, low);
  // Above infinity comes NaN, and no score is >= NaN.
  const float next = score_of(key_of(kth) + 1);
  const std::int64_t num_above = passes.count(candidates.scores, kept.count, next);
  passes.take(candidates, kept.count, k, kth, k - num_above, positions, values);
  if (threshold != nullptr) {
    *threshold = next_threshold(passes, candidates.scores, kept.count, k, kth, low);
  }
  return true;
}

std::int64_t top_k_scratch(std::int64_t n) { return 2 * (n + kKeptSlack); }

bool top_k(const float* scores,
           std::int64_t n,
           std::int64_t k,
           std::int32_t* positions,
           float* values,
           std::vector<float>& scratch,
           float* threshold) {
  static const TopKPasses fastest = supported_top_k_passes().back();
  return top_k_by(fastest, scores, n, k, positions, values, scratch, threshold);
}

}  // namespace hybridgen::kernels
