// SPDX-License-Identifier: Apache-2.0
// Logits over blocked keys by float32 multiply-adds. Lanes are tokens, so no sum across lanes is
// ever needed, and one load and conversion of a key serves all queries. Each logit is one chain of
// multiply-adds in the order of the dimensions: it does not depend on the other queries.
#pragma once

#include "kernels/blocked_walk-inl.h"
#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr int kPassVectors = 2;
constexpr std::int64_t kPassTokens = kPassVectors * kLanes;
constexpr int kBlockQueries = kAccumulators >= 24 ? 8 : 4;
static_assert(kKeyBlockTokens % kPassTokens == 0);

/// `next` is prefetched line by line; `block` itself, a hit and hence free, where nothing is to be.
template <typename T, int Queries>
HYBRIDGEN_INLINE void block_logits(const T* block,
                                   const T* next,
                                   std::int64_t head_dim,
                                   const float* queries,
                                   float* logits,
                                   std::int64_t logits_stride) {
  constexpr std::int64_t kLineTokens = 64 / static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t token = 0; token < kKeyBlockTokens; token += kPassTokens) {
    const T* ahead = token == 0 ? next : block;
    Vector acc[extent(Queries)][kPassVectors];
#pragma GCC unroll 8
    for (int q = 0; q < Queries; ++q) {
#pragma GCC unroll 2
      for (int v = 0; v < kPassVectors; ++v) acc[q][v] = zero();
    }
#pragma GCC unroll 4
    for (std::int64_t d = 0; d < head_dim; ++d) {
      const T* row = block + d * kKeyBlockTokens;
#pragma GCC unroll 2
      for (std::int64_t t = 0; t < kKeyBlockTokens; t += kLineTokens) {
        prefetch(ahead + d * kKeyBlockTokens + t);
      }
      Vector keys[kPassVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kPassVectors; ++v) keys[v] = load(row + token + v * kLanes);
#pragma GCC unroll 8
      for (int q = 0; q < Queries; ++q) {
        const Vector query = splat(queries[q * head_dim + d]);
#pragma GCC unroll 2
        for (int v = 0; v < kPassVectors; ++v) acc[q][v] = fma(query, keys[v], acc[q][v]);
      }
    }
#pragma GCC unroll 8
    for (int q = 0; q < Queries; ++q) {
#pragma GCC unroll 2
      for (int v = 0; v < kPassVectors; ++v) {
        store(logits + q * logits_stride + token + v * kLanes, acc[q][v]);
      }
    }
  }
}

template <typename Args>
void logits_by_multiply_add(const Args& args) {
  const std::int64_t head_dim = args.keys.head_dim;
  with_element_type(args.keys.dtype, [&]<typename T>(const T*) {
    const auto logits_of_block = [&](const T* block,
                                     const T* next,
                                     std::int64_t first_query,
                                     std::int64_t num_queries,
                                     float* logits,
                                     std::int64_t stride) {
      const float* queries = args.queries + first_query * head_dim;
      for (std::int64_t q = 0; q < num_queries; q += kBlockQueries) {
        with_constant<kBlockQueries>(min_of(kBlockQueries, num_queries - q), [&](auto count) {
          block_logits<T, decltype(count)::value>(block,
                                                  q == 0 ? next : block,
                                                  head_dim,
                                                  queries + q * head_dim,
                                                  logits + q * stride,
                                                  stride);
        });
      }
    };
    walk_blocks<T>(args, logits_of_block);
  });
}

void blocked_logits(const BlockedLogitsArgs& args) { logits_by_multiply_add(args); }

void chosen_logits(const ChosenLogitsArgs& args) { logits_by_multiply_add(args); }

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
