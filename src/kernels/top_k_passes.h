// SPDX-License-Identifier: Apache-2.0
// The two passes of top_k over all scores, which is where its time goes, once in plain C++ and once
// with AVX-512's compress instructions. Both give the same bits.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace hybridgen::kernels {

/// Scores >= high certainly belong to the top k, those below low certainly not. The defaults decide
/// nothing: no score is >= NaN, and all that are not NaN are >= -inf.
struct ScoreBounds {
  float low = -std::numeric_limits<float>::infinity();
  float high = std::numeric_limits<float>::quiet_NaN();
};

struct Narrowed {
  std::int64_t num_high = 0;  ///< scores >= high
  std::int64_t num_kept = 0;  ///< scores >= low of the others
  bool has_nan = false;
};

/// `kept` may be written this many values beyond those kept.
inline constexpr std::int64_t kKeptSlack = 16;

struct TopKPasses {
  /// Copies the scores between the bounds to `kept` (room for n + kKeptSlack).
  Narrowed (*narrow)(const float* scores, std::int64_t n, ScoreBounds bounds, float* kept);
  /// The k positions in order whose score is > kth, or == kth for the first `ties` of those.
  void (*take)(const float* scores,
               std::int64_t n,
               std::int64_t k,
               float kth,
               std::int64_t ties,
               std::int32_t* positions,
               float* values);
};

/// Those this CPU can run, slowest first.
std::vector<TopKPasses> supported_top_k_passes();

/// top_k (cpu_kernels.h) with the given passes.
bool top_k_by(const TopKPasses& passes,
              const float* scores,
              std::int64_t n,
              std::int64_t k,
              std::int32_t* positions,
              float* values,
              std::vector<float>& scratch);

}  // namespace hybridgen::kernels
