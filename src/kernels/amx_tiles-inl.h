// SPDX-License-Identifier: Apache-2.0
// Logits of one key block by matrix tiles. `Tiles` is the processor's tile unit or a stand-in with
// the same five operations, by which the arithmetic is tested where there is no such unit. Plain
// C++: the compiler vectorises the interleaving for the file that includes it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx_shapes-inl.h"
#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {
namespace {

constexpr std::int64_t kTileDims = 32;                ///< dimensions of one multiplication
constexpr std::int64_t kTileTokens = 16;              ///< tokens of one multiplication
constexpr std::int64_t kTileBlock = 2 * kTileTokens;  ///< tokens of a key block
enum Tile : int { kFirstSums, kSecondSums, kQueryTile, kFirstKeys, kSecondKeys, kNumTiles };

/// queries [num_queries <= 16, >= D rounded up to 32] in bfloat16, zero from D on, rows
/// `query_bytes` apart; block [D, 32] in bfloat16, D even; logits[r, t] = scale * queries[r] .
/// block[:, t].
template <Prefetch To = Prefetch::kL1, typename Tiles>
void tile_logits(Tiles& tiles,
                 const void* queries,
                 std::int64_t query_bytes,
                 std::int64_t num_queries,
                 const std::uint16_t* block,
                 const std::uint16_t* next,
                 std::int64_t head_dim,
                 float scale,
                 float* logits,
                 std::int64_t logits_stride) {
  // A row holds a pair of dimensions: d and d + 1 of token 0, of token 1, and so on.
  alignas(64) std::uint16_t pairs[kTileRows][2 * kTileBlock];
  tiles.template zero<kFirstSums>();
  tiles.template zero<kSecondSums>();
  for (std::int64_t begin = 0; begin < head_dim; begin += kTileDims) {
    for (std::int64_t row = 0; row < kTileRows; ++row) {
      const std::int64_t d = begin + 2 * row;
      if (d >= head_dim) {
        __builtin_memset(pairs[row], 0, sizeof(pairs[row]));
        continue;
      }
      const std::uint16_t* even = block + d * kTileBlock;
      const std::uint16_t* odd = even + kTileBlock;
      constexpr int kLocality = To == Prefetch::kL1 ? 3 : To == Prefetch::kL2 ? 2 : 1;
      __builtin_prefetch(next + d * kTileBlock, 0, kLocality);
      __builtin_prefetch(next + (d + 1) * kTileBlock, 0, kLocality);
      for (std::int64_t t = 0; t < kTileBlock; ++t) {
        pairs[row][2 * t] = even[t];
        pairs[row][2 * t + 1] = odd[t];
      }
    }
    constexpr std::int64_t kPairBytes = sizeof(pairs[0]);
    tiles.template load<kQueryTile>(static_cast<const std::byte*>(queries) + begin * 2,
                                    query_bytes);
    tiles.template load<kFirstKeys>(&pairs[0][0], kPairBytes);
    tiles.template load<kSecondKeys>(&pairs[0][2 * kTileTokens], kPairBytes);
    tiles.template multiply_add<kFirstSums, kQueryTile, kFirstKeys>();
    tiles.template multiply_add<kSecondSums, kQueryTile, kSecondKeys>();
  }
  alignas(64) float sums[kTileRows][kTileBlock];
  constexpr std::int64_t kSumBytes = sizeof(sums[0]);
  tiles.template store<kFirstSums>(&sums[0][0], kSumBytes);
  tiles.template store<kSecondSums>(&sums[0][kTileTokens], kSumBytes);
  for (std::int64_t r = 0; r < num_queries; ++r) {
    for (std::int64_t t = 0; t < kTileBlock; ++t) {
      logits[r * logits_stride + t] = sums[r][t] * scale;
    }
  }
}

}  // namespace
}  // namespace hybridgen::kernels
