// SPDX-License-Identifier: Apache-2.0
// A prompt's attention in float32 multiply-adds: a block of keys is transposed and a block of
// values widened once for all rows and heads of a task, so that both products are the same register
// tile.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/prefill_pass-inl.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

/// Vectors of a tile's row: a tile of 6 rows then uses every register for sums, and loads less than
/// it multiplies.
constexpr int kPrefillRows = 6;
constexpr int kPrefillVectors = kAccumulators / kPrefillRows;

template <typename T>
struct FloatProducts {
  using Element = T;
  using Operand = float;
  static constexpr int kRows = kPrefillRows;
  static constexpr std::int64_t kPanel = kPrefillVectors * kLanes;
  static constexpr std::int64_t kColumns = kLanes;
  static constexpr std::int64_t kDepth = 1;
  static constexpr bool kScalesQueries = true;
  static constexpr bool kRoundsWeights = false;

  static void pack_query(const T* from, std::int64_t dims, float scale, float* to) {
    for (std::int64_t d = 0; d < dims; d += kLanes) {
      store_up_to(to + d, dims - d, mul(load_up_to(from + d, dims - d), splat(scale)));
    }
  }

  /// Panels [dims, kPanel] of keys; keys past the end are 0.
  static void pack_keys(
      const T* from, std::int64_t stride, std::int64_t count, std::int64_t dims, float* to) {
    for (std::int64_t t = 0; t < count; t += kLanes) {
      float* panel = to + t / kPanel * kPanel * dims + t % kPanel;
      for (std::int64_t d = 0; d < dims; d += kLanes) {
        Vector rows[extent(kLanes)];
        for (std::int64_t i = 0; i < kLanes; ++i) {
          rows[i] = t + i < count ? load_up_to(from + (t + i) * stride + d, dims - d) : zero();
        }
        transpose(rows);
        for (std::int64_t i = 0; i < min_of(kLanes, dims - d); ++i) {
          store(panel + (d + i) * kPanel, rows[i]);
        }
      }
    }
  }

  /// Panels [count, kPanel] of dimensions; those past the end are 0.
  static void pack_values(
      const T* from, std::int64_t stride, std::int64_t count, std::int64_t dims, float* to) {
    for (std::int64_t begin = 0; begin < dims; begin += kPanel) {
      for (std::int64_t t = 0; t < count; ++t, to += kPanel) {
        for (std::int64_t d = begin; d < min_of(begin + kPanel, dims); d += kLanes) {
          store(to + d - begin, load_up_to(from + t * stride + d, dims - d));
        }
      }
    }
  }

  static void logits(const float* queries,
                     const float* keys,
                     const PrefillSizes<FloatProducts>& sizes,
                     std::int64_t columns,
                     float* to) {
    for (std::int64_t t = 0; t < columns; t += kPanel) {
      with_constant<kPrefillVectors>(min_of(columns - t, kPanel) / kLanes, [&](auto vectors) {
        multiply_tile<kRows, decltype(vectors)::value>(queries,
                                                       sizes.depth,
                                                       keys + t * sizes.depth,
                                                       kPanel,
                                                       sizes.depth,
                                                       nullptr,
                                                       to + t,
                                                       sizes.keys,
                                                       fma);
      });
    }
  }

  static void add_values(const float* weights,
                         const float* values,
                         const PrefillSizes<FloatProducts>& sizes,
                         std::int64_t depth,
                         std::int64_t count,
                         std::int64_t dims,
                         const float* kept,
                         float* sums) {
    for (std::int64_t d = 0; d < dims; d += kPanel) {
      const std::int64_t most = (min_of(dims - d, kPanel) + kLanes - 1) / kLanes;
      with_constant<kPrefillVectors>(most, [&](auto vectors) {
        multiply_tile<kRows, decltype(vectors)::value>(weights,
                                                       sizes.keys,
                                                       values + d * count,
                                                       kPanel,
                                                       depth,
                                                       kept,
                                                       sums + d,
                                                       sizes.width,
                                                       fma);
      });
    }
  }

  HYBRIDGEN_INLINE static Vector weight_of(Vector logit) { return exp2_of(logit); }

  HYBRIDGEN_INLINE static Vector store_weight(float* to, Vector weight) {
    store(to, weight);
    return weight;
  }
};

std::int64_t prefill_scratch(const PrefillAttentionArgs& args) {
  return scratch_of<FloatProducts<float>>(args);
}

void prefill_attention(const PrefillAttentionArgs& args) {
  with_element_type(args.dtype,
                    [&]<typename T>(const T*) { prefill_pass<FloatProducts<T>>(args); });
}

void column_sums(const PrefillAttentionArgs& args) {
  with_element_type(args.dtype, [&]<typename T>(const T*) { column_pass<FloatProducts<T>>(args); });
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
