// SPDX-License-Identifier: Apache-2.0
// The loops of top_k with AVX2 and AVX-512. Each function names what it needs, so that the file
// itself is compiled for any x86-64.
#if defined(__x86_64__)

#include <immintrin.h>

#include <array>
#include <bit>
#include <cstddef>

#include "kernels/top_k_passes.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operands of its own intrinsics for mistakes.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define HYBRIDGEN_AVX2 __attribute__((target("avx2,popcnt,bmi")))
#if !defined(HYBRIDGEN_AVX512)  // empty where AVX-512 is emulated
#define HYBRIDGEN_AVX512 __attribute__((target("avx512f,popcnt,bmi")))
#endif

namespace hybridgen::kernels {

namespace {

/// Scores that are passed over at once if all are below the threshold.
constexpr int kStretch = 64;

// ---- AVX-512 -----------------------------------------------------------------------------------

/// Lanes of the vector that begins at i.
HYBRIDGEN_AVX512 inline __mmask16 lanes_from(std::int64_t i, std::int64_t n) {
  return n - i >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1U << (n - i)) - 1U);
}

/// Appends the lanes of `keep`; 16 elements are overwritten.
HYBRIDGEN_AVX512 inline void append(
    Kept& kept, Candidates candidates, __mmask16 keep, __m512 score, __m512i position) {
  // Compressing into a register and storing all of it is much faster than a compressing store.
  _mm512_storeu_ps(candidates.scores + kept.count, _mm512_maskz_compress_ps(keep, score));
  _mm512_storeu_si512(candidates.positions + kept.count,
                      _mm512_maskz_compress_epi32(keep, position));
  kept.count += __builtin_popcount(keep);
}

HYBRIDGEN_AVX512 Kept keep_avx512(const float* scores,
                                  std::int64_t n,
                                  float low,
                                  Candidates candidates) {
  const __m512 limit = _mm512_set1_ps(low);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  Kept kept;
  unsigned nan = 0;
  std::int64_t i = 0;
  // When few are chosen, most stretches hold none. "Not below" is true of NaN too.
  for (; i + kStretch <= n; i += kStretch) {
    __m512 score[kStretch / 16];
    unsigned any = 0;
    for (int part = 0; part < kStretch / 16; ++part) {
      score[part] = _mm512_loadu_ps(scores + i + part * 16);
      any |= _mm512_cmp_ps_mask(score[part], limit, _CMP_NLT_UQ);
    }
    if (any == 0) continue;
    for (int part = 0; part < kStretch / 16; ++part) {
      nan |= _mm512_cmp_ps_mask(score[part], score[part], _CMP_UNORD_Q);
      append(kept,
             candidates,
             _mm512_cmp_ps_mask(score[part], limit, _CMP_GE_OQ),
             score[part],
             _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(i) + part * 16)));
    }
  }
  for (; i < n; i += 16) {
    const __mmask16 lanes = lanes_from(i, n);
    const __m512 score = _mm512_maskz_loadu_ps(lanes, scores + i);
    nan |= _mm512_mask_cmp_ps_mask(lanes, score, score, _CMP_UNORD_Q);
    append(kept,
           candidates,
           _mm512_mask_cmp_ps_mask(lanes, score, limit, _CMP_GE_OQ),
           score,
           _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(i))));
  }
  kept.has_nan = nan != 0;
  return kept;
}

HYBRIDGEN_AVX512 std::int64_t count_avx512(const float* scores, std::int64_t n, float low) {
  const __m512 limit = _mm512_set1_ps(low);
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = lanes_from(i, n);
    const __m512 score = _mm512_maskz_loadu_ps(lanes, scores + i);
    count += __builtin_popcount(_mm512_mask_cmp_ps_mask(lanes, score, limit, _CMP_GE_OQ));
  }
  return count;
}

HYBRIDGEN_AVX512 void take_avx512(Candidates candidates,
                                  std::int64_t num_candidates,
                                  std::int64_t wanted,
                                  float kth,
                                  std::int64_t ties,
                                  std::int32_t* positions,
                                  float* values) {
  const __m512 limit = _mm512_set1_ps(kth);
  std::int64_t taken = 0;
  for (std::int64_t i = 0; i < num_candidates && taken < wanted; i += 16) {
    const __mmask16 lanes = lanes_from(i, num_candidates);
    const __m512 score = _mm512_maskz_loadu_ps(lanes, candidates.scores + i);
    const __m512i position = _mm512_maskz_loadu_epi32(lanes, candidates.positions + i);
    unsigned equal = _mm512_mask_cmp_ps_mask(lanes, score, limit, _CMP_EQ_OQ);
    while (__builtin_popcount(equal) > ties) equal &= ~(1U << (31 - __builtin_clz(equal)));
    ties -= __builtin_popcount(equal);
    const unsigned take = _mm512_mask_cmp_ps_mask(lanes, score, limit, _CMP_GT_OQ) | equal;
    const int count = __builtin_popcount(take);
    const auto mask = static_cast<__mmask16>(take);
    const auto front = static_cast<__mmask16>((1U << count) - 1U);
    _mm512_mask_storeu_epi32(positions + taken, front, _mm512_maskz_compress_epi32(mask, position));
    _mm512_mask_storeu_ps(values + taken, front, _mm512_maskz_compress_ps(mask, score));
    taken += count;
  }
}

