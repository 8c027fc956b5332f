// SPDX-License-Identifier: Apache-2.0
// What a prompt's attention by products of bfloat16 pairs shares, be they vectors' or tiles'.
// Queries, keys and values stay what they are; a lane of 32 bits holds two dimensions of a key, or
// two keys' values of one dimension. Weights are rounded to bfloat16, by at most 2^-8 of each, and
// outputs divided by the sum of the rounded ones: an output is off by at most 2^-7 of the values'
// weighted sizes, and that of one key alone is its value.
#pragma once

#include "kernels/prefill_pass-inl.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

/// Whether pairs of dimensions can be read as 32 bits.
HYBRIDGEN_INLINE bool has_pairs(const PrefillAttentionArgs& args) {
  return args.dtype == DType::kBFloat16 && args.head_dim % 2 == 0;
}

template <std::int64_t Panel, std::int64_t Columns, std::int64_t Depth>
struct PairOperands {
  using Element = BFloat16;
  using Operand = BFloat16;
  static constexpr std::int64_t kPanel = Panel;
  static constexpr std::int64_t kColumns = Columns;
  static constexpr std::int64_t kDepth = Depth;
  static constexpr bool kScalesQueries = false;
  static constexpr bool kRoundsWeights = true;
  static_assert(kPanel % kLanes == 0 && kColumns % kLanes == 0);

  static void pack_query(const BFloat16* from, std::int64_t dims, float /*scale*/, BFloat16* to) {
    __builtin_memcpy(to, from, static_cast<std::size_t>(dims) * sizeof(BFloat16));
    for (std::int64_t d = dims; d < round_up(dims, kDepth); ++d) to[d] = BFloat16{};
  }

  /// Panels [depth / 2, kPanel] of pairs of dimensions.
  static void pack_keys(const BFloat16* from,
                        std::int64_t stride,
                        std::int64_t count,
                        std::int64_t dims,
                        BFloat16* to) {
    const std::int64_t pairs = round_up(dims, kDepth) / 2;
    auto* lanes = reinterpret_cast<float*>(to);
    for (std::int64_t t = 0; t < round_up(count, kColumns); t += kLanes) {
      float* panel = lanes + t / kPanel * kPanel * pairs + t % kPanel;
      for (std::int64_t p = 0; p < pairs; p += kLanes) {
        Vector rows[extent(kLanes)];
        for (std::int64_t i = 0; i < kLanes; ++i) {
          rows[i] =
              t + i < count ? load_pairs(from + (t + i) * stride + 2 * p, dims / 2 - p) : zero();
        }
        transpose(rows);
        for (std::int64_t i = 0; i < min_of(kLanes, pairs - p); ++i) {
          store(panel + (p + i) * kPanel, rows[i]);
        }
      }
    }
  }

  /// Panels [packed_rows(count) / 2, kPanel] of pairs of keys.
  static void pack_values(const BFloat16* from,
                          std::int64_t stride,
                          std::int64_t count,
                          std::int64_t dims,
                          BFloat16* to) {
    auto* lanes = reinterpret_cast<std::uint32_t*>(to);
    for (std::int64_t begin = 0; begin < round_up(dims, kColumns); begin += kPanel) {
      for (std::int64_t t = 0; t < packed_rows(count); t += 2, lanes += kPanel) {
        for (std::int64_t d = begin; d < min_of(begin + kPanel, round_up(dims, kColumns));
             d += kLanes) {
          const BFloat16* row = from + t * stride + d;
          const __m512i low = t < count ? load_bits(row, dims - d) : _mm512_setzero_si512();
          const __m512i high =
              t + 1 < count ? load_bits(row + stride, dims - d) : _mm512_setzero_si512();
          _mm512_storeu_si512(lanes + d - begin, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
      }
    }
  }

  /// 2^x to about 3e-6 relative, a thousandth of what rounding takes.
  HYBRIDGEN_INLINE static Vector weight_of(Vector x) {
    // Of a NaN and a constant, max_of returns the second.
    const Vector clamped = max_of(splat(-200.0F), x);
    const Vector n = round_even(clamped);
    const Vector r = sub(clamped, n);
    // Minimax polynomial of degree 4 for 2^r on [-1/2, 1/2].
    Vector p = splat(0.009570102F);
    p = fma(p, r, splat(0.05591786F));
    p = fma(p, r, splat(0.24024744F));
    p = fma(p, r, splat(0.6931218F));
    p = fma(p, r, splat(0.9999993F));
    return _mm512_scalef_ps(p, n);
  }

  HYBRIDGEN_INLINE static Vector store_weight(BFloat16* to, Vector weight) {
    // Weights are finite and not negative, or NaN, whose bits this keeps NaN.
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(weight), _mm512_set1_epi32(0x8000));
    const __m512i high = _mm512_srli_epi32(bits, 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(high));
    return _mm512_castsi512_ps(_mm512_slli_epi32(high, 16));
  }

 protected:
  /// Rows of packed values for `count` keys.
  static std::int64_t packed_rows(std::int64_t count) { return round_up(count, kDepth); }

 private:
  /// Up to 16 pairs as they lie; 0 in lanes past `left`.
  HYBRIDGEN_INLINE static Vector load_pairs(const BFloat16* from, std::int64_t left) {
    const auto* lanes = reinterpret_cast<const float*>(from);
    return left > 0 ? load_up_to(lanes, left) : zero();
  }

  /// Up to 16 numbers' bits, each in the lower half of a lane.
  HYBRIDGEN_INLINE static __m512i load_bits(const BFloat16* from, std::int64_t left) {
    if (left <= 0) return _mm512_setzero_si512();
    const __mmask16 mask = left >= kLanes ? __mmask16{0xffff} : first_lanes(left);
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
  }
};

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
