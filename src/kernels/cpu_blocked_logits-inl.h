// SPDX-License-Identifier: Apache-2.0
// Logits over blocked keys by float32 multiply-adds. Lanes are tokens, so no sum across lanes is
// ever needed, and one load and conversion of a key serves all queries. Each logit is one chain of
// multiply-adds in the order of the dimensions: it does not depend on the other queries.
#pragma once

#include <type_traits>

#include "kernels/blocked_walk-inl.h"
#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr int kBlockQueries = kLanes >= 8 ? 8 : 4;
constexpr std::int64_t kRowsAtOnce = 4;

/// Queries that a pass takes at most, and vectors of tokens that it takes: its sums and what they
/// are made of stay in registers.
constexpr int kPassQueries = kAccumulators >= 24 ? 8 : kLanes >= 8 ? 6 : 4;
constexpr int pass_vectors(int queries) {
  return kAccumulators < 24 && kLanes >= 8 && queries <= 2 ? 4 : 2;
}

/// Bfloat16 comes as vectors of even and of odd tokens, by twos (not where lanes are plain loops).
template <typename T, int Vectors>
constexpr bool kEvenOdd = std::is_same_v<T, BFloat16> && Vectors % 2 == 0 && kLanes >= 8;

template <typename T, int Vectors>
HYBRIDGEN_INLINE void load_tokens(const T* row, Vector (&keys)[extent(Vectors)]) {
  if constexpr (kEvenOdd<T, Vectors>) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; v += 2) load_even_odd(row + v * kLanes, keys[v], keys[v + 1]);
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) keys[v] = load(row + v * kLanes);
  }
}

template <typename T, int Vectors>
HYBRIDGEN_INLINE void store_tokens(float* logits, const Vector (&sums)[extent(Vectors)]) {
  if constexpr (kEvenOdd<T, Vectors>) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; v += 2) store_even_odd(logits + v * kLanes, sums[v], sums[v + 1]);
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store(logits + v * kLanes, sums[v]);
  }
}

/// sums[q][v] += queries[q, d] * keys of the tokens at `row`, which is that of dimension d.
template <typename T, int Queries, int Vectors>
HYBRIDGEN_INLINE void add_row(const T* row,
                              const float* queries,
                              std::int64_t head_dim,
                              Vector (&sums)[extent(Queries)][extent(Vectors)]) {
  Vector keys[extent(Vectors)];
  load_tokens<T, Vectors>(row, keys);
#pragma GCC unroll 8
  for (int q = 0; q < Queries; ++q) {
    const Vector query = splat(queries[q * head_dim]);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sums[q][v] = fma(query, keys[v], sums[q][v]);
  }
}

/// Logits of the tokens from `block` on; fetches Lines lines from `ahead` per kRowsAtOnce rows and
/// returns where it stopped.
template <typename T, int Queries, int Vectors, std::int64_t Lines, Prefetch To>
HYBRIDGEN_INLINE const char* pass_logits(const T* block,
                                         const char* ahead,
                                         std::int64_t head_dim,
                                         const float* queries,
                                         float* logits,
                                         std::int64_t logits_stride) {
  Vector sums[extent(Queries)][extent(Vectors)];
#pragma GCC unroll 8
  for (int q = 0; q < Queries; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sums[q][v] = zero();
  }
  std::int64_t d = 0;
  for (; d + kRowsAtOnce <= head_dim; d += kRowsAtOnce) {
#pragma GCC unroll 4
    for (std::int64_t r = 0; r < kRowsAtOnce; ++r, block += kKeyBlockTokens) {
#pragma GCC unroll 8
      for (std::int64_t i = 0; i < Lines; ++i) {
        if (i * kRowsAtOnce / Lines == r) prefetch_to<To>(ahead + i * 64);
      }
      add_row<T, Queries, Vectors>(block, queries + d + r, head_dim, sums);
    }
    ahead += Lines * 64;
  }
  for (; d < head_dim; ++d, block += kKeyBlockTokens) {
    add_row<T, Queries, Vectors>(block, queries + d, head_dim, sums);
  }
#pragma GCC unroll 8
  for (int q = 0; q < Queries; ++q) {
    store_tokens<T, Vectors>(logits + q * logits_stride, sums[q]);
  }
  return ahead;
}

/// `next` is fetched line by line, evenly over the passes: fetched in one of them, memory would
/// rest in the others. It is `block` itself, a hit and hence free, where nothing is to be.
template <typename T, int Queries, Prefetch To>
void block_logits(const T* block,
                  const T* next,
                  std::int64_t head_dim,
                  const float* queries,
                  float* logits,
                  std::int64_t logits_stride) {
  constexpr int kFirst = Queries <= kPassQueries ? Queries : 4;  // more take two passes
  constexpr int kVectors = pass_vectors(kFirst);
  constexpr std::int64_t kTokens = kVectors * kLanes;
  constexpr std::int64_t kPasses = kKeyBlockTokens / kTokens * (kFirst < Queries ? 2 : 1);
  constexpr std::int64_t kRowBytes = kKeyBlockTokens * static_cast<std::int64_t>(sizeof(T));
  constexpr std::int64_t kLines = kRowsAtOnce * kRowBytes / 64 / kPasses;
  static_assert(kKeyBlockTokens % kTokens == 0 && kLines >= 1);
  const char* ahead = reinterpret_cast<const char*>(next);
  for (std::int64_t token = 0; token < kKeyBlockTokens; token += kTokens) {
    ahead = pass_logits<T, kFirst, kVectors, kLines, To>(
        block + token, ahead, head_dim, queries, logits + token, logits_stride);
    if constexpr (kFirst < Queries) {
      ahead = pass_logits<T, Queries - kFirst, kVectors, kLines, To>(
          block + token,
          ahead,
          head_dim,
          queries + kFirst * head_dim,
          logits + kFirst * logits_stride + token,
          logits_stride);
    }
  }
}

template <typename T, Prefetch To, typename Args>
void logits_by_multiply_add(const Args& args) {
  const std::int64_t head_dim = args.keys.head_dim;
  walk_blocks<T>(args,
                 [&](const T* block,
                     const T* next,
                     std::int64_t first_query,
                     std::int64_t num_queries,
                     float* logits,
                     std::int64_t stride) {
                   const float* queries = args.queries + first_query * head_dim;
                   for (std::int64_t q = 0; q < num_queries; q += kBlockQueries) {
                     const std::int64_t left = min_of(kBlockQueries, num_queries - q);
                     with_constant<kBlockQueries>(left, [&](auto count) {
                       block_logits<T, decltype(count)::value, To>(block,
                                                                   q == 0 ? next : block,
                                                                   head_dim,
                                                                   queries + q * head_dim,
                                                                   logits + q * stride,
                                                                   stride);
                     });
                   }
                 });
}

template <typename Args>
void logits_of(const Args& args) {
  with_element_type(args.keys.dtype, [&]<typename T>(const T*) {
    with_prefetch(args.prefetch,
                  [&](auto to) { logits_by_multiply_add<T, decltype(to)::value>(args); });
  });
}

void blocked_logits(const BlockedLogitsArgs& args) { logits_of(args); }

void chosen_logits(const ChosenLogitsArgs& args) { logits_of(args); }

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