// ---- AVX2 --------------------------------------------------------------------------------------

/// Of each mask of 8 lanes: its lanes in order, first.
constexpr std::array<std::array<std::uint8_t, 8>, 256> kCompressed = [] {
  std::array<std::array<std::uint8_t, 8>, 256> table{};
  for (unsigned mask = 0; mask < 256; ++mask) {
    std::size_t to = 0;
    for (unsigned lane = 0; lane < 8; ++lane) {
      if ((mask >> lane & 1U) != 0) table[mask][to++] = static_cast<std::uint8_t>(lane);
    }
  }
  return table;
}();

HYBRIDGEN_AVX2 inline __m256i compressed_lanes(unsigned mask) {
  return _mm256_cvtepu8_epi32(
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kCompressed[mask].data())));
}

HYBRIDGEN_AVX2 inline unsigned lanes_of(__m256 mask) {
  return static_cast<unsigned>(_mm256_movemask_ps(mask));
}

/// Writes the lanes of `mask` and returns how many they are; 8 elements are overwritten.
HYBRIDGEN_AVX2 inline int store_compressed(
    unsigned mask, __m256 score, __m256i position, float* scores, void* positions) {
  const __m256i lanes = compressed_lanes(mask);
  _mm256_storeu_ps(scores, _mm256_permutevar8x32_ps(score, lanes));
  _mm256_storeu_si256(static_cast<__m256i*>(positions),
                      _mm256_permutevar8x32_epi32(position, lanes));
  return __builtin_popcount(mask);
}

HYBRIDGEN_AVX2 Kept keep_avx2(const float* scores,
                              std::int64_t n,
                              float low,
                              Candidates candidates) {
  const __m256 limit = _mm256_set1_ps(low);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256 nan = _mm256_setzero_ps();
  Kept kept;
  std::int64_t i = 0;
  for (; i + kStretch <= n; i += kStretch) {
    __m256 any = _mm256_setzero_ps();
    for (int part = 0; part < kStretch; part += 8) {
      any =
          _mm256_or_ps(any, _mm256_cmp_ps(_mm256_loadu_ps(scores + i + part), limit, _CMP_NLT_UQ));
    }
    if (lanes_of(any) == 0) continue;
    for (int part = 0; part < kStretch; part += 8) {
      const __m256 score = _mm256_loadu_ps(scores + i + part);
      nan = _mm256_or_ps(nan, _mm256_cmp_ps(score, score, _CMP_UNORD_Q));
      kept.count +=
          store_compressed(lanes_of(_mm256_cmp_ps(score, limit, _CMP_GE_OQ)),
                           score,
                           _mm256_add_epi32(lane, _mm256_set1_epi32(static_cast<int>(i) + part)),
                           candidates.scores + kept.count,
                           candidates.positions + kept.count);
    }
  }
  kept.has_nan = lanes_of(nan) != 0;
  const Candidates rest = {candidates.scores + kept.count, candidates.positions + kept.count};
  const Kept last = keep_plain(scores + i, n - i, low, rest);
  for (std::int64_t j = 0; j < last.count; ++j) {
    const auto at = std::bit_cast<std::int32_t>(rest.positions[j]) + static_cast<std::int32_t>(i);
    rest.positions[j] = std::bit_cast<float>(at);
  }
  return {kept.count + last.count, kept.has_nan || last.has_nan};
}

HYBRIDGEN_AVX2 std::int64_t count_avx2(const float* scores, std::int64_t n, float low) {
  const __m256 limit = _mm256_set1_ps(low);
  std::int64_t count = 0;
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    count +=
        __builtin_popcount(lanes_of(_mm256_cmp_ps(_mm256_loadu_ps(scores + i), limit, _CMP_GE_OQ)));
  }
  return count + count_plain(scores + i, n - i, low);
}

}  // namespace

// Candidates are few: what AVX2 would gain in taking them is not worth its lines.
const TopKPasses kAvx2TopKPasses = {.keep = keep_avx2, .count = count_avx2, .take = take_plain};
const TopKPasses kAvx512TopKPasses = {
    .keep = keep_avx512, .count = count_avx512, .take = take_avx512};

}  // namespace hybridgen::kernels

#endif  // x86-64
