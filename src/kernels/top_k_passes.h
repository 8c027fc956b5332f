// SPDX-License-Identifier: Apache-2.0
// The loops of top_k, which are where its time goes: in plain C++ and with the compress
// instructions of AVX2 and AVX-512. All give the same bits.
#pragma once

#include <cstdint>
#include <vector>

namespace hybridgen::kernels {

/// Scores that may belong to the top k, in order. A position is stored as the bits of a float, so
/// that one scratch vector serves for both.
struct Candidates {
  float* scores = nullptr;
  float* positions = nullptr;
};

struct Kept {
  std::int64_t count = 0;
  bool has_nan = false;
};

/// The arrays of Candidates may be written this many elements beyond those kept.
inline constexpr std::int64_t kKeptSlack = 16;

struct TopKPasses {
  /// Copies the scores >= low (room for all n and kKeptSlack) and where they stand.
  Kept (*keep)(const float* scores, std::int64_t n, float low, Candidates candidates);
  /// How many of `scores` [n] are >= low.
  std::int64_t (*count)(const float* scores, std::int64_t n, float low);
  /// The first `wanted` candidates whose score is > kth, or == kth for the first `ties` of those.
  void (*take)(Candidates candidates,
               std::int64_t num_candidates,
               std::int64_t wanted,
               float kth,
               std::int64_t ties,
               std::int32_t* positions,
               float* values);
};

Kept keep_plain(const float* scores, std::int64_t n, float low, Candidates candidates);
std::int64_t count_plain(const float* scores, std::int64_t n, float low);
void take_plain(Candidates candidates,
                std::int64_t num_candidates,
                std::int64_t wanted,
                float kth,
                std::int64_t ties,
                std::int32_t* positions,
                float* values);

#if defined(__x86_64__)
extern const TopKPasses kAvx2TopKPasses;
extern const TopKPasses kAvx512TopKPasses;
#endif

/// Those this CPU can run, slowest first.
std::vector<TopKPasses> supported_top_k_passes();

/// top_k (cpu_kernels.h) with the given passes.
bool top_k_by(const TopKPasses& passes,
              const float* scores,
              std::int64_t n,
              std::int64_t k,
              std::int32_t* positions,
              float* values,
              std::vector<float>& scratch,
              float* threshold = nullptr);

}  // namespace hybridgen::kernels
