// SPDX-License-Identifier: Apache-2.0
// Exact selection in two passes over the scores. Bounds guessed from a small sample let the first
// pass count what is certainly in and keep little beside the k-th value, which is then found among
// the kept; the second pass takes all above it and as many equal to it as are missing, in order.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <functional>

#include "kernels/cpu_kernels.h"
#include "kernels/top_k_passes.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hybridgen::kernels {

namespace {

constexpr std::int64_t kSampleSize = 1024;

ScoreBounds guess_bounds(const float* scores, std::int64_t n, std::int64_t k) {
  ScoreBounds bounds;
  if (n < 4 * kSampleSize) return bounds;
  std::array<float, kSampleSize> sample;
  // One value at a scrambled place of each stretch: no period of the scores can fool it.
  const std::int64_t stretch = n / kSampleSize;
  std::uint32_t random = 0x9e3779b9U;
  for (std::int64_t i = 0; i < kSampleSize; ++i) {
    random = random * 1664525U + 1013904223U;
    const float score = scores[i * stretch + static_cast<std::int64_t>(random >> 8) % stretch];
    // NaN is found by the pass that follows; here it must only not break the order.
    sample[static_cast<std::size_t>(i)] = score == score ? score : bounds.low;
  }
  // Three standard deviations of slack; a wrong guess costs a second pass, not exactness.
  const double share = static_cast<double>(k) / static_cast<double>(n);
  const double expected = share * kSampleSize;
  const double slack = 3.0 * std::sqrt(expected * (1.0 - share)) + 2.0;
  const auto ranked = [&](double rank) {
    const auto at = sample.begin() + static_cast<std::ptrdiff_t>(rank);
    std::nth_element(sample.begin(), at, sample.end(), std::greater<>());
    return *at;
  };
  if (expected + slack < kSampleSize) bounds.low = ranked(expected + slack);
  if (expected - slack >= 0.0) bounds.high = ranked(expected - slack);
  return bounds;
}

Narrowed narrow_plain(const float* scores, std::int64_t n, ScoreBounds bounds, float* kept) {
  Narrowed result;
  for (std::int64_t i = 0; i < n; ++i) {
    const float score = scores[i];
    const bool high = score >= bounds.high;
    result.has_nan |= score != score;
    result.num_high += high;
    kept[result.num_kept] = score;  // without a branch, which would be mispredicted
    result.num_kept += !high & (score >= bounds.low);
  }
  return result;
}

void take_plain(const float* scores,
                std::int64_t n,
                std::int64_t k,
                float kth,
                std::int64_t ties,
                std::int32_t* positions,
                float* values) {
  std::int64_t taken = 0;
  for (std::int64_t i = 0; i < n && taken < k; ++i) {
    const float score = scores[i];
    const bool tie = score == kth && ties > 0;
    positions[taken] = static_cast<std::int32_t>(i);
    values[taken] = score;
    ties -= tie;
    taken += score > kth || tie;
  }
}

#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operands of its own intrinsics for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define HYBRIDGEN_AVX512 __attribute__((target("avx512f,popcnt,bmi,bmi2")))

/// Lanes of the vector that begins at i.
HYBRIDGEN_AVX512 inline __mmask16 lanes_from(std::int64_t i, std::int64_t n) {
  return n - i >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1U << (n - i)) - 1U);
}

