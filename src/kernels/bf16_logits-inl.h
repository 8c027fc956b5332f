// SPDX-License-Identifier: Apache-2.0
// Logits over bfloat16 keys by instructions that multiply pairs of bfloat16 numbers. They take
// queries of bfloat16 too, and a model of that type has them: its queries come here as float32
// numbers b * s of a bfloat16 b and the scale s = 1/sqrt(D). Where all of a query's numbers are
// such, to the last bit, b is found again and s is applied to the logit: as exact as float32
// multiply-adds, in half as many instructions. Any other query takes those; cut into two bfloat16
// parts it would need as many instructions. The path is a property of the query alone, so its
// logits do not depend on the other queries or on how many there are. Memory is the limit up to
// about 8 queries: beyond those this is faster, and fewer take it for the same bits.
#pragma once

#include "kernels/blocked_walk-inl.h"
#include "kernels/cpu_kernels.h"
#include "kernels/cpu_tables.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kMostPackedDim = 512;  ///< a larger head takes float32 multiply-adds

/// Queries as bfloat16, of which `scale` times the dot products are the logits.
struct PackedQueries {
  alignas(64) BFloat16 values[kGroupQueries][kMostPackedDim];  ///< 0 from D to a multiple of 32
  float scale;
};

/// 1/sqrt(D) times a power of two that brings it into [1, 2): then no sum is larger than the logit,
/// so none overflows before it.
HYBRIDGEN_INLINE float scale_of(std::int64_t head_dim) {
  const float scale = 1.0F / __builtin_sqrtf(static_cast<float>(head_dim));
  const std::uint32_t mantissa = __builtin_bit_cast(std::uint32_t, scale) & 0x007fffffU;
  return __builtin_bit_cast(float, mantissa | 0x3f800000U);
}

/// Whether `query` is `packed` * scale to the last bit, after writing `packed`.
HYBRIDGEN_INLINE bool pack(const float* query,
                           std::int64_t head_dim,
                           float scale,
                           BFloat16* packed) {
  const Vector scales = splat(scale);
  const Vector inverse = splat(1.0F / scale);
  const std::int64_t padded = (head_dim + 31) / 32 * 32;
  __mmask16 different = 0;
  for (std::int64_t d = 0; d < padded; d += kLanes) {
    const std::int64_t left = head_dim - d;
    const Vector wanted = left > 0 ? load_up_to(query + d, left) : zero();
    store(packed + d, mul(wanted, inverse));
    different |= _mm512_cmp_ps_mask(mul(load(packed + d), scales), wanted, _CMP_NEQ_UQ);
  }
  return different == 0;
}

/// Queries first .. first + count of `args` alone.
template <typename Args>
HYBRIDGEN_INLINE Args part_of(const Args& args, std::int64_t first, std::int64_t count) {
  Args part = args;
  part.queries += first * args.keys.head_dim;
  part.logits += first * args.logits_stride;
  part.num_queries = count;
  return part;
}

/// `Blocks` has a constructor from (packed queries, number of them, head_dim) and, with the cache
/// to prefetch into as template argument, logits(block, next, logits, stride); `weaker` are the
/// float32 multiply-adds.
template <typename Blocks, typename Args>
HYBRIDGEN_INLINE void logits_by_pairs(const Args& args, void (*weaker)(const Args&)) {
  const std::int64_t head_dim = args.keys.head_dim;
  if (args.keys.dtype != DType::kBFloat16 || head_dim % 2 != 0 || head_dim > kMostPackedDim) {
    return weaker(args);
  }
  PackedQueries packed;
  packed.scale = scale_of(head_dim);
  std::int64_t first = 0;
  while (first < args.num_queries) {
    std::int64_t exact = 0;
    const auto next_is_exact = [&](BFloat16* to) {
      return pack(args.queries + (first + exact) * head_dim, head_dim, packed.scale, to);
    };
    const std::int64_t most = min_of(kGroupQueries, args.num_queries - first);
    while (exact < most && next_is_exact(packed.values[exact])) ++exact;
    if (exact == 0) {
      weaker(part_of(args, first, 1));
      ++first;
      continue;
    }
    const Blocks blocks(packed, exact, head_dim);
    with_prefetch(args.prefetch, [&](auto to) {
      walk_blocks<BFloat16>(part_of(args, first, exact),
                            [&](const BFloat16* block,
                                const BFloat16* next,
                                std::int64_t /*first_query*/,
                                std::int64_t /*num_queries*/,
                                float* logits,
                                std::int64_t stride) {
                              blocks.template logits<decltype(to)::value>(
                                  block, next, logits, stride);
                            });
    });
    first += exact;
  }
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
