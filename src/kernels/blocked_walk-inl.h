// SPDX-License-Identifier: Apache-2.0
// The way through blocked keys that every logits kernel takes: block by block, all queries of a
// block while it is in the first-level cache, and only the tokens asked for are written. A block's
// logits are computed as a whole wherever a range begins or ends, so they do not depend on it.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

/// Query heads that share one read of the keys; more than that read them again.
constexpr std::int64_t kGroupQueries = 16;

// A core needs about this many bytes on their way to keep its share of the memory's rate; the
// hardware's prefetcher alone loses up to half of it once the multiply-adds take as long.
constexpr std::int64_t kKeyPrefetchBytes = 8192;

/// Calls logits_of_block(block, next, first_query, num_queries, logits, logits_stride) for the
/// blocks that hold args.tokens; it writes logits[num_queries, 32] of queries from first_query, and
/// prefetches `next` line by line as it reads `block` (which `next` is when nothing is left).
template <typename T, typename LogitsOfBlock>
HYBRIDGEN_INLINE void walk_blocks(const BlockedLogitsArgs& args, LogitsOfBlock logits_of_block) {
  constexpr std::int64_t kAhead = kKeyPrefetchBytes / static_cast<std::int64_t>(sizeof(T));
  const T* keys = static_cast<const T*>(args.keys.data);
  const std::int64_t end = args.tokens.end;
  for (std::int64_t first = 0; first < args.num_queries; first += kGroupQueries) {
    const std::int64_t queries = min_of(kGroupQueries, args.num_queries - first);
    float* logits = args.logits + first * args.logits_stride;
    std::int64_t token = args.tokens.begin;
    while (token < end) {
      const std::int64_t block = token / kKeyBlockTokens;
      const std::int64_t offset = block * args.keys.head_dim * kKeyBlockTokens;
      const T* data = keys + offset;
      const T* next = offset + kAhead < end * args.keys.head_dim ? data + kAhead : data;
      const std::int64_t from = token - block * kKeyBlockTokens;
      const std::int64_t count = min_of(kKeyBlockTokens - from, end - token);
      float* out = logits + (token - args.tokens.begin);
      if (count == kKeyBlockTokens) {
        logits_of_block(data, next, first, queries, out, args.logits_stride);
      } else {
        float whole[extent(kGroupQueries * kKeyBlockTokens)];
        logits_of_block(data, next, first, queries, whole, kKeyBlockTokens);
        for (std::int64_t q = 0; q < queries; ++q) {
          __builtin_memcpy(out + q * args.logits_stride,
                           whole + q * kKeyBlockTokens + from,
                           static_cast<std::size_t>(count) * sizeof(float));
        }
      }
      token += count;
    }
  }
}

/// The same for chosen positions. A token's dimensions lie one or two cache lines apart, and those
/// lines hold its whole block: computing the block costs little more than the one token, and
/// neighbours come for free.
template <typename T, typename LogitsOfBlock>
HYBRIDGEN_INLINE void walk_blocks(const ChosenLogitsArgs& args, LogitsOfBlock logits_of_block) {
  const auto block_of = [&](std::int64_t j) { return args.positions[j] / kKeyBlockTokens; };
  const auto data_of = [&](std::int64_t block) {
    return static_cast<const T*>(args.keys.data) + block * args.keys.head_dim * kKeyBlockTokens;
  };
  for (std::int64_t first = 0; first < args.num_queries; first += kGroupQueries) {
    const std::int64_t queries = min_of(kGroupQueries, args.num_queries - first);
    float* logits = args.logits + first * args.logits_stride;
    float whole[extent(kGroupQueries * kKeyBlockTokens)];
    std::int64_t j = 0;
    while (j < args.count) {
      const std::int64_t block = block_of(j);
      std::int64_t end = j + 1;
      while (end < args.count && block_of(end) == block) ++end;
      const T* next = data_of(end < args.count ? block_of(end) : block);
      logits_of_block(data_of(block), next, first, queries, whole, kKeyBlockTokens);
      for (; j < end; ++j) {
        const float* from = whole + args.positions[j] % kKeyBlockTokens;
        for (std::int64_t q = 0; q < queries; ++q) {
          logits[q * args.logits_stride + j] = from[q * kKeyBlockTokens];
        }
      }
    }
  }
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
