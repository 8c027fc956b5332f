// SPDX-License-Identifier: Apache-2.0
// A prompt's attention by vectors of bfloat16 pairs: the register tile of cpu_prefill-inl.h, with
// two dimensions, or two keys' values, to an instruction.
#pragma once

#include "kernels/prefill_pairs-inl.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr int kPairVectors = 4;

class PairProducts : public PairOperands<kPairVectors * kLanes, kLanes, 2> {
 public:
  static constexpr int kRows = kAccumulators / kPairVectors;

  static void logits(const BFloat16* queries,
                     const BFloat16* keys,
                     const PrefillSizes<PairProducts>& sizes,
                     std::int64_t columns,
                     float* to) {
    for (std::int64_t t = 0; t < columns; t += kPanel) {
      multiply(min_of(columns - t, kPanel),
               queries,
               sizes.depth,
               keys + t * sizes.depth,
               sizes.depth,
               nullptr,
               to + t,
               sizes.keys);
    }
  }

  static void add_values(const BFloat16* weights,
                         const BFloat16* values,
                         const PrefillSizes<PairProducts>& sizes,
                         std::int64_t depth,
                         std::int64_t count,
                         std::int64_t dims,
                         const float* kept,
                         float* sums) {
    for (std::int64_t d = 0; d < dims; d += kPanel) {
      multiply(round_up(min_of(dims - d, kPanel), kLanes),
               weights,
               sizes.keys,
               values + d * packed_rows(count),
               round_up(depth, kDepth),
               kept,
               sums + d,
               sizes.width);
    }
  }

 private:
  HYBRIDGEN_INLINE static void multiply(std::int64_t columns,
                                        const BFloat16* a,
                                        std::int64_t a_stride,
                                        const BFloat16* b,
                                        std::int64_t depth,
                                        const float* kept,
                                        float* c,
                                        std::int64_t c_stride) {
    const auto add_products = [](Vector one, Vector wide, Vector sum) {
      return _mm512_dpbf16_ps(sum,
                              reinterpret_cast<__m512bh>(_mm512_castps_si512(wide)),
                              reinterpret_cast<__m512bh>(_mm512_castps_si512(one)));
    };
    with_constant<kPairVectors>(columns / kLanes, [&](auto vectors) {
      multiply_tile<kRows, decltype(vectors)::value>(
          a, a_stride / 2, b, kPanel, depth / 2, kept, c, c_stride, add_products);
    });
  }
};

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