HYBRIDGEN_AVX512 Narrowed narrow_avx512(const float* scores,
                                        std::int64_t n,
                                        ScoreBounds bounds,
                                        float* kept) {
  const __m512 low = _mm512_set1_ps(bounds.low);
  const __m512 high = _mm512_set1_ps(bounds.high);
  Narrowed result;
  unsigned nan = 0;
  for (std::int64_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = lanes_from(i, n);
    const __m512 score = _mm512_maskz_loadu_ps(lanes, scores + i);
    const unsigned is_high = _mm512_mask_cmp_ps_mask(lanes, score, high, _CMP_GE_OQ);
    const unsigned keep = _mm512_mask_cmp_ps_mask(lanes, score, low, _CMP_GE_OQ) & ~is_high;
    nan |= _mm512_mask_cmp_ps_mask(lanes, score, score, _CMP_UNORD_Q);
    // Compressing into a register and storing all of it is much faster than a compressing store.
    const auto mask = static_cast<__mmask16>(keep);
    _mm512_storeu_ps(kept + result.num_kept, _mm512_maskz_compress_ps(mask, score));
    result.num_kept += __builtin_popcount(keep);
    result.num_high += __builtin_popcount(is_high);
  }
  result.has_nan = nan != 0;
  return result;
}

HYBRIDGEN_AVX512 void take_avx512(const float* scores,
                                  std::int64_t n,
                                  std::int64_t k,
                                  float kth,
                                  std::int64_t ties,
                                  std::int32_t* positions,
                                  float* values) {
  const __m512 limit = _mm512_set1_ps(kth);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  std::int64_t taken = 0;
  for (std::int64_t i = 0; i < n && taken < k; i += 16) {
    const __mmask16 lanes = lanes_from(i, n);
    const __m512 score = _mm512_maskz_loadu_ps(lanes, scores + i);
    unsigned equal = _mm512_mask_cmp_ps_mask(lanes, score, limit, _CMP_EQ_OQ);
    while (__builtin_popcount(equal) > ties) equal &= ~(1U << (31 - __builtin_clz(equal)));
    ties -= __builtin_popcount(equal);
    const unsigned take = _mm512_mask_cmp_ps_mask(lanes, score, limit, _CMP_GT_OQ) | equal;
    const int count = __builtin_popcount(take);
    const auto mask = static_cast<__mmask16>(take);
    const auto front = static_cast<__mmask16>((1U << count) - 1U);
    const __m512i position = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(i)));
    _mm512_mask_storeu_epi32(positions + taken, front, _mm512_maskz_compress_epi32(mask, position));
    _mm512_mask_storeu_ps(values + taken, front, _mm512_maskz_compress_ps(mask, score));
    taken += count;
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#endif  // x86-64

}  // namespace

std::vector<TopKPasses> supported_top_k_passes() {
  std::vector<TopKPasses> passes = {{.narrow = narrow_plain, .take = take_plain}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("popcnt") &&
      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")) {
    passes.push_back({.narrow = narrow_avx512, .take = take_avx512});
  }
#endif
  return passes;
}

bool top_k_by(const TopKPasses& passes,
              const float* scores,
              std::int64_t n,
              std::int64_t k,
              std::int32_t* positions,
              float* values,
              std::vector<float>& scratch) {
  const auto room = static_cast<std::size_t>(n + kKeptSlack);
  if (scratch.size() < room) scratch.resize(room);
  float* kept = scratch.data();
  Narrowed narrowed = passes.narrow(scores, n, guess_bounds(scores, n, k), kept);
  if (narrowed.has_nan) return false;
  if (k == 0) return true;
  if (narrowed.num_high >= k || narrowed.num_high + narrowed.num_kept < k) {
    narrowed = passes.narrow(scores, n, ScoreBounds{}, kept);
  }
  const std::int64_t missing = k - narrowed.num_high;
  std::nth_element(kept, kept + (missing - 1), kept + narrowed.num_kept, std::greater<>());
  const float kth = kept[missing - 1];
  const std::int64_t ties = missing - std::count_if(kept, kept + missing, [kth](float kept_one) {
                              return kept_one > kth;
                            });
  passes.take(scores, n, k, kth, ties, positions, values);
  return true;
}

bool top_k(const float* scores,
           std::int64_t n,
           std::int64_t k,
           std::int32_t* positions,
           float* values,
           std::vector<float>& scratch) {
  static const TopKPasses fastest = supported_top_k_passes().back();
  return top_k_by(fastest, scores, n, k, positions, values, scratch);
}

}  // namespace hybridgen::kernels
